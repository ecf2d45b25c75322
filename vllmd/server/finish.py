"""What every answer bears, whichever way it goes out: who answers, which request, and what a browser may do with it."""

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time

from vllmd.server.bodies import REQUEST_ID
from vllmd.server.calls import Calls
from vllmd.server.middleware import SERVER, SHIELD, sign
from vllmd.server.origin import shield
from vllmd.server.reply import Reply

_TYPE, _CACHE = "content-type", "cache-control"
_OWN = {hdrs.SERVER: SERVER, **{name: value for name, value in SHIELD.items() if name.lower() != _CACHE}}
_LINES = "".join(f"{name}: {value}\r\n" for name, value in _OWN.items())


class Finish:
    """Finishes answers.

    Args:
        calls: once no more of them are taken, each answer is the last on its connection.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def response(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Puts it on a response of aiohttp's, streams too, before its head leaves."""
        sign(request, response)
        shield(request, response)
        if self._calls.is_closed:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    async def signal(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """The same as a signal of aiohttp's."""
        self.response(request, response)

    def reply(self, request: web.BaseRequest, reply: Reply) -> bytes | None:
        """An ordinary reply to an ordinary request as it is written at once; None for any other."""
        headers, body = reply.headers, reply.body
        is_usual = reply.status == 200 and _TYPE in headers and not reply.is_last
        if not is_usual or hdrs.ORIGIN in request.headers or self._calls.is_closed:
            return None
        fields = [f"{name}: {value}" for name, value in headers.items()]
        if _CACHE not in headers:
            fields.append(f"Cache-Control: {SHIELD[hdrs.CACHE_CONTROL]}")
        fields.append(f"X-Request-Id: {request[REQUEST_ID]}")
        if not all(map(str.isprintable, fields)):
            return None
        lines = "\r\n".join(fields)
        own = f"{_LINES}Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n"
        return f"HTTP/1.1 200 OK\r\n{lines}\r\n{own}".encode() + body
