"""Ordinary requests, known at a glance: what nearly everything looks like that an engine is asked. Pure.

Ordinary is what no two readers of HTTP could read differently (RFC 9112): one POST, its headers in plain ASCII, none of
them twice and none that changes what is on the wire, and a body whose length is given. Strictness costs nobody anything
here, since what is not known is not refused: it is read by aiohttp, whose parser knows all of HTTP.
"""

import re
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

HEAD_BYTES = 8 * 1024
BODY_BYTES = 64 * 1024
"""A longer one comes in many reads, and how fast it comes has to be watched."""

_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n")
_FIELDS = re.compile(r"([^:\r\n]+):[ \t]*((?:[^\r\n]*[^\r\n \t])?)[ \t]*\r\n")
_LENGTH = re.compile(r"[0-9]{1,6}")

_ODD = frozenset({"content-encoding", "expect", "te", "trailer", "transfer-encoding", "upgrade"})
"""What changes how a body or a connection is to be read."""


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
    if not (head := _HEAD.match(data, 0, HEAD_BYTES)):
        return None
    pairs = _FIELDS.findall(head[2].decode("ascii"))
    fields = {name.lower(): value for name, value in pairs}
    if len(fields) < len(pairs) or not _ODD.isdisjoint(fields) or not _keeps_connection(fields.get("connection")):
        return None
    if not _LENGTH.fullmatch(digits := fields.get("content-length", "")) or (length := int(digits)) > BODY_BYTES:
        return None
    body = data[head.end() :]
    if len(body) > length:
        return None
    return Ordinary(head[1].decode("ascii"), CIMultiDictProxy(CIMultiDict(pairs)), body, length - len(body))


def _keeps_connection(connection: str | None) -> bool:
    return connection is None or connection.lower() == "keep-alive"
