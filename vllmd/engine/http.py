"""HTTP/1.1 as an engine speaks it (RFC 9112): a request's bytes, a response's head, and where its body ends.

No I/O: bytes go in as they come, cut anywhere.
"""

import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vllmd.engine.body import CRLF, FIELD, TEXT, Body, Chunks, Lines, NotHttp, Sized

HEAD_BYTES = 64 * 1024
"""A longer head is none."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: " + TEXT + rb")?")
_WHOLE_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([2-5]\d\d)(?: " + TEXT + rb")?\r\n((?:" + FIELD.pattern.replace(b"(", b"(?:") + rb"\r\n)*)\r\n"
)
"""A head that comes in one read and has no interim one before it, as nearly all do."""
_LENGTH = re.compile(r"[0-9]{1,18}")

_ASKED = re.compile(rb"[A-Z]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.1")
_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


# ── requests ──


@dataclass(frozen=True)
class Request:
    """A request as it is sent.

    Args:
        method: HTTP's; HEAD is answered without a body.
        head, body: the bytes, apart, so that a long body need not be copied.
    """

    method: str
    head: bytes
    body: bytes


def request(method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Request:
    """Writes a request that keeps its connection.

    Args:
        method, path: as HTTP has them, the path with its query.
        body: None for a request without one.
        headers: those beside Host and Content-Length.

    Raises:
        ValueError: a header or the path would not stay in its line, or the header is the connection's own business.
    """
    fields = [f"{name}: {value}".encode("utf-8", "surrogateescape") for name, value in headers.items()]
    first = f"{method} {path} HTTP/1.1".encode()
    wrong = [name for name in headers if name.lower() in _OWN or ":" in name]
    if wrong or not _ASKED.fullmatch(first) or not all(map(FIELD.fullmatch, fields)):
        raise ValueError(f"no request can be made of {method} {path!r} and these headers: {', '.join(headers)!r}")
    length = [] if body is None and method in ("GET", "HEAD") else [b"Content-Length: %d" % len(body or b"")]
    return Request(method, CRLF.join([first, b"Host: engine", *length, *fields, b"", b""]), body or b"")


# ── heads ──


class Headers(Mapping[str, str]):
    """A response's headers, by name in any case; all are kept, hop-by-hop ones too, and all names are in lower case.

    Args:
        fields: names and values as they came; those of the same name are joined by commas (RFC 9110, 5.3).
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields:
            lower = name.lower()
            before = self._fields.get(lower)
            self._fields[lower] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def items(self) -> ItemsView[str, str]:
        """All of them; as `Mapping` has it, at a tenth of the cost."""
        return self._fields.items()

    def said(self, name: str) -> str | None:
        """The value of a name in lower case; None if it is not there."""
        return self._fields.get(name)

    def has(self, name: str, word: str) -> bool:
        """Whether the list in that header has this word, in any case."""
        said = self._fields.get(name)
        return said is not None and word in (each.strip().lower() for each in said.split(","))


@dataclass(frozen=True)
class Head:
    """The head of an answer."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return (self.headers.said("content-type") or "").partition(";")[0].strip().lower() == "text/event-stream"


@dataclass(frozen=True)
class Answer:
    """A response whose head is read.

    Args:
        head: says what it is.
        body: follows what comes.
        keeps: whether the connection may be used again once the body is over.
        rest: bytes that came behind the head.
    """

    head: Head
    body: Body
    keeps: bool
    rest: bytes


class HeadReader:
    """Reads the head of one response; the interim ones (1xx) before it are read over.

    Args:
        method: the request's.
    """

    __slots__ = ("_fields", "_lines", "_method", "_minor", "_status")

    def __init__(self, method: str) -> None:
        self._method = method
        self._begin()

    def _begin(self) -> None:
        self._lines = Lines(HEAD_BYTES)
        self._status = self._minor = 0
        self._fields: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> Answer | None:
        """Takes bytes as they come; returns the answer once its head is whole. Raises NotHttp."""
        if not self._status and not self._lines.is_inside and (whole := _WHOLE_HEAD.match(data, 0, HEAD_BYTES)):
            return self._at_once(whole, data)
        at = 0
        while at < len(data):
            line, at = self._lines.take(data, at)
            if line:
                self._line(line)
            elif line is not None and self._is_final():
                return self._answer(data[at:])
        return None

    def _at_once(self, whole: re.Match[bytes], data: bytes) -> Answer:
        self._minor, self._status = int(whole[1]), int(whole[2])
        for line in whole[3].decode(errors="replace").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            self._fields.append((name, value.strip(" \t")))
        return self._answer(data[whole.end() :])

    def _line(self, line: bytes) -> None:
        found = (FIELD if self._status else _STATUS_LINE).fullmatch(line)
        if not found:
            raise NotHttp("its head has a line that is none")
        if self._status:
            self._fields.append((found[1].decode(), found[2].strip(b" \t").decode(errors="replace")))
        else:
            self._minor, self._status = int(found[1]), int(found[2])

    def _is_final(self) -> bool:
        """Whether the head that has ended is the answer's own. Raises NotHttp."""
        if self._status in (0, 101):
            raise NotHttp("it has no status" if not self._status else "it goes over to another protocol")
        if self._status >= 200:
            return True
        self._begin()
        return False

    def _answer(self, rest: bytes) -> Answer:
        headers = Headers(self._fields)
        body = _body(headers, self._minor)
        if self._method == "HEAD" or self._status in (204, 304):
            body = Sized(0)
        keeps = self._minor > 0 and not headers.has("connection", "close") and not body.ends_with_connection
        return Answer(Head(self._status, headers), body, keeps, rest)


def _body(headers: Headers, minor: int) -> Body:
    """What follows a head (RFC 9112, 6.3). Raises NotHttp where there would be two opinions about it."""
    coding, length = headers.said("transfer-encoding"), headers.said("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None or not minor:
            raise NotHttp("nobody can tell where its body ends")
        return Chunks()
    if length is None:
        return Body()
    if _LENGTH.fullmatch(length):
        return Sized(int(length))
    lengths = {each.strip() for each in length.split(",")}
    if len(lengths) > 1 or not _LENGTH.fullmatch(size := lengths.pop()):
        raise NotHttp("nobody can tell how long its body is")
    return Sized(int(size))
