"""One tick for all streams: who is silent, who does not read. No timer per stream, and nothing per event."""

import asyncio
from collections.abc import Callable
from typing import Protocol


class Watched(Protocol):
    """What is looked at now and then."""

    def tick(self, now: float) -> None:
        """Looks at itself; `now` is the event loop's time in seconds."""


class Watch:
    """Ticks as long as there is somebody to tick for.

    Args:
        interval_s: seconds between two ticks; may be changed.
        on_lag: is told how late each tick came, in seconds: as late as everything that the event loop does.
    """

    def __init__(self, interval_s: float, on_lag: Callable[[float], None] = lambda lag_s: None) -> None:
        self.interval_s = interval_s
        self._on_lag = on_lag
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, each: Watched) -> None:
        """From now on `each` is ticked, until it is discarded."""
        self._watched.add(each)
        if self._timer is None:
            self._schedule()

    def discard(self, each: Watched) -> None:
        """It no longer is."""
        self._watched.discard(each)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.interval_s, self._tick)

    def _tick(self) -> None:
        assert self._timer is not None, "it is what ticks"
        now = asyncio.get_running_loop().time()
        self._on_lag(max(0.0, now - self._timer.when()))
        self._timer = None
        if self._watched:
            self._schedule()
        for each in tuple(self._watched):
            each.tick(now)
