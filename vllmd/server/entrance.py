"""Clients come in: the application on its sockets, for as many as `census` finds room for; and the end of that, in
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

from vllmd.errors import Unavailable
from vllmd.server.access import Identity
from vllmd.server.asked import SHORTCUT
from vllmd.server.census import Census
from vllmd.server.clients import Client
from vllmd.server.middleware import CHECKS
from vllmd.server.shortcut import Shortcut
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
    entrance = _Entrance(app, runner.server, census, newcomers)
    doors = Doors(entrance, newcomers, sockets)
    try:
        await doors.open()
        yield doors
    finally:
        doors.close()
        await entrance.shutdown()
        await runner.cleanup()


Connection = Shortcut | web.RequestHandler


class Newcomers:
    """The connections that have not asked anything yet."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.BaseProtocol] = set()
        self._fewer = asyncio.Event()

    def add(self, connection: Connection) -> None:
        """Somebody has been let in."""
        self._waiting.add(connection)

    def replace(self, connection: Connection, other: Connection) -> None:
        """The same client, dealt with by another."""
        if connection in self._waiting:
            self._waiting.add(other)
            self._waiting.discard(connection)

    def discard(self, connection: asyncio.BaseProtocol) -> None:
        """It has asked something, or is gone."""
        if self._waiting:
            self._waiting.discard(connection)
            self._fewer.set()

    def asked(self, request: web.BaseRequest) -> None:
        """The check by which a first request is noticed."""
        self.discard(request.protocol)

    async def have_asked(self) -> None:
        """Returns when all who are connected have asked something, or have had `NEWCOMER_S` for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NEWCOMER_S):
                while self._waiting:
                    self._fewer.clear()
                    await self._fewer.wait()


class _Entrance:
    """Makes the protocols of clients, and knows those who are there.

    Args:
        app: what is served, and the ways past aiohttp.
        server: aiohttp's, which serves the rest.
        census: counts and bounds the connections.
        newcomers: are told of each.
    """

    def __init__(self, app: web.Application, server: web.Server, census: Census, newcomers: Newcomers) -> None:
        self.way = app[SHORTCUT]
        self._server = server
        self._census = census
        self._newcomers = newcomers
        self._on_shortcut: set[Connection] = set()
        self._logger = _logger()

    def __call__(self) -> Shortcut:
        return Shortcut(self, asyncio.get_running_loop())

    @property
    def connected(self) -> list[Connection]:
        """All who are there."""
        return [*self._on_shortcut, *self._server.connections]

    @property
    def idle_s(self) -> float:
        """How long a connection may be idle."""
        return self._census.limits.head_s

    async def shutdown(self) -> None:
        """Hangs up on who has taken the shortcut; aiohttp sees to its own."""
        await asyncio.gather(*(each.shutdown(SHUTDOWN_S) for each in self._on_shortcut))

    # ── what connections call ──

    def refusal(self, who: Identity) -> Unavailable | None:
        """Why there is no room for one more connection of `who`."""
        return self._census.refusal(who)

    def entered(self, connection: Shortcut) -> None:
        """Somebody has come in."""
        self._census.entered(connection.peer)
        self._on_shortcut.add(connection)
        self._newcomers.add(connection)

    def asked(self, connection: Shortcut) -> None:
        """They ask something."""
        self._newcomers.discard(connection)

    def left(self, connection: Shortcut | Client) -> None:
        """And has left."""
        self._census.left(connection.peer)
        self._on_shortcut.discard(connection)
        self._newcomers.discard(connection)

    def taken_over(self, connection: Shortcut) -> Client:
        """Somebody has said something that is not ordinary: aiohttp deals with them."""
        self._on_shortcut.discard(connection)
        client = Client(
            connection.peer,
            connection.patient_until,
            self.left,
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            logger=self._logger,
            keepalive_timeout=self.idle_s,
        )
        self._newcomers.replace(connection, client)
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
        await self._newcomers.have_asked()
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
