"""What browsers may do. A page from anywhere can send requests to 127.0.0.1; these checks keep it out.

A page cannot choose the `Host` that its browser sends: one that has rebound its own name to 127.0.0.1 still sends that
name. A browser says in `Origin` which page asks, and where it leaves that out, in `Sec-Fetch-Site` that it is that of
another site: only pages that came through the same door may ask, and those of the origins that the configuration names.
"""

from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from vllmd.errors import Denied
from vllmd.sections import Current, Listen
from vllmd.server.access import identify
from vllmd.server.middleware import SHIELD, Check

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

ALLOWED_ORIGIN = web.RequestKey("allowed_origin", str)

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id, traceparent, tracestate, x-api-key,"
    " x-request-id, x-vllmd-wait",
    "Access-Control-Max-Age": "600",
}


def only_known_hosts(current: Current) -> Check:
    """Makes the checks on TCP; a Unix socket is out of a browser's reach.

    Args:
        current: has the names beside those of this machine, and the origins of other pages that may ask.
    """

    def check(request: web.BaseRequest) -> web.Response | None:
        if identify(request).uid is not None:
            return None
        listen, origin = current.config.listen, request.headers.get(hdrs.ORIGIN)
        _check(request.headers.get(hdrs.HOST), origin, listen)
        if origin is None:
            _check_site(request)
        elif origin in listen.origins:
            request[ALLOWED_ORIGIN] = origin
            if request.method == hdrs.METH_OPTIONS:
                return web.Response(status=204, headers=_PREFLIGHT)
        return None

    return check


def _check(host: str | None, origin: str | None, listen: Listen) -> None:
    """Raises Denied for a foreign Host, and for a page of another origin. What sends no Host is no browser."""
    if host is not None and not _is_known(host, listen.names):
        raise Denied(f"the Host {host!r} is not one of this service's", "use localhost, or add it to listen.hosts")
    if origin is not None and origin not in listen.origins and _authority(origin) != (host or "").lower():
        hint = "open the page from this service itself, or add its origin to listen.origins"
        raise Denied(f"a page of {origin!r} may not use this service", hint)


def _check_site(request: web.BaseRequest) -> None:
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
def _is_known(host: str, names: tuple[str, ...]) -> bool:
    """Whether clients may come in under this name: one of this machine's, or of `names`."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in LOCAL or name in [each.lower() for each in names]


def shield(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Tells browsers what they may do with an answer."""
    headers = response.headers
    headers.merge(SHIELD)
    if hdrs.ORIGIN in request.headers and (origin := request.get(ALLOWED_ORIGIN)):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id, X-Vllmd-Replayed"
        headers["Vary"] = "Origin"
