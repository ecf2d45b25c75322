"""An answer in one piece, as a door has it: still to be written, by whoever serves the request.

aiohttp writes it as a response of its own. An ordinary one is written at once where the request took the shortcut.
"""

from collections.abc import Mapping

from aiohttp import web


class Reply:
    """One.

    Args:
        status: of HTTP.
        headers: those that belong to the body, their names in lower case.
        body: all of it.

    Attributes:
        is_last: the connection ends with it.
    """

    __slots__ = ("body", "headers", "is_last", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.is_last = False

    def force_close(self) -> None:
        """Ends the connection with it."""
        self.is_last = True

    def response(self) -> web.Response:
        """It as aiohttp's."""
        response = web.Response(status=self.status, headers=self.headers, body=self.body)
        if self.is_last:
            response.force_close()
        return response


Answer = web.StreamResponse | Reply
"""What a handler returns."""
