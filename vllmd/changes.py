"""What has changed between two configurations, and what a reload can do about it. Pure.

When a key applies is said where the key is declared (`settings.option`), and nowhere else.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, fields, is_dataclass, replace
from typing import Any

from vllmd.sections import SECTIONS, Config, Model
from vllmd.settings import Applies
from vllmd.statuses import Change

_HIDDEN = '"…"'


def compare(before: Config, after: Config) -> tuple[Change, ...]:
    """Every key that differs, in the order of the file's sections.

    Args:
        before: what is in force.
        after: what the file says now; both as `locate` filled them in.
    """
    kept = tuple(name for name in before.models if name in after.models)
    found = [
        change
        for section in SECTIONS
        for change in _differences(section, getattr(before, section), getattr(after, section), kept)
    ]
    return (*found, *_models(before.models, after.models))


def in_force(before: Config, after: Config) -> Config:
    """What can be put in force without a new vllmd: `after`, but for the keys that apply to the next one."""
    return replace(after, **{name: _mixed(getattr(before, name), getattr(after, name)) for name in SECTIONS})


def _mixed(before: Any, after: Any) -> Any:
    held = {each.name for each in fields(before) if _applies(each) is Applies.DAEMON}
    return replace(after, **{name: getattr(before, name) for name in held})


def _models(before: Mapping[str, Model], after: Mapping[str, Model]) -> Iterator[Change]:
    for name in before.keys() - after.keys():
        yield Change(f"models.{name}", _json(before[name].model), "", Applies.ENGINE, (name,))
    for name, model in after.items():
        if name not in before:
            yield Change(f"models.{name}", "", _json(model.model), Applies.ENGINE, (name,))
        else:
            yield from _differences(f"models.{name}", before[name], model, (name,))


def _differences(path: str, before: Any, after: Any, models: tuple[str, ...]) -> Iterator[Change]:
    """The keys of one table that differ; inner tables key by key."""
    for each in fields(before):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if isinstance(old, Mapping):
            for key in [*old, *(key for key in new if key not in old)]:
                if _json(old.get(key)) != _json(new.get(key)):
                    yield _change(f"{path}.{each.name}.{key}", each, old.get(key), new.get(key), models)
        elif old != new:
            yield _change(f"{path}.{each.name}", each, old, new, models)


def _change(key: str, declared: "Field[Any]", old: object, new: object, models: tuple[str, ...]) -> Change:
    applies = _applies(declared)
    before, after = (_shown(value, declared.metadata["secret"]) for value in (old, new))
    return Change(key, before, after, applies, models if applies is Applies.ENGINE else ())


def _applies(declared: "Field[Any]") -> Applies:
    return Applies(declared.metadata["applies"])


def _shown(value: object, secret: bool) -> str:
    return _HIDDEN if secret and value is not None else _json(value)


def _json(value: object) -> str:
    """As it is shown, and by which values of vLLM's arguments are told apart: Python takes 1 and true for the same."""
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
