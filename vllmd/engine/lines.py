"""The last lines that one model's engines have printed, numbered, for everyone who wants to read along.

As in `feed`, a reader keeps the number of the last line it saw and comes back for more, so that a slow one costs and
delays nobody; it may find that lines are gone, and is told how many. What is kept is bounded in lines and in size.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

KEPT_LINES = 2000
KEPT_CHARACTERS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Args:
        number: 1 for the first since the daemon began.
        at: when it came, Unix seconds.
        text: without its end.
    """

    number: int
    at: float
    text: str


class Lines:
    """The last lines, and a way to wait for the next.

    Args:
        kept_lines, kept_characters: how much is kept; at least the last line is.
    """

    def __init__(self, kept_lines: int = KEPT_LINES, kept_characters: int = KEPT_CHARACTERS) -> None:
        self._kept_lines = kept_lines
        self._kept_characters = kept_characters
        self._lines: deque[Line] = deque()
        self._characters = 0
        self._more: asyncio.Event | None = None
        self.last = 0
        """The number of the newest line; 0 before the first."""

    def add(self, text: str) -> None:
        """Adds a line and wakes everyone who waits."""
        self.last += 1
        self._lines.append(Line(self.last, time.time(), text))
        self._characters += len(text)
        while len(self._lines) > 1 and self._is_full():
            self._characters -= len(self._lines.popleft().text)
        if self._more is not None:  # made only by who waits: an engine that nobody watches costs nothing more
            self._more.set()
            self._more = None

    def _is_full(self) -> bool:
        return len(self._lines) > self._kept_lines or self._characters > self._kept_characters

    def latest(self, count: int) -> Sequence[Line]:
        """The last `count` lines, or as many as there are, in their order."""
        return list(islice(reversed(self._lines), max(0, count)))[::-1]

    async def after(self, number: int) -> tuple[Sequence[Line], int]:
        """Waits until there are lines later than `number`.

        Returns:
            Those lines, and how many between were forgotten before they could be read.
        """
        while self.last <= number:
            self._more = self._more or asyncio.Event()
            await self._more.wait()
        lines = self.latest(self.last - number)
        return lines, lines[0].number - number - 1
