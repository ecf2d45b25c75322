"""Where a body ends, however it is cut up on its way."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.ctl.framing import Chunked, NotHttp, Sized, framing_of

BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(0, 400), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at those places."""
    return [data[start:end] for start, end in pairwise(sorted([0, *cuts, len(data)])) if start < len(data)]


@given(BODIES, CUTS)
def test_chunks_are_one_body_however_they_arrive(parts: list[bytes], cuts: list[int]) -> None:
    sent = b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    framing = Chunked()
    assert b"".join(framing.feed(piece) for piece in pieces(sent, cuts)) == b"".join(parts)
    assert framing.ended


@given(st.binary(max_size=50), st.binary(max_size=9), CUTS)
def test_a_length_is_not_exceeded(body: bytes, more: bytes, cuts: list[int]) -> None:
    framing = Sized(len(body))
    assert b"".join(framing.feed(piece) for piece in pieces(body + more, cuts)) == body
    assert framing.ended


def test_chunks_that_came_together_are_one_piece() -> None:
    framing = Chunked()
    assert framing.feed(b"3\r\none\r\n3\r\ntwo\r\n5\r\nth") == b"onetwoth"
    assert framing.feed(b"ree\r\n") == b"ree"
    assert not framing.ended


def test_a_line_without_an_end_is_no_http() -> None:
    framing = Chunked()
    with pytest.raises(NotHttp):
        framing.feed(b"1" * 70_000)


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"transfer-encoding": "Chunked", "content-length": "3"}, Chunked),
        ({"content-length": "3"}, Sized),
        ({"content-length": "many"}, Sized),
        ({}, Sized),
    ],
)
def test_headers_tell_the_framing(headers: dict[str, str], kind: type) -> None:
    framing = framing_of(headers)
    assert isinstance(framing, kind)
    assert not framing.ended
