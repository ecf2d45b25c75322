"""The kinds of values that options of `vllmctl chat` take."""

import json
from typing import Any

import click

from vllmd.ctl.prompt import decode, typed

RESERVED = ("messages", "stream", "stream_options")
"""Fields of a request that are vllmctl's own to set."""


class Text(click.ParamType[str]):
    """A text as it was typed, which must be UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return typed(str(value), max(param.opts, key=len) if param else "the command line")


TEXT = Text()


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
    if value == "@":
        raise click.BadParameter("@ needs the name of a file behind it", ctx, param)
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
        found[name] = json_or_text(typed(value, "--param"))
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
