"""How an answer reaches one client: the interface that the relay writes to, and the one for `/v1`.

A door decides what the client sees: bytes as the engine sent them, or text, or one JSON object. It also knows whether
anything is out yet, and so whether a failure can still be an HTTP status or must become the stream's last event.

What goes out while an answer streams is written straight to the client's transport, without an await: it is called
from where the engine's bytes arrive, so that no task is woken for an event.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache

from aiohttp import hdrs, web
from multidict import istr

from vllmd import sse
from vllmd.errors import EngineSaid, VllmdError
from vllmd.routes import CONTINUED_HEADER, REPLAYED_HEADER
from vllmd.server import endings
from vllmd.server.endings import Fault
from vllmd.server.middleware import SHIELD
from vllmd.server.reply import Answer, Reply

EVENT_STREAM = "text/event-stream"
STREAM_HEADERS: Mapping[str, str] = {
    istr("content-type"): EVENT_STREAM,
    istr("cache-control"): "no-cache",
    istr("x-accel-buffering"): "no",
}
"""In lower case as the engine's own, which go before them. They stand alone in answers that begin with vllmd's own
status comments, and so before there is an engine's head to pass on."""

SEND_BUFFER_BYTES = 64 * 1024
"""The kernel's share of what is on its way to a client; by itself it grows to megabytes for one that stops reading."""

CLOGGED_BYTES = 16 * 1024
"""Of an answer that waits for its client here: with more, the engine is not read from. It is little, as uvloop keeps
each piece of text with ten times its size around it."""

CLOSE_S = 10.0
"""Seconds that a client gets to take the last of a stream that has failed."""

_NOT_PASSED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
    | {"server", "date", "content-length", "x-request-id", "set-cookie", "www-authenticate"}
    | {name.lower() for name in SHIELD if name != "Cache-Control"}
)
"""Hop-by-hop headers (RFC 9110, 7.6.1), those that vllmd writes itself, and what only the service itself may set."""

_OF_BROWSERS = "access-control-"
"""Which pages may read an answer is vllmd's to say, not the engine's."""


def require_client(request: web.BaseRequest) -> asyncio.Transport:
    """The client's transport. Raises ConnectionResetError if the client has left: nothing can be begun for nobody."""
    if request.transport is None:
        raise ConnectionResetError("the client has left")
    return request.transport


class Door(ABC):
    """The way of one answer to one client.

    Args:
        request: the client's.
    """

    __slots__ = (
        "_is_chunked",
        "_transport",
        "continuations",
        "has_answer",
        "is_ended",
        "is_whole",
        "replays",
        "request",
        "response",
        "writes",
    )

    ends_as_the_engine = True
    """Whether the engine's last event is the client's."""

    shows_thoughts = True
    """Whether the client gets to see what the model thinks."""

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        self.response: Answer | None = None
        self.is_whole = False
        """Whether the answer is in one piece."""
        self.writes = 0
        """How often the client was told something, ordinary events left out."""
        self.has_answer = False
        """Whether part of the engine's answer is out, so that the request cannot simply be sent again."""
        self.is_ended = False
        """Whether the normal end of a stream is out."""
        self.replays = 0
        """How often the request was sent again because its engine died."""
        self.continuations = 0
        """How often another engine went on with the answer."""
        self._transport: asyncio.Transport | None = None
        self._is_chunked = False

    # ── what the relay asks for ──

    @abstractmethod
    async def begin(self, headers: Mapping[str, str]) -> None:
        """Opens the stream, unless a comment has; `headers` are the engine's."""

    @abstractmethod
    def opens_with(self, block: bytes) -> bool:
        """Whether whole events hold something that the client shall see, so that the stream must begin."""

    @abstractmethod
    def send(self, block: bytes) -> None:
        """Whole events of the engine's stream, once it has begun."""

    @property
    def write_chunk(self) -> Callable[[bytes], object] | None:
        """Takes an ordinary event in HTTP's chunked coding, as it came from the engine; None where only its text is
        wanted, by `ordinary`."""
        return None

    @abstractmethod
    def ordinary(self, text: bytes) -> None:
        """One event that says a piece of text, as JSON escapes it, and nothing else."""

    @abstractmethod
    async def comment(self, text: str) -> None:
        """Keeps the client awake; begins the stream if nothing has."""

    @abstractmethod
    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """The engine's answer in one piece."""

    @abstractmethod
    async def end(self) -> None:
        """The stream has come to its normal end."""

    @abstractmethod
    async def end_with(self, error: VllmdError) -> None:
        """An error as the last event of a stream that has begun."""

    async def refuse(self, fault: Fault) -> None:
        """The engine's first event was an error: the HTTP status is still free to say so, unless comments are out."""
        if self.response is None:
            await self.whole(fault.status, {"Content-Type": "application/json"}, fault.body)
        else:
            await self.fail(EngineSaid(fault.message, body=fault.table))

    async def fail(self, error: VllmdError) -> None:
        """Ends a stream that has begun with an error event, and the connection without its last chunk.

        The missing chunk makes tools that do not read events, such as curl, fail as well; pages are spared.

        Raises:
            VllmdError: `error` itself, where nothing is out yet: then it becomes an HTTP status.
        """
        if self.response is None:
            raise error
        if not self.is_whole:  # which has no room for it
            await self.end_with(error)
            self._spare_pages()
        self.close()

    def _spare_pages(self) -> None:
        """Writes the last chunk for a page's script: its fetch throws away, with a connection that breaks off, what it
        has not read yet, and the error is the last of it. A page says in `Origin` who it is."""
        if self._is_chunked and self._transport is not None and hdrs.ORIGIN in self.request.headers:
            self._transport.write(b"0\r\n\r\n")

    def close(self) -> None:
        """Closes the connection once the client has taken what waits for it; if it does not, after a while."""
        if self.response is not None:
            self.response.force_close()
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)

    @property
    def is_open(self) -> bool:
        """Whether a stream has begun."""
        return self._transport is not None and not self.is_whole

    def remark(self, text: str) -> None:
        """A comment in a stream that has begun."""
        self._write(sse.comment(text))

    # ── the client's pace ──

    @property
    def is_clogged(self) -> bool:
        """Whether the client reads more slowly than the engine writes, and enough waits for it already."""
        return self.request.protocol.writing_paused

    @property
    def waiting_bytes(self) -> Callable[[], int]:
        """Counts what waits for the client; more than `CLOGGED_BYTES` clog the door."""
        assert self._transport is not None, "the stream has begun"
        return self._transport.get_write_buffer_size

    async def drain(self) -> None:
        """Waits until the client has taken most of what waits for it. Raises ConnectionError if it left instead."""
        await self.request.writer.drain()

    async def drain_whole(self) -> None:
        """Waits until the client, or the kernel for it, has taken everything; writes a long whole answer first."""
        if isinstance(self.response, Reply) and len(self.response.body) > CLOGGED_BYTES:
            response = self.response.response()
            await self._open(response)
            await response.write_eof()
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=0)
            await self.drain()
            transport.set_write_buffer_limits()

    def backlog_bytes(self) -> tuple[int, int]:
        """What waits for the client here, and in the kernel (tty_ioctl(4), TIOCOUTQ): changes while it reads."""
        opened = self._transport.get_extra_info("socket") if self._transport else None
        if self._transport is None or opened is None or opened.fileno() < 0:
            return 0, 0
        try:
            (queued,) = struct.unpack("i", fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        except OSError:  # closed meanwhile
            return 0, 0
        return self._transport.get_write_buffer_size(), queued

    def cut(self) -> None:
        """Closes the client's connection at once, whatever waits for it."""
        if self._transport is not None:
            self._transport.abort()

    # ── for the doors themselves ──

    def _reply(self, reply: Reply) -> None:
        """The answer is in one piece: it is written when the call is over, or, if it is long, by `drain_whole`."""
        self.response, self.is_whole = reply, True

    async def _open(self, response: web.StreamResponse) -> None:
        """Sends the head of a stream. aiohttp chunks what follows, unless the client speaks HTTP/1.0."""
        transport = require_client(self.request)
        limit_send_buffer(transport)
        if self.request.version < (1, 1) and not self.is_whole:
            response.force_close()  # nothing else shows where it ends
        await response.prepare(self.request)
        self._is_chunked = self.request.version >= (1, 1)
        self._transport = transport
        self.response = response

    def _write(self, data: bytes) -> None:
        """Writes whole events."""
        assert self._transport is not None, "the stream has begun"
        self.writes += 1
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked and data else data)


def limit_send_buffer(transport: asyncio.Transport) -> None:
    """Bounds what is kept for a client that does not read, in the kernel (socket(7), SO_SNDBUF) and here."""
    if (opened := transport.get_extra_info("socket")) is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES // 2)  # the kernel doubles it
    transport.set_write_buffer_limits(high=CLOGGED_BYTES)


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of the engine's headers that go to the client."""
    return {passed: value for name, value in headers.items() if (passed := _passed(name))}


@lru_cache(maxsize=256)
def _passed(name: str) -> istr | None:
    """The name of an engine's header, as aiohttp has it with the least to do; None if it does not go to the client."""
    lower = name.lower()
    return None if lower in _NOT_PASSED or lower.startswith(_OF_BROWSERS) else istr(name)


class PlainDoor(Door):
    """`/v1`: what the engine sends, byte for byte."""

    __slots__ = ()

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Sends the engine's headers."""
        await self._prepare({**passed_on(headers), **self._replayed()})

    def opens_with(self, block: bytes) -> bool:
        """Whatever the engine says is passed on."""
        return bool(block)

    def send(self, block: bytes) -> None:
        """Passes events on."""
        self.has_answer = True
        self._write(block)

    @property
    def write_chunk(self) -> Callable[[bytes], object] | None:
        """The client gets it as it is, unless it speaks HTTP/1.0."""
        assert self._transport is not None, "the stream has begun"
        write = self._transport.write
        return write if self._is_chunked else lambda chunk: write(chunk[chunk.index(b"\n") + 1 : -2])

    def ordinary(self, text: bytes) -> None:
        """Never: events are wanted whole."""
        raise NotImplementedError

    async def comment(self, text: str) -> None:
        """Writes a comment between two events."""
        if self.response is None:
            await self._prepare({})
        self._write(sse.comment(text))

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Passes an answer on as it is."""
        self.has_answer = True
        self._reply(Reply(status, {**passed_on(headers), **self._replayed()}, body))

    async def end(self) -> None:
        """The engine's own last event is out; a trailer tells of continuations (RFC 9112, 7.1.2)."""
        self.is_ended = True
        if self.continuations and self._is_chunked and self._transport is not None:
            self._transport.write(b"0\r\n%b: %d\r\n\r\n" % (CONTINUED_HEADER.encode(), self.continuations))
            self.request.writer.chunked = False  # type: ignore[attr-defined] # so that aiohttp ends it no second time

    async def end_with(self, error: VllmdError) -> None:
        """Writes the error in the dialect of the route."""
        self._write(endings.error_event(self.request.path, error))

    async def _prepare(self, headers: Mapping[str, str]) -> None:
        trailer: dict[str, str] = {hdrs.TRAILER: CONTINUED_HEADER} if self.request.version >= (1, 1) else {}
        await self._open(web.StreamResponse(headers={**STREAM_HEADERS, **headers, **trailer}))

    def _replayed(self) -> dict[str, str]:
        return {REPLAYED_HEADER: str(self.replays)} if self.replays else {}
