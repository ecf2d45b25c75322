"""The kinds of values that options of `vllmctl chat` take."""

import json
from math import isfinite
from typing import Any

import click

from vllmd.ctl.prompt import decode, typed

RESERVED = ("messages", "stream", "stream_options")
"""Fields of a request that are vllmctl's own to set."""


class Number(click.FloatRange):
    """A finite number within bounds; click's own type lets `nan` through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def read_file(path: str) -> str:
    """The text of a file.

    Raises:
        click.BadParameter: it cannot be read.
        RequestError: it is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            return decode(file.read(), path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise click.BadParameter(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def text_or_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An option's value: a text, or `@FILE` for the text of a file."""
    if value is None or not value.startswith("@"):
        return value and typed(value, "the system prompt")
    return read_file(value[1:]).strip("\r\n")


def files(ctx: click.Context, param: click.Parameter, paths: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Files as their names and texts; `-`, which stands for stdin, has no text yet."""
    return [(path, None if path == "-" else read_file(path)) for path in paths]


def parameters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE`, any number of times, as fields of the request."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", ctx, param)
        if name in RESERVED:
            raise click.BadParameter(f"{name} is set by vllmctl itself", ctx, param)
        found[name] = json_or_text(value)
    return found


def json_or_text(value: str) -> Any:
    """JSON as what it means, anything else as text."""
    try:
        return json.loads(value, parse_constant=_refuse)
    except ValueError:
        return value


def _refuse(constant: str) -> None:
    """NaN and Infinity are Python's, not JSON's: nobody could read them in a request."""
    raise ValueError(constant)
