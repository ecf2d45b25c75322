"""What two readers of HTTP could read differently is refused, so that nobody in front of vllmd and vllmd itself ever
disagree about where a request ends or whom it is for (RFC 9112, sections 3.2, 6.1 and 11.2).

aiohttp's parser refuses the most of it: two lengths, a length beside chunks, lines without CR, spaces before colons.
"""

from urllib.parse import urlsplit

from aiohttp import hdrs, web

from vllmd.errors import MethodNotAllowed, RequestError
from vllmd.server.middleware import error_response


def unambiguous(request: web.BaseRequest) -> web.Response | None:
    """Refuses such a request and closes the connection: what follows on it means nothing."""
    if (error := _complaint(request)) is None:
        return None
    response = error_response(error)
    response.force_close()
    return response


def _complaint(request: web.BaseRequest) -> RequestError | None:
    if request.method in (hdrs.METH_CONNECT, hdrs.METH_TRACE):
        return MethodNotAllowed(f"{request.method} is not done here", "use GET, POST or DELETE")
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (coding.lower() != "chunked" or request.version < (1, 1)):
        return RequestError("no other transfer coding is known than chunked, in HTTP/1.1")
    if "#" in request.raw_path:
        return RequestError("a request's target has no fragment")
    if not request.raw_path.startswith("/") and not _names_its_host(request):
        return RequestError("the request names two hosts, or none")
    return None


def _names_its_host(request: web.BaseRequest) -> bool:
    """Whether a request in absolute form (`GET http://host/path`) names the host that it is sent to."""
    try:
        return urlsplit(request.raw_path).netloc.lower() == request.headers.get(hdrs.HOST, "").lower() != ""
    except ValueError:
        return False
