"""Watching a stream for silence: keep the client awake, and know a stalled engine.

No timer per event: an event only leaves its time, and one timer per stream looks at it now and then.
"""

import asyncio
from collections.abc import Awaitable, Callable


class Silence:
    """A context manager around the life of one stream.

    Args:
        keepalive_s: seconds of silence after which `keep_alive` is awaited, again and again.
        stall_s: seconds of silence after which `give_up` is called, once.
        keep_alive: writes a comment to the client. While it cannot, because the client does not read, the silence is
            the client's, and does not count.
        give_up: ends the stream.
    """

    def __init__(
        self,
        keepalive_s: float,
        stall_s: float,
        keep_alive: Callable[[], Awaitable[None]],
        give_up: Callable[[], None],
    ) -> None:
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._keep_alive = keep_alive
        self._give_up = give_up
        self._now = asyncio.get_running_loop().time
        self._heard_at = self._now()
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self.is_stalled = False
        """Whether the stream was given up for its silence."""

    def heard(self) -> None:
        """Something came and was passed on: the wait for more begins."""
        self._heard_at = self._now()
        self._paused = False

    def pause(self) -> None:
        """Something came: until it is passed on, and `heard` is called, silence is not the engine's."""
        self._paused = True

    async def __aenter__(self) -> "Silence":
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) and exc[0] is None:
            raise error

    async def _watch(self) -> None:
        kept_alive_at = self._heard_at
        while True:
            last = max(self._heard_at, kept_alive_at)
            await asyncio.sleep(min(last + self._keepalive_s, self._heard_at + self._stall_s) - self._now())
            now = self._now()
            if self._paused:
                self._heard_at = now
            if now - self._heard_at >= self._stall_s:
                self.is_stalled = True
                return self._give_up()
            if now - max(self._heard_at, kept_alive_at) >= self._keepalive_s:
                kept_alive_at = now
                try:
                    await self._keep_alive()
                except ConnectionError:
                    return None  # the client has left; whoever serves it is told by other ways
                self._heard_at = min(self._heard_at + self._now() - now, self._now())
