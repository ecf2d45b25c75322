"""Where the body of an HTTP response ends: in chunks, by its length, or with the connection (RFC 9112, section 6)."""

from collections.abc import Mapping

_LINE_MAX_BYTES = 64 * 1024


class NotHttp(Exception):
    """What came back is no HTTP response."""


class Sized:
    """A body of so many bytes.

    Args:
        left: how many; infinite where only the end of the connection tells.
    """

    def __init__(self, left: float) -> None:
        self._left = left

    @property
    def ended(self) -> bool:
        """Whether all of it has come."""
        return self._left <= 0

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns those of the body."""
        body = data if len(data) <= self._left else data[: int(self._left)]
        self._left -= len(body)
        return body


class Chunked:
    """A body in chunks. Many small ones that came together are one piece: a stream has one for each token."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns those of the body.

        Raises:
            NotHttp: the line before a chunk does not end.
        """
        data, at, parts = self._rest + data, 0, list[bytes]()
        while not self.ended:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at, self._left = at + len(part), self._left - len(part)
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            # The line end behind a chunk looks like an empty line before the next one, and is skipped as such.
            if line := data[at:end]:
                self._left = chunk_size(line)
                self.ended = not self._left
            at = end + 2
        self._rest = data[at:]
        if len(self._rest) > _LINE_MAX_BYTES:
            raise NotHttp
        return b"".join(parts)


def chunk_size(line: bytes) -> int:
    """The size that a chunk's first line gives; 0, which is the end, where it gives none."""
    try:
        return max(0, int(line.partition(b";")[0], 16))
    except ValueError:
        return 0


def framing_of(headers: Mapping[str, str]) -> Sized | Chunked:
    """How a response with these headers, their names in lower case, tells its end."""
    length = headers.get("content-length", "")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Chunked()
    return Sized(int(length) if length.isdecimal() else float("inf"))
