"""The connections to one engine: those under way, and those that wait to be used again."""

import asyncio
import socket
from pathlib import Path

from vllmd.engine.connection import Connection
from vllmd.errors import EngineRefused

KEEPALIVE_S = 3.0
"""vLLM closes idle connections after 5 s; one that is reused must not be closed under the request."""

CONNECT_TIMEOUT_S = 10.0
CONNECT_AGAIN_S = 0.01

REFUSED = "the engine takes no connections"


class Pool:
    """Connections to one socket. The one that was used last is used next, so that the others grow old and are closed.

    Args:
        socket: where the engine listens.
        loop: the one that runs; to ask for it anew each time is, with Python 3.11, a system call each time.
    """

    def __init__(self, socket: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._all: set[Connection] = set()
        self._idle: dict[Connection, float] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self.is_open = True

    def close(self) -> None:
        """Ends all connections, those under way too, and takes no more."""
        self.is_open = False
        if self._sweeping:
            self._sweeping.cancel()
        for connection in tuple(self._all):
            connection.fail()

    def idle(self) -> Connection | None:
        """Takes out a connection that can be used again, if there is one."""
        now = self._loop.time()
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.is_open and now - since < KEEPALIVE_S:
                return connection
            connection.fail()
        return None

    async def fresh(self) -> Connection:
        """Opens a connection. Raises EngineRefused."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect()
        except OSError as error:  # TimeoutError is one
            raise EngineRefused(REFUSED) from error
        self._all.add(connection)
        if not self.is_open:
            connection.fail()
            raise EngineRefused(REFUSED)
        return connection

    def keep(self, connection: Connection) -> None:
        """Takes a connection back that is free."""
        self._idle[connection] = self._loop.time()
        self._sweeping = self._sweeping or self._loop.call_later(KEEPALIVE_S, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        self._idle.pop(connection, None)

    def _sweep(self) -> None:
        """Closes those that have waited for too long, and comes back for the next."""
        loop, self._sweeping = self._loop, None
        for connection, since in tuple(self._idle.items()):
            if since + KEEPALIVE_S > loop.time():
                self._sweeping = loop.call_at(since + KEEPALIVE_S, self._sweep)
                return
            connection.fail()

    async def _connect(self) -> Connection:
        # No SO_RCVBUF: what a Unix socket holds is bounded by the sender's SO_SNDBUF alone, 208 KiB (unix(7)).
        dialled = await _dial(self._socket)
        _, connection = await self._loop.create_unix_connection(lambda: Connection(self), sock=dialled)
        return connection


async def _dial(path: Path) -> socket.socket:
    """A connected socket. Raises OSError.

    Where the engine's queue of connections is full, the kernel says EAGAIN and tells nobody when there is room
    (connect(2)). asyncio takes that for a connection, and uvloop for a refusal: hence by hand, again after a moment.
    """
    dialling = socket.socket(socket.AF_UNIX)
    try:
        dialling.setblocking(False)
        while not _connects(dialling, path):  # noqa: ASYNC110
            await asyncio.sleep(CONNECT_AGAIN_S)
    except BaseException:
        dialling.close()
        raise
    return dialling


def _connects(dialling: socket.socket, path: Path) -> bool:
    try:
        dialling.connect(str(path))
    except BlockingIOError:
        return False
    return True
