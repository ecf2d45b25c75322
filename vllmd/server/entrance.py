"""Clients come in: the application on its sockets, for as many as `clients` finds room for; and the end of that, in
which nobody who has come in is overlooked.

A socket of systemd's lives on when we stop to listen: who comes then waits in it for the next vllmd. Who was let in
before must be served, also one whose request is still on its way: a client connects and sends in one breath, and in
between is the moment in which a daemon that looks idle would hang up on it.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vllmd.server.clients import Census, Client
from vllmd.server.middleware import CHECKS
from vllmd.server.sockets import BACKLOG

AT_ONCE = 16
"""asyncio accepts so many clients before it looks at the first. It calls that the backlog too."""

SHUTDOWN_S = 1.0
"""Streams have been drained before; what is still open then is idle."""

NEWCOMER_S = 3.0
"""How long a client that was let in may take to ask, once the doors are closed."""


@asynccontextmanager
async def serving(app: web.Application, sockets: Sequence[socket.socket], census: Census) -> AsyncIterator["Doors"]:
    """Serves `app` on `sockets` until the block is left; `census` bounds and counts the connections."""
    newcomers = Newcomers()
    app[CHECKS].insert(0, newcomers.asked)
    # Without handler_cancellation a client that leaves is noticed only at the next write to it.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    assert runner.server is not None, "it was set up"
    doors = Doors(_Entrance(runner.server, census, newcomers), newcomers, sockets)
    try:
        await doors.open()
        yield doors
    finally:
        doors.close()
        await runner.cleanup()


class Newcomers:
    """The connections that have not asked anything yet."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.BaseProtocol] = set()
        self._fewer = asyncio.Event()

    def add(self, client: web.RequestHandler) -> None:
        """Somebody is being let in."""
        self._waiting.add(client)

    def forget_lost(self, connected: Sequence[web.RequestHandler]) -> None:
        """Those who have left without a word; called now and then, with all who have not."""
        if len(self._waiting) > 2 * len(connected) + AT_ONCE:
            self._waiting &= set(connected)

    def asked(self, request: web.Request) -> None:
        """The check by which a first request is noticed."""
        if self._waiting:
            self._waiting.discard(request.protocol)
            self._fewer.set()

    async def have_asked(self, connected: Sequence[web.RequestHandler]) -> None:
        """Returns when all who are connected have asked something, or have had `NEWCOMER_S` for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NEWCOMER_S):
                while self._waiting & set(connected):
                    self._fewer.clear()
                    await self._fewer.wait()


class _Entrance:
    """Makes the protocols of clients.

    Args:
        server: aiohttp's, which serves them.
        census: counts and bounds them.
        newcomers: are told of each.
    """

    def __init__(self, server: web.Server, census: Census, newcomers: Newcomers) -> None:
        self._server = server
        self._census = census
        self._newcomers = newcomers
        self._logger = _logger()

    @property
    def connected(self) -> list[web.RequestHandler]:
        """All who are there."""
        return self._server.connections

    def __call__(self) -> Client:
        loop, idle_s = asyncio.get_running_loop(), self._census.limits.head_s
        client = Client(
            self._census, self._server, loop=loop, access_log=None, logger=self._logger, keepalive_timeout=idle_s
        )
        self._newcomers.forget_lost(self._server.connections)
        self._newcomers.add(client)
        return client


class Doors:
    """The doors, open or closed.

    Args:
        factory: makes the protocols of clients.
        newcomers: those of them that have not asked yet.
        sockets: one for each door.
    """

    def __init__(self, factory: _Entrance, newcomers: Newcomers, sockets: Sequence[socket.socket]) -> None:
        self._factory = factory
        self._newcomers = newcomers
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []

    async def open(self) -> None:
        """Lets clients in."""
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            # A copy, as the server closes its own: these doors can be opened again.
            self._servers.append(await loop.create_server(self._factory, sock=each.dup(), backlog=AT_ONCE))
            each.listen(BACKLOG)

    def close(self) -> None:
        """Takes no new connections; those that are open go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def close_for_good(self) -> None:
        """Nobody can come in any more, or wait to: sockets of our own end, those of systemd's are its to serve."""
        self.close()
        for each in self._sockets:
            each.close()

    async def newcomers_have_asked(self) -> None:
        """Returns when all who were let in have asked something, or do not mean to."""
        await self._newcomers.have_asked(self._factory.connected)
        await _next_look()

    async def part(self) -> None:
        """Hangs up on those who have had their answers and may come back with another question."""
        await _next_look()
        for each in self._factory.connected:
            each.close()


async def _next_look() -> None:
    """Lets the loop look once more at what has arrived."""
    for _ in range(3):
        await asyncio.sleep(0)


def _logger() -> logging.Logger:
    """Where aiohttp logs what goes wrong below the application."""
    logger = logging.getLogger(f"{__name__}.http")
    logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether the log needs a traceback: what is no HTTP is the fault of whoever sent it, and was answered with 400."""
    return not (record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, web.RequestPayloadError)))
