"""The streams that never end by themselves: a daemon that stops has to end them, or it would wait for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Followers:
    """The tasks that serve such streams."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """The current task is one of them for the block."""
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def dismiss(self, app: web.Application) -> None:
        """Ends their streams (a shutdown handler of aiohttp's, which would wait for them)."""
        for task in self._tasks:
            task.cancel()
