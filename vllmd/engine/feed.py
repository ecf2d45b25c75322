"""What has happened to the engines and their streams, numbered, for everyone who wants to follow or to wait.

One list for all readers. A reader keeps the number of the last entry it saw and comes back for more: a slow one costs
nothing and delays nobody; it may only find that entries it had not read are gone, and is told how many.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllmd.incident import Incident
from vllmd.provisions import JobStatus
from vllmd.statuses import Continued, ModelStatus

News = ModelStatus | Continued | Incident | JobStatus
"""What there is to tell: a model or a job as it is now, an answer that another engine goes on with, an incident."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Args:
        number: 1 for the first since the daemon began.
        news: what happened.
    """

    number: int
    news: News


class Feed:
    """The last changes, and a way to wait for the next.

    Args:
        keep: how many entries are kept for readers who come late.
        on_change: is told of every change of a model, and must not miss one.
    """

    def __init__(self, keep: int = 1024, on_change: Callable[[ModelStatus], None] = lambda status: None) -> None:
        self._on_change = on_change
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._more = asyncio.Event()
        self.last = 0
        """The number of the newest entry; 0 before the first."""

    def publish(self, news: News) -> None:
        """Adds an entry and wakes everyone who waits."""
        if isinstance(news, ModelStatus):
            self._on_change(news)
        self.last += 1
        self._entries.append(Entry(self.last, news))
        self._more.set()
        self._more = asyncio.Event()

    async def after(self, number: int) -> tuple[Sequence[Entry], int]:
        """Waits until there are entries later than `number`.

        Returns:
            Those entries, and how many between were forgotten before they could be read.
        """
        while self.last <= number:
            await self._more.wait()
        entries = [entry for entry in self._entries if entry.number > number]
        return entries, entries[0].number - number - 1
