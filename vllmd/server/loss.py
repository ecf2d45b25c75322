"""Whether an engine that failed a request is lost: the supervisor says so, and a dying vLLM takes a moment to go."""

import asyncio
from contextlib import suppress

from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineRefused, EngineUnreachable

LOOK_S = 0.4
LOOKS = 2
"""How often an engine that failed a request is asked whether it lives, and the seconds before each time. A dying vLLM
says 503 or listens no more from the first moment on, though it takes 0.9 to 1.6 s to exit."""

HEALTH_S = 1.0
"""Seconds that an engine gets to say whether it lives, once it is doubtful."""

GOING_S = 60.0
"""The longest wait for an engine that shows that it is dying: the supervisor tells of its end only when all its
processes and its memory on the GPU are gone, which takes long for a large one."""


class Loss:
    """Watches whether the engine of one attempt is lost: the one that lives now.

    Args:
        supervisor: the engine's.
        feed: changes when its state does.
        client: the way to it.
    """

    __slots__ = ("_client", "_feed", "_generation", "_supervisor")

    def __init__(self, supervisor: Supervisor, feed: Feed, client: EngineClient) -> None:
        self._supervisor = supervisor
        self._feed = feed
        self._generation = supervisor.engine.generation
        self._client = client

    async def is_certain(self) -> bool:
        """Whether it is no longer ready, after the time that a dying one takes to go; a living one is known sooner."""
        for _ in range(LOOKS):
            await self._wait(LOOK_S)
            if not self._is_gone() and await self._is_dying():
                await self._wait(GOING_S)
            if self._is_gone():
                return True
        return False

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_gone():
                    await self._feed.after(self._feed.last)

    def _is_gone(self) -> bool:
        return self._supervisor.client is None or self._supervisor.engine.generation != self._generation

    async def _is_dying(self) -> bool:
        """Whether it says so itself (503), or nobody listens any more. Silence may mean that it is busy."""
        try:
            async with asyncio.timeout(HEALTH_S), self._client.send("GET", "/health") as exchange:
                return (await exchange.head()).status == 503
        except EngineRefused:
            return True
        except (EngineUnreachable, TimeoutError):
            return False
