"""One request and its response over a connection of its own: HTTP/1.1, by hand.

http.client would do as well, but its import (email, ssl) takes as long as all else that vllmctl does before it sends.
What is needed here is little: one request, with its length, that asks for the connection to be closed behind the
response, and a response whose body is chunked, has a length, or ends with the connection (RFC 9112, section 6).
"""

import io
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vllmd.address import Address, UnixAddress

CONNECT_TIMEOUT_S = 10.0
_LINE_MAX_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024


class Head(NamedTuple):
    """The beginning of a response; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]


class NotHttp(Exception):
    """What came back is no HTTP response."""


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
        self._file = io.BufferedReader(_Reader(self._socket, deadline), _PIECE_BYTES)
        self._address = address
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
        lines = []
        while line := self._line().rstrip(b"\r\n").decode("latin-1"):
            lines.append(line)
        if not lines:
            raise ConnectionAbortedError("closed the connection without an answer")
        parts = [line.partition(":") for line in lines[1:]]
        self._headers = {name.strip().lower(): value.strip() for name, _, value in parts}
        return Head(_status(lines[0]), self._headers)

    def body(self) -> Iterator[bytes]:
        """The body as it comes. It ends where the response ends, and just so where the connection breaks."""
        try:
            yield from self._pieces()
        except OSError:
            return

    def _pieces(self) -> Iterator[bytes]:
        length = self._headers.get("content-length", "")
        if "chunked" in self._headers.get("transfer-encoding", "").lower():
            yield from self._chunks()
        elif length.isdecimal():
            yield from self._exactly(int(length))
        else:
            while piece := self._file.read1(_PIECE_BYTES):
                yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := _chunk_size(self._line()):
            yield from self._exactly(size)
            self._line()

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size and (piece := self._file.read1(min(size, _PIECE_BYTES))):
            size -= len(piece)
            yield piece

    def _line(self) -> bytes:
        line = self._file.readline(_LINE_MAX_BYTES)
        if len(line) == _LINE_MAX_BYTES:
            raise NotHttp
        return line


class _Reader(io.RawIOBase):
    """What a socket receives, until the deadline."""

    def __init__(self, source: socket.socket, deadline: float | None) -> None:
        self._source = source
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        self._source.settimeout(_left_s(self._deadline))
        return self._source.recv_into(buffer)


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


def _chunk_size(line: bytes) -> int:
    """The size that a chunk's first line gives; 0, which is the end, where it gives none."""
    try:
        return max(0, int(line.partition(b";")[0], 16))
    except ValueError:
        return 0
