"""What is known at a glance is what aiohttp's own parser reads, and nothing that anybody could read differently."""

import asyncio
from collections.abc import Mapping
from typing import cast

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from vllmd.server.ordinary import BODY_BYTES, HEAD_BYTES, HEADERS, Ordinary, glance

BODY = b'{"model":"tiny","messages":[]}'
FIELDS = [
    b"Host: localhost:8000",
    b"Accept: */*",
    b"User-Agent: OpenAI/Python 2.8.0",
    b"Content-Type: application/json",
    b"Connection: keep-alive",
    b"Authorization:Bearer vllmd-k  ",
    b"Content-Length: %d" % len(BODY),
]


def asked(*fields: bytes, line: bytes = b"POST /v1/chat/completions HTTP/1.1", body: bytes = BODY) -> bytes:
    return b"\r\n".join([line, *fields, b"", body])


PLAIN = asked(*FIELDS)


class Read:
    """What aiohttp's parser, as its server has it, makes of bytes that are to be one request, and nothing else."""

    def __init__(self, data: bytes) -> None:
        loop = asyncio.new_event_loop()
        try:
            protocol = cast(BaseProtocol, _Protocol())
            parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=8190, max_field_size=8190, max_headers=128)
            ((self.message, self.content),), self.upgraded, self.tail = parser.feed_data(data)
        finally:
            loop.close()

    @property
    def body(self) -> bytes:
        assert self.content.is_eof()
        return self.content.read_nowait()


class _Protocol(BaseProtocol):
    def __init__(self) -> None:
        self.transport = None

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


def fields(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items()]


def agree(ordinary: Ordinary, data: bytes) -> None:
    read = Read(data)
    assert (read.message.method, read.message.path) == ("POST", ordinary.path)
    assert read.message.version == (1, 1)
    assert fields(read.message.headers) == fields(ordinary.headers)
    message = read.message
    assert not any(
        (message.should_close, message.upgrade, message.chunked, message.compression, read.upgraded, read.tail)
    )
    assert read.body == ordinary.body


def test_an_ordinary_request() -> None:
    ordinary = glance(PLAIN)
    assert ordinary is not None
    assert (ordinary.path, ordinary.body, ordinary.lacks) == ("/v1/chat/completions", BODY, 0)
    assert ordinary.headers["authorization"] == "Bearer vllmd-k"
    agree(ordinary, PLAIN)


@given(st.integers(0, len(PLAIN) - 1))
def test_one_that_is_cut_is_ordinary_once_its_head_is_there(at: int) -> None:
    ordinary, head = glance(PLAIN[:at]), len(PLAIN) - len(BODY)
    if at < head:
        assert ordinary is None
    else:
        assert ordinary is not None
        assert ordinary.lacks == len(PLAIN) - at


@pytest.mark.parametrize(
    "data",
    [
        asked(*FIELDS, line=b"GET /v1/chat/completions HTTP/1.1"),
        asked(*FIELDS, line=b"POST /v1/chat/completions HTTP/1.0"),
        asked(*FIELDS, line=b"post /v1/chat/completions HTTP/1.1"),
        asked(*FIELDS[:-1]),  # no length
        asked(*FIELDS[1:]),  # no host
        asked(*FIELDS, FIELDS[-1]),
        asked(*FIELDS, b"content-length: 3"),
        asked(*FIELDS[:-1], b"Content-Length: +30"),
        asked(*FIELDS[:-1], b"Content-Length: 0x1e"),
        asked(*FIELDS[:-1], b"Content-Length: 30, 30"),
        asked(*FIELDS[:-1], b"Content-Length: "),
        asked(*FIELDS[:-1], b"Content-Length: 29"),  # one byte too many comes
        asked(*FIELDS[:-1], b"Content-Length: %d" % (BODY_BYTES + 1)),
        asked(*FIELDS, b"Transfer-Encoding: chunked"),
        asked(*FIELDS, b"transfer-encoding:\tidentity"),
        asked(*FIELDS, b"Content-Encoding: gzip"),
        asked(*FIELDS, b"Expect: 100-continue"),
        asked(*FIELDS, b"Upgrade: websocket"),
        asked(*(each.replace(b"keep-alive", b"close") for each in FIELDS)),
        asked(*(each.replace(b"keep-alive", b"keep-alive, Upgrade") for each in FIELDS)),
        asked(*FIELDS, b"host: elsewhere"),
        asked(*FIELDS, b"X-A : 1"),
        asked(*FIELDS, b" folded: 1"),
        asked(*FIELDS, b"X-A"),
        asked(*FIELDS, b": 1"),
        asked(*FIELDS, b"X-A: \x00"),
        asked(*FIELDS, b"X-A: \xc3\xa9"),
        asked(*FIELDS, b"X-A: 1\nX-B: 2"),
        asked(*FIELDS, b"X-A: 1\rX-B: 2"),
        asked(*FIELDS, b"X-A: " + b"a" * HEAD_BYTES),
        asked(*FIELDS, *(b"X-%d: 1" % number for number in range(HEADERS))),
        asked(*FIELDS, b"Proxy-Connection: close"),
        asked(*FIELDS, line=b"POST /v1/chat/completions#here HTTP/1.1"),
        b"\r\n" + PLAIN,
        PLAIN + PLAIN,
        b"",
        b"\r\n\r\n",
    ],
)
def test_what_is_not_ordinary(data: bytes) -> None:
    assert glance(data) is None


PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b":",
    b" ",
    b"\t",
    b"0",
    b"1",
    b"chunked",
    b"Content-Length: 30",
    b"Proxy-Connection: close\r\n",
    b"x:\r\n",
    b"".join(b"x%d:\r\n" % number for number in range(125)),
    b"\x00",
    b"\xff",
    b"-",
]


LINES = [at + 2 for at in range(len(PLAIN) - len(BODY) - 2) if PLAIN.startswith(b"\r\n", at)]
"""Where lines begin: whole ones do not often land there by chance."""

PLACES = st.integers(0, len(PLAIN)) | st.sampled_from(LINES)


@given(st.lists(st.tuples(PLACES, st.integers(0, 3), st.sampled_from(PIECES)), min_size=1, max_size=3))
def test_whatever_is_taken_for_ordinary_is_what_aiohttp_reads(changes: list[tuple[int, int, bytes]]) -> None:
    data = PLAIN
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length :]
    ordinary = glance(data)
    if ordinary is not None and not ordinary.lacks:
        agree(ordinary, data)
