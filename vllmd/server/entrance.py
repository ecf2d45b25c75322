"""Clients come in: the application on its sockets, for as many clients as there are descriptors; and the end of that,
in which nobody who has come in is overlooked.

A socket of systemd's lives on when we stop to listen: who comes then waits in it for the next vllmd. Who was let in
before must be served, also one whose request is still on its way: a client connects and sends in one breath, and in
between is the moment in which a daemon that looks idle would hang up on it.
"""

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from vllmd.server.sockets import BACKLOG

log = logging.getLogger(__name__)

AT_ONCE = 16
"""asyncio accepts so many clients before it looks at the first. It calls that the backlog too."""

OWN_FILES = 32
"""Descriptors that vllmd itself needs: sockets that listen, pipes to engines, files."""

SHUTDOWN_S = 1.0
"""Streams have been drained before; what is still open then is idle."""

NEWCOMER_S = 1.0
"""How long a client that was let in may take to ask, once the doors are closed."""


@asynccontextmanager
async def serving(app: web.Application, sockets: Sequence[socket.socket]) -> AsyncIterator["Doors"]:
    """Serves `app` on `sockets` until the block is left."""
    newcomers = Newcomers()
    app.middlewares.insert(0, newcomers.asked)
    # Without handler_cancellation a client that leaves is noticed only at the next write to it.
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S, logger=_logger()
    )
    await runner.setup()
    assert runner.server is not None, "it was set up"
    doors = Doors(_Bounded(runner.server, newcomers), newcomers, sockets)
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

    @web.middleware
    async def asked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware by which a first request is noticed."""
        self._waiting.discard(request.protocol)
        self._fewer.set()
        return await handler(request)

    async def have_asked(self, connected: Sequence[web.RequestHandler]) -> None:
        """Returns when all who are connected have asked something, or have had `NEWCOMER_S` for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NEWCOMER_S):
                while self._waiting & set(connected):
                    self._fewer.clear()
                    await self._fewer.wait()


class _Bounded:
    """Makes the protocols of clients: half of all descriptors are theirs, as each may need one more towards its engine.

    Who comes when they are used up is hung up on: an accept(2) that fails would be tried again and again, and engines
    could be asked no more.

    Args:
        server: makes them, as long as it may.
        newcomers: are told of each.
    """

    def __init__(self, server: web.Server, newcomers: Newcomers) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, soft // 2 - OWN_FILES)
        self._server = server
        self._newcomers = newcomers
        self._is_told = False

    @property
    def connected(self) -> list[web.RequestHandler]:
        """All who are there."""
        return self._server.connections

    def __call__(self) -> asyncio.Protocol:
        count = len(self._server.connections)
        if count >= self._most and not self._is_told:
            log.warning("%d clients are connected; more are hung up on, as only so many files may be open", count)
        self._is_told = count >= self._most or (self._is_told and count > 0.9 * self._most)
        return self._admit() if count < self._most else _HungUp()

    def _admit(self) -> web.RequestHandler:
        client = self._server()
        self._newcomers.forget_lost(self._server.connections)
        self._newcomers.add(client)
        return client


class _HungUp(asyncio.Protocol):
    """A client too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Good bye."""
        cast(asyncio.WriteTransport, transport).abort()


class Doors:
    """The doors, open or closed.

    Args:
        factory: makes the protocols of clients.
        newcomers: those of them that have not asked yet.
        sockets: one for each door.
    """

    def __init__(self, factory: _Bounded, newcomers: Newcomers, sockets: Sequence[socket.socket]) -> None:
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
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
