"""Requests to one engine over its private Unix socket."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine.connection import AGAIN, GONE, Connection, Sink, no_glance
from vllmd.engine.http import Head, Request, request
from vllmd.engine.pool import REFUSED, Pool
from vllmd.errors import EngineRefused, EngineUnreachable, StreamBroken


@dataclass(eq=False, slots=True)
class Sent:
    """A request that is under way.

    Args:
        at: when it was sent, or its answer last read on, in the event loop's time.
        body_bytes: how large it is.
        is_paused: whether its answer is not read: then its silence says nothing of the engine.
    """

    at: float
    body_bytes: int
    is_paused: bool = False


class EngineClient:
    """A pool of connections to one generation of an engine. An async context manager.

    Args:
        socket: where the engine listens.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._pool: Pool | None = None
        self._under_way: dict[Sent, None] = {}
        self.proved_at = 0.0
        """When the engine last showed that it makes tokens, in the event loop's time. Nothing here sets it, as nothing
        here reads answers: the health check does, and the server for what it passes on to clients."""

    async def __aenter__(self) -> "EngineClient":
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(self._socket, self._loop)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def send(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> "Exchange":
        """A request, written where the block begins; leaving the block before the answer is whole cancels it in the
        engine.

        No timeout here: a prefill may be silent for minutes. Who waits decides for how long.

        Args:
            method, path: as HTTP has them, the path with its query.
            body: the bytes to send, unchanged.
            headers: those to send beside what the connection needs.

        Raises:
            EngineRefused: there was nobody to send it to; at the latest where the block begins.
            ValueError: no request can be made of that.
        """
        if self._pool is None or not self._pool.is_open:
            raise EngineRefused(REFUSED)
        sent = Sent(self._loop.time(), len(body or b""))
        # Only what has a body makes the engine work.
        register = self._under_way if body is not None else {}
        return Exchange(request(method, path, body, headers or {}), self._pool, sent, register)

    @property
    def under_way(self) -> tuple[Sent, ...]:
        """The requests that the engine is working on and from which something can be heard."""
        return tuple(sent for sent in self._under_way if not sent.is_paused)


class Exchange:
    """A request that is written, and its answer. Read it, or attach who takes it; not both.

    An async context manager: the request is under way for the block.

    Args:
        request: the request.
        pool: the connections to send it over.
        sent: what is known of it.
        register: has it for as long as it is under way.
    """

    __slots__ = (
        "_again",
        "_connection",
        "_error",
        "_head",
        "_is_given_up",
        "_is_over",
        "_kept",
        "_moved",
        "_pool",
        "_register",
        "_request",
        "_sent",
        "_sink",
        "glance",
    )

    def __init__(self, request: Request, pool: Pool, sent: Sent, register: dict[Sent, None]) -> None:
        self._request = request
        self._pool = pool
        self._sent = sent
        self._register = register
        self._connection: Connection | None = None
        self._again: asyncio.Task[None] | None = None
        self._head: Head | None = None
        self._kept: list[bytes] = []
        self._sink: Sink | None = None
        self.glance = no_glance
        self._error: Exception | None = None
        self._is_over = self._is_given_up = False
        self._moved: asyncio.Event | None = None  # made when somebody reads: an event is as large as all the rest

    async def __aenter__(self) -> "Exchange":
        self._register[self._sent] = None
        try:
            self._ask(self._pool.idle() or await self._pool.fresh())
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._register.pop(self._sent, None)
        self.abort()

    async def head(self) -> Head:
        """The head of the answer. Raises EngineUnreachable if none comes."""
        while self._head is None:
            await self._news()
        return self._head

    async def read(self) -> bytes:
        """The whole body. Raises EngineUnreachable if it does not come whole: then nothing was passed on yet."""
        while not self._is_over:
            await self._news()
        if isinstance(self._error, StreamBroken):
            raise EngineUnreachable(self._error.message) from self._error
        if self._error:
            raise self._error
        return b"".join(self._kept)

    def attach(self, sink: Sink) -> None:
        """Everything goes to `sink` from now on, and what has come already goes to it before this returns."""
        was_over, self._sink = self._is_over, sink
        if self._connection:
            self._connection.turn_to(sink)
        if self._head is None and not was_over:
            return
        failure = self._hand_over(sink)
        if was_over:
            sink.ended(failure or self._error)
        elif failure and self._connection:
            self._connection.fail(failure)
        elif failure:
            raise failure  # it has given up the answer itself, and been told of its end

    def pause(self) -> None:
        """Stops reading: what the engine writes stays in the kernel, and when that is full the engine has to wait."""
        self._sent.is_paused = True
        if self._connection:
            self._connection.pause()

    def resume(self) -> None:
        """Reads on."""
        self._sent.is_paused, self._sent.at = False, asyncio.get_running_loop().time()
        if self._connection:
            self._connection.resume()

    def abort(self) -> None:
        """Closes the connection now, unless the answer is whole. The sink is told before this returns."""
        self._is_given_up = True
        if self._again:
            self._again.cancel()
        if self._connection:
            self._connection.fail()
        elif not self._is_over:
            self._end(EngineUnreachable(GONE, AGAIN))

    # ── what the connection calls ──

    def begun(self, head: Head) -> None:
        """Keeps the head, and passes it on."""
        self._head = head
        if self._moved:
            self._moved.set()
        if self._sink:
            self._sink.begun(head)

    def payload(self, data: bytes) -> None:
        """Keeps bytes while nobody is attached."""
        self._kept.append(data)

    def over(self, connection: Connection, error: Exception | None) -> None:
        """The end, or only that of a connection which the engine had closed before it could read the request."""
        self._connection = None
        if error and connection.is_stale and not self._is_given_up and self._pool.is_open:
            self._again = asyncio.get_running_loop().create_task(self._send_again(error))
        else:
            self._end(error)

    async def _send_again(self, error: Exception) -> None:
        """Over a new connection. That it is refused is not told: the request may have been what ended the engine."""
        try:
            self._ask(await self._pool.fresh())
        except EngineRefused:
            self._end(error)

    def _ask(self, connection: Connection) -> None:
        self._connection = connection
        connection.ask(self._request, self, self._sink or self)
        if self._sent.is_paused:
            connection.pause()

    def _hand_over(self, sink: Sink) -> Exception | None:
        """Gives what has come to the sink; returns what the sink raises."""
        was_over, kept, self._kept = self._is_over, b"".join(self._kept), []
        try:
            if self._head:
                sink.begun(self._head)
            if kept and self._is_over == was_over:
                sink.payload(kept)
        except Exception as error:
            return error
        return None

    def _end(self, error: Exception | None) -> None:
        self._is_over, self._error = True, error
        if self._moved:
            self._moved.set()
        sink, self._sink = self._sink, None
        if sink:
            sink.ended(error)

    async def _news(self) -> None:
        """Waits until more is known. Raises what ended the answer."""
        if self._error:
            raise self._error
        self._moved = asyncio.Event()
        await self._moved.wait()
