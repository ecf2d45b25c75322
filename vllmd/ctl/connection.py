"""One request and its response over a connection of its own: HTTP/1.1, by hand.

http.client would do as well, but its import (email, ssl) takes as long as all else that vllmctl does before it sends.
What is needed here is little: one request, with its length, that asks for the connection to be closed behind the
response, and a response whose body is chunked, has a length, or ends with the connection (RFC 9112, section 6).
"""

import re
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vllmd.address import Address, UnixAddress
from vllmd.ctl.framing import NotHttp, framing_of

CONNECT_TIMEOUT_S = 10.0
_HTTP = b"HTTP/1."
_END_OF_HEAD = rb"\r?\n\r?\n"
_HEAD_MAX_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024


class Head(NamedTuple):
    """The beginning of a response; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]


class Connection:
    """A connection for one request; a context manager, since an abandoned request must not go on.

    Args:
        address: where to.
        deadline: when to give up, in seconds of `time.monotonic`; None for never.

    Raises:
        OSError: from here and from `send` and `head`: nothing can be reached, or it left. TimeoutError: too late.
    """

    def __init__(self, address: Address, deadline: float | None = None) -> None:
        self._socket = _connect(address, _left_s(deadline))
        self._deadline = deadline
        self._address = address
        self._rest = b""
        self._headers: Mapping[str, str] = {}

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Sends the request; one that is refused before all of it is read still gets its answer read."""
        host = "localhost" if isinstance(self._address, UnixAddress) else self._address.authority
        fields = {"Host": host, "Connection": "close", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        try:
            self._socket.sendall("\r\n".join(lines).encode("latin-1") + body)
        except (BrokenPipeError, ConnectionResetError):
            return

    def head(self) -> Head:
        """Waits for the response to begin.

        Raises:
            ConnectionError: the other side left without an answer.
            NotHttp: it answered something else.
        """
        data = b""
        while not (end := re.search(_END_OF_HEAD, data)):
            if data[: len(_HTTP)] != _HTTP[: len(data)] or len(data) > _HEAD_MAX_BYTES:
                raise NotHttp
            piece = self._receive()
            if not piece:
                raise ConnectionAbortedError("closed the connection without an answer")
            data += piece
        self._rest = data[end.end() :]
        first, *lines = data[: end.start()].decode("latin-1").split("\n")
        parts = [line.partition(":") for line in lines]
        self._headers = {name.strip().lower(): value.strip() for name, _, value in parts}
        return Head(_status(first), self._headers)

    def body(self, until: "Connection | None" = None, tick_s: float | None = None) -> Iterator[bytes]:
        """The body as it comes. It ends where the response ends, and just so where the connection breaks.

        Args:
            until: ends it, too, as soon as this one is answered.
            tick_s: after so many seconds of silence an empty piece comes, again and again; None for never.
        """
        framing = framing_of(self._headers)
        try:
            while not framing.ended:
                if self._is_silent(until, tick_s):
                    yield b""
                elif (until and until._is_answered()) or not (data := self._receive()):
                    return
                else:
                    yield framing.feed(data)
        except OSError:
            return

    def _receive(self) -> bytes:
        """The next bytes; none once the other side has closed the connection."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        if self._deadline is not None:
            self._socket.settimeout(_left_s(self._deadline))
        return self._socket.recv(_PIECE_BYTES)

    def _is_silent(self, until: "Connection | None", tick_s: float | None) -> bool:
        """Waits until something came from here or from `until`; True if `tick_s` passed before."""
        if self._has_more() or (until is None and tick_s is None):
            return False
        limits = [each for each in (tick_s, _left_s(self._deadline)) if each is not None]
        sockets = [each._socket for each in (self, until) if each]
        return not select.select(sockets, [], [], min(limits, default=None))[0]

    def _is_answered(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def _has_more(self) -> bool:
        """Whether there are bytes that select cannot see: taken off the socket, or decrypted, already."""
        pending = getattr(self._socket, "pending", None)
        return bool(self._rest or (pending and pending()))


def _left_s(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _connect(address: Address, limit_s: float | None) -> socket.socket:
    limit_s = CONNECT_TIMEOUT_S if limit_s is None else min(limit_s, CONNECT_TIMEOUT_S)
    if isinstance(address, UnixAddress):
        return _connect_unix(address.path, limit_s)
    plain = socket.create_connection((address.host, address.port), limit_s)
    connected = _secure(plain, address.host) if address.tls else plain
    connected.settimeout(None)
    return connected


def _connect_unix(path: str, limit_s: float) -> socket.socket:
    """A non-blocking connect would fail at once where the daemon is merely busy; the send timeout bounds a blocking one
    (unix(7), socket(7))."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(limit_s))
        plain.connect(path)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
    except BaseException as error:
        plain.close()
        if isinstance(error, BlockingIOError):
            raise TimeoutError from error
        raise
    return plain


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def _secure(plain: socket.socket, host: str) -> socket.socket:
    import ssl

    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise NotHttp
    return int(rest[:3])
