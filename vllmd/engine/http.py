"""HTTP/1.1 as an engine speaks it (RFC 9112): a request's bytes, a response's head, and where its body ends.

No I/O: bytes go in as they come, cut anywhere.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from vllmd.engine.body import FIELD, TEXT, TOKEN, Body, Chunks, Lines, NotHttp, Sized

HEAD_BYTES = 64 * 1024
"""A longer head is none."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: " + TEXT + rb")?")
_LENGTH = re.compile(r"[0-9]{1,18}")

_METHOD = re.compile(r"[A-Z]+")
_TARGET = re.compile(r"[!-~\x80-\U0010ffff]+")
_NAME = re.compile(TOKEN.decode())
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})
"""Headers that are the connection's own business."""


# ── requests ──


class Request(NamedTuple):
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
    length = [] if body is None and method in ("GET", "HEAD") else [f"Content-Length: {len(body or b'')}"]
    fields = [f"{name}: {value}" for name, value in headers.items()]
    lines = [f"{method} {path} HTTP/1.1", "Host: engine", *length, *fields]
    if not (_is_target(method, path) and all(map(_may_be_sent, headers)) and all(map(_stays_in_line, fields))):
        raise ValueError(f"no request can be made of {method} {path!r} and these headers: {', '.join(headers)!r}")
    return Request(method, ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"), body or b"")


@lru_cache(maxsize=64)
def _is_target(method: str, path: str) -> bool:
    return bool(_METHOD.fullmatch(method) and _TARGET.fullmatch(path))


@lru_cache(maxsize=256)
def _may_be_sent(name: str) -> bool:
    """Whether a header of this name can be added: it is a name, and not the connection's own business."""
    return _is_name(name) and name.lower() not in _OWN


def _stays_in_line(field: str) -> bool:
    """Nearly every header is printable, which is known faster than what else may stand in one."""
    return field.isprintable() or not _CONTROL.search(field)


# ── heads ──


class Head(NamedTuple):
    """The head of an answer.

    Args:
        headers: hop-by-hop ones too; all names are in lower case.
    """

    status: int
    headers: Mapping[str, str]

    @property
    def is_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return _means_events(self.headers.get("content-type", ""))


@lru_cache(maxsize=64)
def _means_events(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


class Answer(NamedTuple):
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

    _status: int
    _minor: int
    _fields: list[tuple[str, str]]

    def __init__(self, method: str) -> None:
        self._method = method
        self._lines: Lines | None = None

    def _begin(self) -> Lines:
        self._lines = Lines(HEAD_BYTES)
        self._status = self._minor = 0
        self._fields = []
        return self._lines

    def feed(self, data: bytes) -> Answer | None:
        """Takes bytes as they come; returns the answer once its head is whole. Raises NotHttp."""
        if self._lines is None and (whole := _whole_head(data)):
            return _answer(self._method, *whole)
        return self._by_lines(data, self._lines or self._begin())

    def _by_lines(self, data: bytes, lines: Lines) -> Answer | None:
        at = 0
        while at < len(data):
            line, at = lines.take(data, at)
            if line:
                self._line(line)
            elif line is not None and self._is_final():
                return _answer(self._method, self._minor, self._status, _joined(self._fields), data[at:])
            elif line is not None:
                lines = self._begin()
        return None

    def _line(self, line: bytes) -> None:
        found = (FIELD if self._status else _STATUS_LINE).fullmatch(line)
        if not found:
            raise NotHttp("its head has a line that is none")
        if self._status:
            self._fields.append((found[1].decode().lower(), found[2].strip(b" \t").decode(errors="replace")))
        else:
            self._minor, self._status = int(found[1]), int(found[2])

    def _is_final(self) -> bool:
        """Whether the head that has ended is the answer's own. Raises NotHttp."""
        if self._status in (0, 101):
            raise NotHttp("it has no status" if not self._status else "it goes over to another protocol")
        return self._status >= 200


def _whole_head(data: bytes) -> tuple[int, int, Mapping[str, str], bytes] | None:
    """A head that comes in one read, has no interim one before it and is printable, as nearly all do: its minor
    version, status and headers, and what came behind it. None for any other, which is read line by line."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or len(head) > HEAD_BYTES or not head.isascii():
        return None
    opening, *lines = head.decode("ascii").split("\r\n")
    if (status := _final_status(opening)) is None:
        return None
    fields = [*map(_field, lines)]
    if None in fields:
        return None
    return *status, _joined(cast("list[tuple[str, str]]", fields)), rest


@lru_cache(maxsize=64)
def _final_status(opening: str) -> tuple[int, int] | None:
    """The minor version and the status that a head's first line says, unless that is an interim one."""
    found = _STATUS_LINE.fullmatch(opening.encode("ascii"))
    return (int(found[1]), int(found[2])) if found and found[2] >= b"200" else None


@lru_cache(maxsize=256)
def _field(line: str) -> tuple[str, str] | None:
    """The name and the value of a printable header; None if it is none. An engine says the same again and again."""
    name, colon, value = line.partition(":")
    return (name.lower(), value.strip()) if colon and _is_name(name) and line.isprintable() else None


@lru_cache(maxsize=256)
def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name))


def _answer(method: str, minor: int, status: int, headers: Mapping[str, str], rest: bytes) -> Answer:
    body = _body(headers, minor)
    if method == "HEAD" or status in (204, 304):
        body = Sized(0)
    closes = "connection" in headers and _says_close(headers["connection"])
    keeps = minor > 0 and not closes and not body.ends_with_connection
    return Answer(Head(status, headers), body, keeps, rest)


def _joined(fields: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Headers by name; those of the same name are joined by commas (RFC 9110, 5.3)."""
    if len(headers := dict(fields)) == len(fields):
        return headers
    headers.clear()
    for name, value in fields:
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _says_close(connection: str) -> bool:
    return "close" in (each.strip().lower() for each in connection.split(","))


def _body(headers: Mapping[str, str], minor: int) -> Body:
    """What follows a head (RFC 9112, 6.3). Raises NotHttp where there would be two opinions about it."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
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
