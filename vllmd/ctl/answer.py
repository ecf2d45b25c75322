"""An answer as it arrives: the chunks of a chat completion in, text on the terminal out.

An answer is whole only if it said why it ended. A stream that stops before that, however cleanly, is a failure; what
has come of it stays on stdout.
"""

import json
from collections.abc import Iterable
from typing import NamedTuple

from vllmd.ctl.failure import LOOK, read_error
from vllmd.ctl.terminal import Terminal
from vllmd.errors import StreamBroken
from vllmd.sse import Event

BROKEN = ("abort", "error")
"""Finish reasons with which vLLM says that it gave up."""


class Chunk(NamedTuple):
    """What one event adds to the answer."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""


def show(events: Iterable[Event], terminal: Terminal, name: str) -> str:
    """Writes the answer as it comes.

    Args:
        name: whom the answer is awaited from, for the progress line.

    Returns:
        Why the answer ended, such as `stop` or `length`.

    Raises:
        VllmdError: the stream told of a failure, or ended before the answer did.
    """
    finish, begun = "", False
    for event in events:
        if event.data == "[DONE]":
            break
        if event.has_data:
            chunk = read_chunk(event.data)
            terminal.reasoning(chunk.reasoning)
            terminal.answer(chunk.text)
            finish, begun = chunk.finish or finish, begun or bool(chunk.text or chunk.reasoning)
        elif event.comment and not begun:
            terminal.progress(f"waiting for {name}: {event.comment}")
    if finish in ("", *BROKEN):
        raise StreamBroken("the answer broke off before its end", LOOK)
    terminal.end_answer()
    return finish


def read_chunk(data: str) -> Chunk:
    """Reads one event's data.

    Raises:
        Failure: it is an error.
        StreamBroken: it is nothing that a chat completion may hold.
    """
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise read_error(chunk)
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        delta = choice.get("delta") or {}
        text, reasoning = delta.get("content"), delta.get("reasoning") or delta.get("reasoning_content")
        return Chunk(str(text or ""), str(reasoning or ""), choice.get("finish_reason") or "")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise StreamBroken(f"an event of the answer cannot be read: {data[:80]}", LOOK) from error
