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

    def clear(self) -> None:
        """Nothing is waited for any more."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
