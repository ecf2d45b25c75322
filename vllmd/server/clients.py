"""The connections of clients: who is at the other end of each, how many there may be, and how long they may be idle.

Half of all descriptors are the clients', as each may need one more towards its engine, and half of those are the most
that one identity gets. A connection too many is answered at once with what HTTP has for it, and closed: an accept(2)
that fails would be tried again and again, and engines could be asked no more.
"""

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vllmd.errors import Overloaded, RequestError, TooMany, Unavailable, outcome_of
from vllmd.limits import Limits
from vllmd.server.access import Identity, allowance, at_the_end_of
from vllmd.server.middleware import SERVER, SHIELD, error_response
from vllmd.wire import dumps, error_body

log = logging.getLogger(__name__)

OWN_FILES = 32
"""Descriptors that vllmd itself needs: sockets that listen, pipes to engines, files."""

OWNERS = 8
"""Connections beyond the most that whoever owns the daemon may have: they must be able to see to a full house."""

RETRY_AFTER_S = 5

_ALL = ""
"""Everybody together, beside the names of identities. Those who find no room can be any number, and are not kept."""


class Client(web.RequestHandler):
    """One connection.

    Args:
        census: counts it.
        server, settings: aiohttp's.
    """

    __slots__ = ("_census", "_is_counted", "_is_held", "peer")

    peer: Identity
    """Who is at the other end; of TCP, the address."""

    def __init__(self, census: "Census", server: web.Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._census = census
        self._is_counted = False
        self._is_held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets it in, or tells it why not."""
        self.peer = at_the_end_of(transport)
        if refusal := self._census.refusal(self.peer):
            _turn_away(cast(asyncio.Transport, transport), refusal)
            return
        self._is_counted = True
        self._census.entered(self.peer)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        if self._is_counted:
            self._is_counted = False
            self._census.left(self.peer)
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

    def data_received(self, data: bytes) -> None:
        """What somebody says who was turned away is nobody's concern."""
        if self._is_counted:
            super().data_received(data)


class Census:
    """How many connections there are, and whose.

    Args:
        limits: how many one identity may have.
        most: how many there may be in all; None for half of what the process may open.
    """

    def __init__(self, limits: Limits, most: int | None = None) -> None:
        self.limits = limits
        self._most = room() if most is None else most
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()
        """Of whom the log has been told since they last had none; `_ALL` since half of the room was last free."""

    def change(self, limits: Limits) -> None:
        """Other limits hold from now on, for those who come."""
        self.limits = limits

    def entered(self, who: Identity) -> None:
        """One more."""
        self._counts[who.name] += 1

    def left(self, who: Identity) -> None:
        """One less."""
        self._counts[who.name] -= 1
        if not self._counts[who.name]:
            del self._counts[who.name]
            self._told.discard(who.name)
        if _ALL in self._told and self._counts.total() <= self._most // 2:
            self._told.discard(_ALL)

    def refusal(self, who: Identity) -> Unavailable | None:
        """Why there is no room for one more of `who`; None if there is."""
        total, mine = self._counts.total(), self._counts[who.name]
        allowed = allowance(self.limits, who).connections or self._most // 2
        if total >= self._most + (OWNERS if who.owns_the_daemon else 0):
            message = f"{total} clients are connected already"
            return self._refused(_ALL, Overloaded(message, "try again later", RETRY_AFTER_S))
        if mine >= allowed and not who.owns_the_daemon:
            message = f"{who.name} has {mine} connections, and may have no more"
            return self._refused(who.name, TooMany(message, "close some", RETRY_AFTER_S))
        return None

    def _refused(self, whom: str, error: Unavailable) -> Unavailable:
        if whom not in self._told:
            self._told.add(whom)
            log.warning("%s; more are turned away", error.message)
        return error


def room() -> int:
    """How many clients there is room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2 - OWN_FILES)


def _turn_away(transport: asyncio.Transport, refusal: Unavailable) -> None:
    body = dumps(error_body(refusal)).encode()
    head: Mapping[str, object] = {
        "Server": SERVER,
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Retry-After": refusal.retry_after_s,
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {outcome_of(refusal).status} ", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    transport.write("\r\n".join(lines).encode() + body)
    transport.close()
