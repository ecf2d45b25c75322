"""Frozen dataclasses whose fields describe themselves, read from plain tables with every mistake listed at once.

A field made with `option` carries its explanation and its bounds. `read` walks the fields of a dataclass beside a table
(as TOML or JSON gives it): an unknown key is named together with the nearest known one, a wrong type or a number out of
bounds is named with what was expected, and reading goes on, so that one run shows all mistakes. The configuration and
the simple door's request bodies are both read this way.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple[str, ...]: "a list of strings",
}

_SHOWN_CHARACTERS = 80

MOST_PROBLEMS = 100
"""Nobody mends more at one time, and a request with a million unknown keys must not keep the daemon busy."""


class Applies(StrEnum):
    """When a change of a key takes effect. It goes over the wire."""

    AT_ONCE = "at once"
    ENGINE = "with a new engine"
    DAEMON = "with a new vllmd"


@dataclass(frozen=True)
class Problem:
    """Something wrong at one place of a table; reads as one line."""

    place: str
    complaint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.complaint}"


def option(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    applies: Applies = Applies.AT_ONCE,
    secret: bool = False,
) -> Any:
    """A dataclass field with a default and an explanation.

    Args:
        minimum, maximum: its bounds, inclusive, in the unit that its name ends in.
        applies: what a reload of the configuration can do about a change.
        secret: whether its values are nobody's business who only asks what has changed.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "applies": applies, "secret": secret}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the known word closest to `word`, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def join(path: str, key: str) -> str:
    """The key path of `key` in the table at `path`."""
    return f"{path}.{key}" if path else key


def read(cls: type[T], table: object, path: str, problems: list[Problem]) -> T:
    """Builds a `cls` from `table`; what is wrong goes to `problems` and keeps its default.

    Args:
        cls: a dataclass whose fields were made with `option`.
        table: keys and values; anything but a mapping is a problem itself.
        path: the key path of this table for messages; empty at the top.
        problems: what is wrong is added here.
    """
    if not isinstance(table, Mapping):
        problems.append(Problem(path, f"expected a table, found {_shown(table)}"))
        return cls()
    hints = get_type_hints(cls)
    known: dict[str, Field[Any]] = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if len(problems) >= MOST_PROBLEMS:
            break
        kind = _required(hints.get(key))
        if key not in known:
            problems.append(Problem(join(path, key), f"unknown key{nearest(key, known)}"))
        elif complaint := _complaint(value, kind, known[key].metadata):
            problems.append(Problem(join(path, key), complaint))
        else:
            values[key] = _convert(value, kind)
    return cls(**values)


def _required(hint: Any) -> Any:
    """`int | None` → `int`: a table cannot hold None, absence says it."""
    if isinstance(hint, UnionType):
        return next(each for each in get_args(hint) if each is not NoneType)
    return hint


def _complaint(value: Any, kind: Any, metadata: Mapping[str, Any]) -> str:
    if not fits(value, kind):
        return f"expected {_WORDS.get(kind, 'a table')}, found {_shown(value)}"
    minimum, maximum = metadata["minimum"], metadata["maximum"]
    if minimum is not None and value < minimum:
        return f"{_shown(value)} is too small, the least is {minimum:g}"
    if maximum is not None and value > maximum:
        return f"{_shown(value)} is too large, the most is {maximum:g}"
    return ""


def _shown(value: object) -> str:
    """A value as Python writes it, cut to what fits into a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of TOML or JSON is of a type; true is no number, and every whole number is a float too."""
    if kind is float:
        # Neither NaN nor an infinity, nor a whole number that no float can hold.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind == tuple[str, ...]:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, Mapping)


def _convert(value: Any, kind: Any) -> Any:
    if kind is float:
        return float(value)
    return tuple(value) if isinstance(value, list) else value
