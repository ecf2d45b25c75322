"""What browsers may do. A page from anywhere can send requests to 127.0.0.1; these checks keep it out.

A page cannot choose the `Host` that its browser sends: one that has rebound its own name to 127.0.0.1 still sends that
name. A browser says in `Origin` which page asks, and where it leaves that out, in `Sec-Fetch-Site` that it is that of
another site: only pages that came through the same door may ask, and those of the origins that the configuration names.
"""

from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from vllmd.errors import Denied
from vllmd.sections import Current, Listen
from vllmd.server.access import peer_of
from vllmd.server.middleware import SHIELD

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

ALLOWED_ORIGIN = web.RequestKey("allowed_origin", str)

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id, traceparent, tracestate, x-api-key,"
    " x-request-id, x-vllmd-wait",
    "Access-Control-Max-Age": "600",
}


def only_known_hosts(current: Current) -> Middleware:
    """The middleware that makes the checks on TCP; a Unix socket is out of a browser's reach.

    Args:
        current: has the names beside those of this machine, and the origins of other pages that may ask.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if peer_of(request).uid is None:
            known, others = _admitted(current.config.listen)
            origin = request.headers.get(hdrs.ORIGIN)
            _check(request.headers.get(hdrs.HOST), origin, known, others)
            if origin in others:
                request[ALLOWED_ORIGIN] = origin
                if request.method == hdrs.METH_OPTIONS:
                    return web.Response(status=204, headers=_PREFLIGHT)
            elif origin is None:
                _check_site(request)
        return await handler(request)

    return check


@lru_cache(maxsize=1)
def _admitted(listen: Listen) -> tuple[frozenset[str], frozenset[str]]:
    """The names under which clients may come in, and the origins of pages that may ask."""
    return LOCAL.union(map(str.lower, listen.names)), frozenset(listen.origins)


def _check(host: str | None, origin: str | None, known: frozenset[str], others: frozenset[str]) -> None:
    """Raises Denied for a foreign Host, and for a page of another origin. What sends no Host is no browser."""
    if host is not None and _name(host) not in known:
        raise Denied(f"the Host {host!r} is not one of this service's", "use localhost, or add it to listen.hosts")
    if origin is not None and origin not in others and _authority(origin) != (host or "").lower():
        hint = "open the page from this service itself, or add its origin to listen.origins"
        raise Denied(f"a page of {origin!r} may not use this service", hint)


def _check_site(request: web.Request) -> None:
    """Raises Denied for what a page of another site embeds: an image, a script, a frame. A link may lead here."""
    headers = request.headers
    if headers.get("Sec-Fetch-Site") not in ("cross-site", "same-site"):
        return
    is_followed = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    if not is_followed:
        raise Denied("a page of another site may not use this service", "open the page from this service itself")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def shield(request: web.Request, response: web.StreamResponse) -> None:
    """Tells browsers what they may do with an answer (a signal of aiohttp's, so streams too)."""
    headers = response.headers
    for name, value in SHIELD.items():
        headers.setdefault(name, value)
    if hdrs.ORIGIN in request.headers and (origin := request.get(ALLOWED_ORIGIN)):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id, X-Vllmd-Replayed"
        headers["Vary"] = "Origin"
