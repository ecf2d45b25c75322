"""`vllmctl chat`: one question, one answer, as it is generated.

The request leaves before the rest is imported: what reads the answer is loaded while the model thinks.
"""

from math import isfinite
from typing import Any

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.prompt import compose, decode, messages, wants_reading
from vllmd.ctl.terminal import Terminal
from vllmd.errors import ExitStatus
from vllmd.wire import CHAT_COMPLETIONS, WAIT_HEADER


class Number(click.FloatRange):
    """A finite number within bounds; click's own type lets `nan` through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def text_or_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An option's value: a text, or `@FILE` for the text of a file."""
    if value is None or not value.startswith("@"):
        return value
    try:
        with open(value[1:], "rb") as file:
            return decode(file.read(), value[1:]).strip("\r\n")
    except OSError as error:
        raise click.BadParameter(f"cannot read {value[1:]}: {error.strerror}", ctx, param) from error


@click.command(cls=Verb)
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("-t", "--temperature", type=Number(0, 2), help="0 to 2; the higher, the more varied.")
@click.option("--top-p", type=Number(0, 1), help="0 to 1; only the likeliest tokens of this share.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="The longest answer, in tokens.")
@click.option("-m", "--model", metavar="NAME", help="Which model; without it, the default one.")
@click.option("-s", "--system", callback=text_or_file, metavar="TEXT|@FILE", help="The system prompt.")
@click.option("--no-stdin", is_flag=True, help="Leave stdin alone (inside a loop that reads from it).")
@click.option("--no-wait", is_flag=True, help="Fail at once if the model is not ready.")
@click.pass_obj
def chat(
    invocation: Invocation,
    /,
    words: tuple[str, ...],
    system: str | None,
    no_stdin: bool,
    no_wait: bool,
    **sampling: Any,
) -> ExitStatus:
    """Ask the model and print its answer.

    What comes in on stdin stands before PROMPT: a document first, the question last. An option that is not given is not
    sent, so that the model's own defaults hold.
    """
    text = read_text(invocation.terminal, words, no_stdin)
    given = {name: value for name, value in sampling.items() if value is not None}
    body = {"messages": messages(system, text), **given, "stream": True}
    headers = {"Accept": "text/event-stream", **({WAIT_HEADER: "0"} if no_wait else {})}
    with invocation.client().request("POST", CHAT_COMPLETIONS, body, headers) as exchange:
        from vllmd.ctl.answer import show

        finish = show(exchange.events(), invocation.terminal, sampling["model"] or "the model")
    if finish == "length":
        invocation.terminal.note(_too_long(sampling["max_tokens"]))
    return ExitStatus.OK


def read_text(terminal: Terminal, words: tuple[str, ...], no_stdin: bool) -> str:
    """The user's message: stdin if there is any, then the words.

    Raises:
        click.UsageError: there is neither.
        RequestError: one of them is not UTF-8.
    """
    document = ""
    if not no_stdin and wants_reading(terminal.stdin_mode()):
        document = decode(terminal.read_stdin(), "stdin")
    text = compose(document, decode(" ".join(words).encode("utf-8", "surrogateescape"), "the prompt"))
    if not text:
        raise click.UsageError("no prompt: give one as argument or on stdin")
    return text


def _too_long(max_tokens: int | None) -> str:
    if max_tokens is None:
        return "stopped at the longest answer that the model allows; -n sets another length"
    return "stopped at --max-tokens"
