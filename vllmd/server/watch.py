"""One tick for all streams: who is silent, who does not read. No timer per stream, and nothing per event."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Watched(Protocol):
    """What is looked at now and then."""

    def tick(self, now: float) -> None:
        """Looks at itself; `now` is the event loop's time in seconds."""


class Watch:
    """Ticks as long as there is somebody to tick for.

    Args:
        interval_s: seconds between two ticks.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def over(self, each: Watched) -> Iterator[None]:
        """Ticks `each` for as long as the block lasts."""
        self._watched.add(each)
        if self._timer is None:
            self._schedule()
        try:
            yield
        finally:
            self._watched.discard(each)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._watched:
            self._schedule()
        now = asyncio.get_running_loop().time()
        for each in tuple(self._watched):
            each.tick(now)
