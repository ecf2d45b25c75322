"""A connection on which something has come that is not ordinary: aiohttp's protocol, with this service's manners."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vllmd.errors import RequestError
from vllmd.server.access import Identity
from vllmd.server.middleware import SERVER, SHIELD, error_response


class Client(web.RequestHandler):
    """One connection.

    Args:
        peer: who is at the other end; of TCP, the address.
        head_by: when the head of the first request must be here, in the loop's seconds.
        on_left: called when it is over.
        server, settings: aiohttp's.
    """

    __slots__ = ("_head_by", "_is_held", "_on_left", "peer")

    def __init__(
        self, peer: Identity, head_by: float, on_left: Callable[["Client"], None], server: web.Server, **settings: Any
    ) -> None:
        super().__init__(server, **settings)
        self.peer = peer
        self._head_by = head_by
        self._on_left = on_left
        self._is_held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Goes on to wait for the first request. aiohttp would begin to; the clock that it sets looks too late."""
        super().connection_made(transport)
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = self._head_by
        self._keepalive_handle = self._loop.call_at(self._head_by, self._process_keepalive)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        self._on_left(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP. What came is not sent back: it may have gone astray on its way elsewhere."""
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        reason = (message or "").partition("\n")[0].partition(":")[0]
        response = error_response(RequestError(f"this is no HTTP that can be read: {reason}", "speak HTTP/1.1"))
        response.headers.update({"Server": SERVER, **SHIELD})
        response.force_close()
        return response

    def pause_reading(self) -> None:
        """Reads no more of a body for now."""
        self._is_held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Reads on. aiohttp calls it twice for each body, and looks for what a pause has left over, paused or not."""
        if self._is_held:
            self._is_held = False
            super().resume_reading(resume_parser)
