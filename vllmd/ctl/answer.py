"""An answer as it arrives: the chunks of a chat completion in, text on the terminal out.

An answer is whole only if it said why it ended. A stream that stops before that, however cleanly, is a failure; what
has come of it stays on stdout. Events that arrive together are written together, so that a fast stream costs one write
for many tokens, and a slow one a write for each.
"""

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from vllmd.ctl.failure import LOOK, read_error
from vllmd.ctl.reading import Chunk, Reader, json_decode, read_chunk
from vllmd.ctl.terminal import Terminal
from vllmd.errors import StreamBroken
from vllmd.sse import Event

if TYPE_CHECKING:
    from vllmd.ctl.client import Exchange

BROKEN = ("abort", "error")
"""Finish reasons with which vLLM says that it gave up."""


class Answer:
    """What has come of an answer.

    Args:
        sent_at: when it was asked for, in seconds of `time.monotonic`, as the other times are.
        keep: whether to keep the text; without it, memory stays the same however long the answer is.
    """

    def __init__(self, sent_at: float, keep: bool) -> None:
        self.sent_at = sent_at
        self.first_at: float | None = None
        self.last_at = sent_at
        self.id = self.model = self.finish = ""
        self.usage: Mapping[str, Any] | None = None
        self.is_done = False
        self._keep = keep
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def text(self) -> str:
        """What was kept of the answer's text."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """What was kept of the model's reasoning."""
        return "".join(self._reasoning)

    def add(self, data: str) -> Chunk:
        """Adds one event's data.

        Raises:
            Failure: it is an error.
            StreamBroken: it is nothing that a chat completion may hold.
        """
        if self.is_done or data == "[DONE]":
            self.is_done = True
            return Chunk()
        try:
            table = json_decode(data)
            if "error" in table:
                raise read_error(table)
            chunk = read_chunk(table)
            self._learn(table)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise StreamBroken(f"an event of the answer cannot be read: {data[:80]}", LOOK) from error
        self.finish = chunk.finish or self.finish
        return self.keep(chunk)

    def keep(self, chunk: Chunk) -> Chunk:
        """Keeps what a chunk says, if that is wanted; nothing is said any more once it is done."""
        if self.is_done:
            return Chunk()
        if self._keep:
            self._text.append(chunk.text)
            self._reasoning.append(chunk.reasoning)
        return chunk

    def _learn(self, table: Mapping[str, Any]) -> None:
        if not self.id:
            self.id, self.model = str(table.get("id", "")), str(table.get("model", ""))
        if usage := table.get("usage"):
            self.usage = dict(usage)

    def check(self) -> None:
        """Raises StreamBroken if it did not say why it ended, or that it was given up."""
        if self.finish in ("", *BROKEN):
            raise StreamBroken("the answer broke off before its end", LOOK)


class Display:
    """Shows an answer on the terminal as it comes.

    Args:
        name: whom the answer is awaited from, for the progress line.
        text, reasoning: whether to show the answer's text, and the model's reasoning, before the end.
    """

    def __init__(self, terminal: Terminal, name: str, text: bool = True, reasoning: bool = True) -> None:
        self._terminal = terminal
        self._name = name
        self._shows_text = text
        self._shows_reasoning = reasoning
        self._texts: list[str] = []

    def show(self, exchange: "Exchange", answer: Answer) -> None:
        """Takes the answer in and shows it.

        Raises:
            VllmdError: the stream told of a failure, or ended before the answer did.
        """
        reader = Reader()
        for block in exchange.unread():
            try:
                for part in reader.read(block):
                    self._take(part, answer)
            finally:  # what came before an error is shown before it
                self._flush()
                answer.last_at = monotonic()
        answer.check()

    def _take(self, part: Chunk | Event, answer: Answer) -> None:
        if isinstance(part, Chunk):
            self._write(answer.keep(part), answer)
        elif part.has_data:
            self._write(answer.add(part.data), answer)
        elif part.comment and answer.first_at is None:
            self._terminal.progress(f"waiting for {self._name}: {part.comment}")

    def _write(self, chunk: Chunk, answer: Answer) -> None:
        if answer.first_at is None and (chunk.text or chunk.reasoning):
            answer.first_at = monotonic()
        if chunk.reasoning and self._shows_reasoning:
            self._flush()
            self._terminal.reasoning(chunk.reasoning)
        if chunk.text and self._shows_text:
            self._texts.append(chunk.text)

    def _flush(self) -> None:
        if self._texts:
            texts, self._texts = self._texts, []
            self._terminal.answer("".join(texts))
