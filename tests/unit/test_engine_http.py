"""What an engine's bytes mean: however they are cut, the same; what two readers could read differently is nonsense."""

from collections.abc import Iterable
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.body import EXTRA_BYTES, FRAMES, HEADS, Body, Chunks, NotHttp, Sized
from vllmd.engine.http import HEAD_BYTES, Answer, HeadReader, request

CONTENTS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(0, 2000), max_size=8)
SIZES = st.sampled_from([b"%x", b"%X", b"%04x", b"%016x", b"%x;name=value", b'%x;a="b"', b"%x;"])
SMALL = b"1\r\na\r\n10;x=y\r\n0123456789abcdef\r\n2\r\n\r\n\r\n0\r\nvary: x\r\n\r\n"


def chunked(contents: Iterable[bytes], size: bytes = b"%x", end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(size % len(each) + b"\r\n" + each + b"\r\n" for each in contents) + end


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(each % (len(data) + 1) for each in places)})
    return [data[start:end] for start, end in pairwise(ends)]


def feed(body: Body, pieces: Iterable[bytes]) -> bytes:
    """What a connection does with a body: nothing is fed behind its end or its fault."""
    content = b""
    for piece in pieces:
        if not (body.is_over or body.fault):
            content += body.feed(piece)
    return content


# ── chunks ──


@given(CONTENTS, SIZES, CUTS)
def test_a_chunked_body_says_the_same_however_it_is_cut(contents: list[bytes], size: bytes, cuts: list[int]) -> None:
    body = Chunks()
    assert feed(body, cut(chunked(contents, size), cuts)) == b"".join(contents)
    assert (body.is_over, body.rest, body.fault) == (True, b"", "")


def test_a_chunked_body_cut_at_every_pair_of_places() -> None:
    for places in combinations(range(len(SMALL) + 1), 2):
        body = Chunks()
        assert feed(body, cut(SMALL, places)) == b"a0123456789abcdef\r\n", places
        assert body.is_over, places


@given(
    st.lists(st.sampled_from([b"1\r\na\r\n", b"0", b"\r\n", b"\n", b"\r", b"5;x", b"z", b"a: b", b"\r\n\r\n"])), CUTS
)
def test_nonsense_is_the_same_nonsense_however_it_is_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data, whole, body = b"".join(pieces), Chunks(), Chunks()
    assert feed(body, cut(data, cuts)) == feed(whole, [data])
    assert (body.is_over, body.fault) == (whole.is_over, whole.fault)


@given(st.lists(st.binary(min_size=1, max_size=FRAMES + 100), max_size=8))
def test_a_read_that_is_one_chunk_is_known_by_a_look(contents: list[bytes]) -> None:
    frames = [chunked([each], end=b"") for each in contents]
    for frame, content in zip(frames, contents, strict=True):
        known = len(frame) < FRAMES and frame.startswith(HEADS[len(frame)]) and frame.endswith(b"\r\n")
        assert known == (len(frame) < FRAMES)
        assert not known or frame[len(HEADS[len(frame)]) : -2] == content


@given(st.integers(0, FRAMES - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_whatever_looks_like_one_chunk_is_one(length: int, before: bytes, behind: bytes) -> None:
    for line in (HEADS[length], before, b"0\r\n", b"00" + HEADS[length], HEADS[length].upper()):
        data = (line + behind).ljust(length - 2, b"x")[: max(0, length - 2)] + b"\r\n"
        if len(data) == length and data.startswith(HEADS[length]) and data.endswith(b"\r\n"):
            body = Chunks()
            assert body.feed(data) == data[len(HEADS[length]) : -2]
            assert body.takes_chunks


def test_every_length_has_the_one_line_that_fits() -> None:
    for length, line in enumerate(HEADS):
        if len(line) <= length:
            assert len(line) + int(line, 16) + 2 == length
            assert line == b"%x\r\n" % int(line, 16)
    assert [length for length, line in enumerate(HEADS) if len(line) > length] == [*range(6), 21, 262]


def test_the_place_for_a_chunk_is_between_chunks_only() -> None:
    body, found = Chunks(), list[int]()
    for at in range(len(SMALL)):
        found += [at] if body.takes_chunks else []
        body.feed(SMALL[at : at + 1])
    assert found == [0, 6, 32, 39]
    assert not body.takes_chunks
    assert body.is_over


@pytest.mark.parametrize(
    "size",
    [
        b"",
        b"+1",
        b"-1",
        b"0x1",
        b"1_0",
        b" 1",
        b"1 ",
        b"1\t",
        b"z",
        b"1g",
        b"1 ;x",
        b"1;\x00",
        b"1;\r",
        b"\xb2",
        b"1" * 17,
    ],
)
def test_what_is_no_size(size: bytes) -> None:
    body = Chunks()
    assert body.feed(b"2\r\nok\r\n" + size + b"\r\n" + b"x" * 40) == b"ok", "what came before it counts"
    assert body.fault
    assert not body.is_over


@pytest.mark.parametrize(
    "data",
    [
        b"1\nx\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx0\r\n\r\n",
        b"0\r\n\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"1;" + b"x" * EXTRA_BYTES + b"\r\nx\r\n",
        b"1;" + b"x" * EXTRA_BYTES,
        b"0\r\n" + b"a: b\r\n" * EXTRA_BYTES,
    ],
)
def test_what_are_no_chunks(data: bytes) -> None:
    for pieces in ([data], cut(data, range(0, len(data), 7))):
        body = Chunks()
        feed(body, pieces)
        assert body.fault
        assert not body.takes_chunks


def test_what_comes_behind_a_body_is_not_of_it() -> None:
    body: Body = Chunks()
    assert body.feed(b"1\r\nx\r\n0\r\n\r\nHTTP/1.1") == b"x"
    assert (body.is_over, body.rest) == (True, b"HTTP/1.1")
    body = Sized(3)
    assert (body.feed(b"ab"), body.is_over) == (b"ab", False)
    assert (body.feed(b"cd"), body.is_over, body.rest) == (b"c", True, b"d")
    body = Body()
    assert (body.feed(b"x" * 9), body.is_over, body.ends_with_connection) == (b"x" * 9, False, True)


# ── heads ──


def read(data: bytes, method: str = "GET") -> Answer:
    """The answer, however its head is cut."""
    found = HeadReader(method).feed(data)
    reader = HeadReader(method)
    by_byte = [answer for at in range(len(data)) if (answer := reader.feed(data[at : at + 1]))]
    assert found
    assert by_byte[0].head == found.head
    return found


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def test_a_head() -> None:
    answer = read(head(b"Content-Type:Text/Event-Stream ; charset=utf-8", b"VARY: a", b"vary:\tb ", b"x:") + b"rest")
    assert answer.head.status == 200
    assert dict(answer.head.headers) == {"content-type": "Text/Event-Stream ; charset=utf-8", "vary": "a, b", "x": ""}
    assert answer.head.headers["vary"] == "a, b"
    assert answer.head.is_stream
    assert answer.rest == b"rest"


def test_interim_heads_are_read_over() -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + head(b"content-length: 1") + b"a"
    )
    answer = read(data)
    assert (answer.head.status, dict(answer.head.headers), answer.rest) == (200, {"content-length": "1"}, b"a")


@pytest.mark.parametrize(
    ("lines", "kind", "keeps"),
    [
        ([b"transfer-encoding: Chunked"], Chunks, True),
        ([b"content-length: 5"], Sized, True),
        ([b"content-length: 5", b"content-length: 5"], Sized, True),
        ([b"content-length: 5", b"connection: x, Close"], Sized, False),
        ([b"content-length: 5", b"connection: x", b"connection: close"], Sized, False),
        ([], Body, False),
    ],
)
def test_where_a_body_ends(lines: list[bytes], kind: type[Body], keeps: bool) -> None:
    answer = read(head(*lines))
    assert (type(answer.body), answer.keeps) == (kind, keeps)
    assert not answer.body.is_over
    assert not read(head(b"content-length: 1", first=b"HTTP/1.0 200 OK")).keeps


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(status: bytes) -> None:
    for lines in ([], [b"content-length: 5"], [b"transfer-encoding: chunked"]):
        for answer in (read(head(*lines, first=b"HTTP/1.1 " + status)), read(head(*lines), "HEAD")):
            assert answer.body.is_over
            assert answer.keeps


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        *(
            head(first=each)
            for each in (b"HTTP/1.1 xyz", b"HTTP/2 200 OK", b"HTTP/1.1  200", b"HTTP/1.1 600 x", b"http/1.1 200")
        ),
        *(
            head(first=each)
            for each in (b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 200 \x00", b"HTTP/1.1 101 Switching")
        ),
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
        *(
            head(each)
            for each in (b"no colon", b": x", b"a : b", b" a: b", b"\ta: b", b"a: b\r", b"a: \x00", b"a: \x7f")
        ),
        head(b"a: b", b" folded"),
        head(b"a: " + b"x" * HEAD_BYTES),
        head(*[b"a: b"] * HEAD_BYTES),
        b"x" * (HEAD_BYTES + 1),
        head(b"transfer-encoding: chunked", b"content-length: 5"),
        head(b"transfer-encoding: chunked", first=b"HTTP/1.0 200 OK"),
        *(head(b"transfer-encoding: " + each) for each in (b"gzip, chunked", b"identity", b"", b"chunked, chunked")),
        head(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        head(b"content-length: 5", b"content-length: 6"),
        *(
            head(b"content-length: " + each)
            for each in (b"", b"-1", b"+1", b"1_0", b"0x5", b"5, 6", b"\xb2", b"9" * 19)
        ),
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    with pytest.raises(NotHttp):
        HeadReader("GET").feed(data)
    reader = HeadReader("GET")
    with pytest.raises(NotHttp):
        list(map(reader.feed, (bytes([each]) for each in data)))


# ── requests ──


def test_a_request() -> None:
    made = request("POST", "/v1/x?y=z", b"body", {"X-Id": "ü"})
    assert made.head == "POST /v1/x?y=z HTTP/1.1\r\nHost: engine\r\nContent-Length: 4\r\nX-Id: ü\r\n\r\n".encode()
    assert made.body == b"body"
    assert request("GET", "/", None, {}).head == b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n"
    assert b"Content-Length: 0\r\n" in request("POST", "/", None, {}).head


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/a b", {}),
        ("GET", "/\r\nx: y", {}),
        ("GET", "", {}),
        ("get", "/", {}),
        ("GET", "/", {"a\r\nb": "c"}),
        ("GET", "/", {"a:b": "c"}),
        ("GET", "/", {"": "c"}),
        *(("GET", "/", {"a": value}) for value in ("x\r\ny: z", "x\ny", "x\r", "\0")),
        *(
            ("GET", "/", {name: "1"})
            for name in ("Content-Length", "host", "Transfer-Encoding", "Connection", "Expect")
        ),
    ],
)
def test_what_would_be_another_request(method: str, path: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no request can be made"):
        request(method, path, b"", headers)
