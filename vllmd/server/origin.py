"""What browsers may do. A page from anywhere can send requests to 127.0.0.1; these two checks keep it out.

A page cannot choose the `Host` that its browser sends: one that has rebound its own name to 127.0.0.1 still sends that
name. And a browser says in `Origin` which page asks: only pages that came through the same door may.
"""

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vllmd.config import Current
from vllmd.errors import Denied
from vllmd.server.access import identify

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def only_known_hosts(current: Current) -> Middleware:
    """The middleware that makes both checks on TCP; a Unix socket is out of a browser's reach.

    Args:
        current: has the names beside those of this machine.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if identify(request).uid is None:
            known = LOCAL.union(map(str.lower, current.config.listen.hosts))
            _check(request.headers.get("Host"), request.headers.get("Origin"), known)
        return await handler(request)

    return check


def _check(host: str | None, origin: str | None, known: frozenset[str]) -> None:
    """Raises Denied for a foreign Host, and for a page of another origin. What sends no Host is no browser."""
    if host is not None and _name(host) not in known:
        raise Denied(f"the Host {host!r} is not one of this service's", "use localhost, or add it to listen.hosts")
    if origin is not None and _authority(origin) != (host or "").lower():
        raise Denied(f"a page of {origin!r} may not use this service", "open the page from this service itself")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
