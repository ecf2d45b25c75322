"""Requests to one engine over its private Unix socket."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from vllmd.errors import EngineRefused, EngineUnreachable, StreamBroken

KEEPALIVE_S = 3.0
"""vLLM closes idle connections after 5 s; one that is reused must not be closed under the request."""

DISCARD_S = 1.0
"""Seconds that an answer may go on after its last event, until its connection is given up."""

_LOST = (aiohttp.ClientError, ConnectionError, OSError)
_REFUSED = "the engine takes no connections"
_GONE = "the engine closed the connection before it answered"
_CUT = "the engine closed the connection in the middle of its answer"


@dataclass(frozen=True)
class Sent:
    """A request that is under way.

    Args:
        at: when it was sent, in the event loop's time.
        body_bytes: how large it is.
    """

    at: float
    body_bytes: int


class EngineClient:
    """A pool of connections to one generation of an engine. An async context manager.

    Args:
        socket: where the engine listens.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._under_way: dict[object, Sent] = {}
        self.proved_at = 0.0
        """When the engine last showed that it makes tokens, in the event loop's time."""

    async def __aenter__(self) -> "EngineClient":
        connector = aiohttp.UnixConnector(str(self._socket), limit=0, keepalive_timeout=KEEPALIVE_S)
        # No timeout of aiohttp's fits: a prefill may be silent for minutes. Who waits decides for how long.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
        self._session = aiohttp.ClientSession(
            "http://engine",
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            skip_auto_headers=["User-Agent", "Accept-Encoding"],
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._session is not None
        await self._session.close()

    @asynccontextmanager
    async def send(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator["EngineAnswer"]:
        """Sends a request; leaving the block before the answer is read to its end cancels it in the engine.

        Args:
            method, path: as HTTP has them, the path with its query.
            body: the bytes to send, unchanged.
            headers: those to send beside what the connection needs.

        Raises:
            EngineRefused: there was nobody to send it to.
            EngineUnreachable: no head of an answer came back.
        """
        if self._session is None or self._session.closed:
            raise EngineRefused(_REFUSED)
        with self._counted(body):
            try:
                response = await self._session.request(method, path, data=body, headers=headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise EngineRefused(_REFUSED) from error
            except _LOST as error:
                raise EngineUnreachable(_GONE, "it is started again; send the request again") from error
            try:
                yield EngineAnswer(response, self)
            finally:
                response.close()

    @contextmanager
    def _counted(self, body: bytes | None) -> Iterator[None]:
        """Counts a request that makes the engine work: one with a body."""
        key = object()
        if body is not None:
            self._under_way[key] = Sent(asyncio.get_running_loop().time(), len(body))
        try:
            yield
        finally:
            self._under_way.pop(key, None)

    @property
    def under_way(self) -> tuple["Sent", ...]:
        """The requests that the engine is working on, the oldest first."""
        return tuple(self._under_way.values())


class EngineAnswer:
    """What the engine answers: a head, and a body that is still on its way."""

    def __init__(self, response: aiohttp.ClientResponse, client: EngineClient) -> None:
        self._response = response
        self._client = client
        self.status = response.status
        self.headers = response.headers

    @property
    def is_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return self._response.content_type == "text/event-stream"

    async def read(self) -> bytes:
        """The whole body. Raises EngineUnreachable if it does not come whole: then nothing was passed on yet."""
        try:
            return await self._response.read()
        except _LOST as error:
            raise EngineUnreachable(_CUT) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises StreamBroken if the connection ends before the body does."""
        now = asyncio.get_running_loop().time
        try:
            async for chunk in self._response.content.iter_any():
                if not chunk.startswith(b":"):  # a comment proves that the API server lives, not the engine core
                    self._client.proved_at = now()
                yield chunk
        except _LOST as error:
            raise StreamBroken(_CUT) from error

    async def discard(self) -> None:
        """Reads what may be left, so that the connection can be used again; that it breaks makes no difference now."""
        with suppress(*_LOST, TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                await self._response.read()

    def abort(self) -> None:
        """Closes the connection; who reads gets StreamBroken."""
        self._response.close()
