"""Ordinary requests, known at a glance: what nearly everything looks like that an engine is asked. Pure.

Ordinary is what no two readers of HTTP could read differently (RFC 9112): one POST, its headers in printable ASCII,
none of them twice and none that changes what is on the wire, and a body whose length is given. Strictness costs nobody
anything here, since what is not known is not refused: it is read by aiohttp, whose parser knows all of HTTP.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy, istr

from vllmd.engine.body import TOKEN

HEAD_BYTES = 8 * 1024
HEADERS = 64
"""aiohttp takes twice as many."""

BODY_BYTES = 64 * 1024
"""A longer one comes in many reads, and how fast it comes has to be watched."""

_LINE = re.compile(r"POST (/[!\"$-~]*) HTTP/1\.1")  # all that is visible but a fragment's #
_END = b"\r\n\r\n"
_NAME, _NAME_CHARACTERS = re.compile(TOKEN.decode()), 64
_ODD = frozenset({"content-encoding", "expect", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})
"""What changes how a body or a connection is to be read; some parsers take the third for `Connection`."""


class Ordinary(NamedTuple):
    """A request that is ordinary.

    Args:
        path: whom it is for.
        headers: its own.
        body: as much of it as is there.
        lacks: how many bytes of the body are still to come.
    """

    path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    lacks: int


def glance(data: bytes) -> Ordinary | None:
    """The ordinary request that `data` is, whole or lacking the end of its body; None if it is anything else."""
    head, end, body = data.partition(_END)
    if not end or len(head) > HEAD_BYTES or not head.isascii():
        return None
    line, *lines = head.decode("ascii").split("\r\n")
    if len(lines) > HEADERS or (path := _path(line)) is None or (headers := _headers(lines)) is None:
        return None
    length = _length(headers)
    if length is None or len(body) > length:
        return None
    return Ordinary(path, CIMultiDictProxy(headers), body, length - len(body))


@lru_cache(maxsize=64)
def _path(line: str) -> str | None:
    """Whom a request is for by its first line; None if that is not ordinary."""
    return found[1] if (found := _LINE.fullmatch(line)) else None


def _headers(lines: list[str]) -> CIMultiDict[str] | None:
    """None if they are not ordinary. Regular expressions would take several times as long for the same."""
    headers = CIMultiDict[str]()
    for line in lines:
        name, colon, value = line.partition(":")
        known = _ordinary_name(name)
        if known is None or not colon or known in headers or not line.isprintable():
            return None
        headers.add(known, value.strip())
    return headers if hdrs.HOST in headers else None


@lru_cache(maxsize=256)
def _ordinary_name(name: str) -> istr | None:
    """The name of a header, which knows its lower case; None if it is odd, or no name."""
    is_name = len(name) <= _NAME_CHARACTERS and _NAME.fullmatch(name)
    return istr(name) if is_name and name.lower() not in _ODD else None


def _length(headers: CIMultiDict[str]) -> int | None:
    """How long the body is; None if that is not said, or not all there is to say."""
    digits, connection = headers.get(hdrs.CONTENT_LENGTH, ""), headers.get(hdrs.CONNECTION)
    if not digits.isdecimal() or len(digits) > len(str(BODY_BYTES)) or (length := int(digits)) > BODY_BYTES:
        return None
    return length if connection is None or connection.lower() == "keep-alive" else None
