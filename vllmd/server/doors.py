"""How an answer reaches one client: the interface that the relay writes to, and the one for `/v1`.

A door decides what the client sees: bytes as the engine sent them, or text, or one JSON object. It also knows whether
anything is out yet, and so whether a failure can still be an HTTP status or must become the stream's last event.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from aiohttp import web

from vllmd import sse
from vllmd.errors import EngineSaid, VllmdError
from vllmd.server import endings
from vllmd.server.endings import Fault

EVENT_STREAM = "text/event-stream"
STREAM_HEADERS = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""For answers that begin with vllmd's own status comments, and so before there is an engine's head to pass on."""

_NOT_PASSED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
    | {"server", "date", "content-length", "x-request-id"}
)
"""Hop-by-hop headers (RFC 9110, 7.6.1), and those that vllmd writes itself."""


def require_client(request: web.Request) -> None:
    """Raises ConnectionResetError if the client has left: aiohttp-sse cannot begin a stream to nobody."""
    if request.transport is None:
        raise ConnectionResetError("the client has left")


class Door(ABC):
    """The way of one answer to one client.

    Args:
        request: the client's.
    """

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.response: web.StreamResponse | None = None
        self.has_answer = False
        """Whether part of the engine's answer is out, so that the request cannot be sent again."""

    @abstractmethod
    async def begin(self, headers: Mapping[str, str]) -> None:
        """The engine has begun a stream; called once, unless `comment` came first."""

    @abstractmethod
    async def comment(self, text: str) -> None:
        """Keeps the client awake; begins the stream if nothing has."""

    @abstractmethod
    async def send(self, block: bytes) -> None:
        """Whole events of the engine's stream."""

    @abstractmethod
    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """The engine's answer in one piece."""

    @abstractmethod
    async def end_with(self, error: VllmdError) -> None:
        """An error as the last event of a stream that has begun."""

    @abstractmethod
    async def end(self) -> None:
        """The stream has come to its normal end."""

    async def refuse(self, fault: Fault) -> None:
        """The engine's first event was an error: the HTTP status is still free to say so, unless comments are out."""
        if self.response is None:
            await self.whole(fault.status, {"Content-Type": "application/json"}, fault.body)
        else:
            await self.fail(EngineSaid(fault.message, body=fault.table))

    async def fail(self, error: VllmdError) -> None:
        """Ends a stream that has begun with an error event, and the connection without its last chunk.

        The missing chunk makes tools that do not read events, such as curl, fail as well.

        Raises:
            VllmdError: `error` itself, where nothing is out yet: then it becomes an HTTP status.
        """
        if self.response is None:
            raise error
        await self.end_with(error)
        self.response.force_close()
        if self.request.transport is not None:
            self.request.transport.close()


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of the engine's headers that go to the client."""
    return {key: value for key, value in headers.items() if key.lower() not in _NOT_PASSED}


class PlainDoor(Door):
    """`/v1`: what the engine sends, byte for byte."""

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Sends the engine's headers."""
        await self._prepare({**STREAM_HEADERS, **passed_on(headers)})

    async def comment(self, text: str) -> None:
        """Writes a comment between two events."""
        if self.response is None:
            await self._prepare(STREAM_HEADERS)
        await self._write(sse.comment(text))

    async def send(self, block: bytes) -> None:
        """Passes events on."""
        self.has_answer = True
        await self._write(block)

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Passes an answer on as it is."""
        self.has_answer = True
        self.response = web.Response(status=status, headers=passed_on(headers), body=body)

    async def end_with(self, error: VllmdError) -> None:
        """Writes the error in the dialect of the route."""
        await self._write(endings.error_event(self.request.path, error))

    async def end(self) -> None:
        """Nothing is left to say: the engine's own last event is out."""

    async def _prepare(self, headers: Mapping[str, str]) -> None:
        # aiohttp chunks it by itself, unless the client speaks HTTP/1.0, as nginx does.
        self.response = web.StreamResponse(headers=headers)
        await self.response.prepare(self.request)

    async def _write(self, data: bytes) -> None:
        assert self.response is not None
        await self.response.write(data)
