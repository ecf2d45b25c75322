"""One answer for all who ask at about the same time: what is dear to find out is found out once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """An answer, found anew when somebody asks and the last one is no longer good.

    Args:
        find: finds it, in a while; what it raises is told to all who wait, and not remembered.
        fresh_s: seconds for which an answer is good.
    """

    def __init__(self, find: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._find = find
        self._fresh_s = fresh_s
        self._finding: asyncio.Task[T] | None = None
        self._state: object = None
        self._found_at = 0.0

    async def get(self, state: object = None) -> T:
        """The answer; whoever stops waiting for it takes it from nobody.

        Args:
            state: what it depends on, as far as that is known: an answer for another one is not good.
        """
        if self._finding is None or state != self._state or self._is_stale(self._finding):
            self._state, self._finding = state, asyncio.ensure_future(self._run())
            self._finding.add_done_callback(_heard)
        return await asyncio.shield(self._finding)

    async def _run(self) -> T:
        try:
            return await self._find()
        finally:
            self._found_at = asyncio.get_running_loop().time()

    def _is_stale(self, finding: "asyncio.Task[T]") -> bool:
        if not finding.done():
            return False
        failed = finding.cancelled() or finding.exception() is not None
        return failed or asyncio.get_running_loop().time() - self._found_at >= self._fresh_s


def _heard(finding: "asyncio.Task[T]") -> None:
    """Its error is told to those who wait, even if those are none."""
    if not finding.cancelled():
        finding.exception()
