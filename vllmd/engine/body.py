"""Bodies of HTTP/1.1 responses (RFC 9112, sections 6 and 7): where each one ends, and what in it is content.

No I/O: bytes go in as they come, cut anywhere. What is read here is strict, because the frames of a chunked body go on
to clients as they are: a size that two readers read differently would let one answer run into the next.
"""

import re
from enum import Enum

EXTRA_BYTES = 16 * 1024
"""How long the line above a chunk may be, with its extensions, and how long all trailers together."""

FRAMES = 4096
"""Reads of fewer bytes than this are recognised as one chunk by a look at `HEADS`."""

TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD = re.compile(rb"(" + TOKEN + rb"):(" + TEXT + rb")")
"""A line of a head, or a trailer: a name and a value."""

CRLF = b"\r\n"
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:;" + TEXT + rb")?")
_PLAIN_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")


class NotHttp(Exception):
    """What came is no HTTP; the text says why."""


def _head(length: int) -> bytes:
    """The size line of the chunk that has `length` bytes with it; where there is no such chunk, what begins none."""
    for digits in range(1, 5):
        size = length - digits - 2 * len(CRLF)
        if size > 0 and len(line := b"%x\r\n" % size) == digits + len(CRLF):
            return line
    return bytes(length + 1)


HEADS = tuple(map(_head, range(FRAMES)))
"""`HEADS[n]` begins a read of n bytes that is one whole chunk, its size written as engines write it: without zeros in
front, in lower case. The last chunk, whose size is zero, is not among them."""


class Lines:
    """Takes lines that end in CRLF.

    Args:
        limit: how many bytes all of them may have.
    """

    __slots__ = ("_held", "_left")

    def __init__(self, limit: int) -> None:
        self._held = b""
        self._left = limit

    @property
    def is_inside(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._held)

    def take(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The line that `data` completes, if it does, looked for from `at` on; and where the rest of `data` begins.

        Raises:
            NotHttp: the line is too long, or LF alone ends it.
        """
        end = data.find(b"\n", at) + 1 or len(data)
        self._left -= end - at
        if self._left < 0:
            raise NotHttp("it has a line without end")
        line = self._held + data[at:end]
        whole = line.endswith(b"\n")
        if whole and not line.endswith(CRLF):
            raise NotHttp("it has a line that ends without CR")
        self._held = b"" if whole else line
        return (line[:-2] if whole else None), end


class Body:
    """Follows a body to its end; this one ends with the connection.

    `is_over`: it has ended. `rest`: what came behind the end. `fault`: why it is no body, empty while it is one.
    """

    __slots__ = ("fault", "is_over", "rest")
    ends_with_connection = True

    def __init__(self) -> None:
        self.is_over = False
        self.rest = b""
        self.fault = ""

    @property
    def takes_chunks(self) -> bool:
        """Whether the next byte is the first of a chunk."""
        return False

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns those that are content. Never raises: content before a fault is content."""
        return data


class Sized(Body):
    """A body of known length.

    Args:
        size: bytes.
    """

    __slots__ = ("_left",)
    ends_with_connection = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size
        self.is_over = not size

    def feed(self, data: bytes) -> bytes:
        """Takes no more than is left."""
        content, self.rest = data[: self._left], data[self._left :]
        self._left -= len(content)
        self.is_over = not self._left
        return content


class _At(Enum):
    """What a chunked body goes on with."""

    SIZE, CONTENT, END_OF_CHUNK, TRAILERS, END = range(5)


class Chunks(Body):
    """A body in chunks (RFC 9112, 7.1). Extensions and trailers are read over."""

    __slots__ = ("_at", "_left", "_lines")
    ends_with_connection = False

    def __init__(self) -> None:
        super().__init__()
        self._at = _At.SIZE
        self._lines = Lines(EXTRA_BYTES)
        self._left = 0

    @property
    def takes_chunks(self) -> bool:
        """A whole chunk may come, and need not be fed."""
        return self._at is _At.SIZE and not self._lines.is_inside and not self.fault

    def feed(self, data: bytes) -> bytes:
        """Takes bytes cut anywhere; returns the content of their chunks, joined."""
        pieces: list[bytes] = []
        at = 0
        try:
            while at < len(data) and not self.is_over:
                at = self._whole(data, at, pieces) if self.takes_chunks else at
                at = self._step(data, at, pieces)
        except NotHttp as error:
            self.fault = str(error)
        self.rest = data[at:]
        return b"".join(pieces)

    def _whole(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Takes the chunks that are whole and plain, as most of those are that come together in one read."""
        while line := _PLAIN_CHUNK.match(data, at):
            start = line.end()
            end = start + int(line[1], 16)
            if end == start or not data.startswith(CRLF, end):
                break
            pieces.append(data[start:end])
            at = end + len(CRLF)
        return at

    def _step(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        if self._at is _At.CONTENT:
            return self._content(data, at, pieces)
        line, at = self._lines.take(data, at)
        if line is not None:
            self._line(line)
        return at

    def _content(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        end = min(len(data), at + self._left)
        pieces.append(data[at:end])
        self._left -= end - at
        if not self._left:
            self._expect(_At.END_OF_CHUNK, 2)
        return end

    def _line(self, line: bytes) -> None:
        if self._at is _At.SIZE:
            self._size(line)
        elif self._at is _At.END_OF_CHUNK:
            self._expect(_At.SIZE, EXTRA_BYTES)
        elif not line:
            self._at, self.is_over = _At.END, True
        elif not FIELD.fullmatch(line):
            raise NotHttp("a trailer is none")

    def _size(self, line: bytes) -> None:
        found = _CHUNK.fullmatch(line)
        if not found:
            raise NotHttp("a chunk has no size")
        self._left = int(found[1], 16)
        self._expect(_At.CONTENT if self._left else _At.TRAILERS, EXTRA_BYTES)

    def _expect(self, what: _At, line_bytes: int) -> None:
        self._at, self._lines = what, Lines(line_bytes)
