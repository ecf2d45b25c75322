"""Timers of one engine, at most one of each name."""

import asyncio
from collections.abc import Callable

from vllmd.lifecycle import Timer


class Timers:
    """What a state is waiting for."""

    def __init__(self) -> None:
        self._handles: dict[Timer, asyncio.TimerHandle] = {}

    def set(self, timer: Timer, seconds: float, ring: Callable[[], None]) -> None:
        """Calls `ring` in `seconds`, instead of what the timer of that name was set to."""
        if timer in self._handles:
            self._handles[timer].cancel()
        self._handles[timer] = asyncio.get_running_loop().call_later(seconds, ring)

    def left_s(self, timer: Timer) -> float | None:
        """Seconds until it rings; None if it was not set."""
        handle = self._handles.get(timer)
        return None if handle is None else max(0.0, handle.when() - asyncio.get_running_loop().time())

    def clear(self) -> None:
        """Nothing is waited for any more."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
