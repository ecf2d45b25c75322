"""For tests: takes an engine's answer as the server does, and tells the client of each token."""

import asyncio
from collections.abc import Callable

from vllmd.engine.client import EngineClient, Exchange
from vllmd.engine.connection import no_glance
from vllmd.engine.http import Head


class Taken:
    """A sink that takes every byte for a token, but for comments.

    Args:
        client: is told.
        see: gets each piece of the body.
    """

    def __init__(self, client: EngineClient, see: Callable[[bytes], object]) -> None:
        self._client = client
        self._see = see
        self.glance = no_glance
        self.over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def begun(self, head: Head) -> None:
        """Nothing to do yet."""

    def payload(self, data: bytes) -> None:
        """A comment proves that the API server lives, not the engine core."""
        if not data.startswith(b":"):
            self._client.proved_at = asyncio.get_running_loop().time()
        self._see(data)

    def ended(self, error: Exception | None) -> None:
        """Unless nobody waits any more, tells."""
        if not self.over.done():
            self.over.set_result(error)


async def take(client: EngineClient, exchange: Exchange, see: Callable[[bytes], object] = lambda data: None) -> None:
    """Takes an answer to its end. Raises what ends it early."""
    exchange.attach(taken := Taken(client, see))
    if error := await taken.over:
        raise error
