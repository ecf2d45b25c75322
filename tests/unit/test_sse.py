"""Events in bytes: however a stream is cut, it holds the same events, and no byte is lost."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from recordings import streams

from vllmd.sse import Decoder, Event, Splitter, comment, decode, encode, events_in

STREAMS = streams()

# Pieces from which every trap can be built: ends of lines of each kind, halves of characters, a mark in mid-stream.
PIECES = [b"\n", b"\r", b"\r\n", b"data:", b"data: x", b"event: y", b"id: 7", b": z", b":", b"\xc3", b"\xa9"]
STREAM = st.lists(st.sampled_from([*PIECES, b"\xef\xbb\xbf", b"\xff", b"\0", b" ", b"retry: 1"]), max_size=30).map(
    b"".join
)
CUTS = st.lists(st.integers(0, 100), max_size=12)


def cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream in chunks, cut at these places."""
    places = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(places)]


def decoded(chunks: Iterable[bytes]) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


# ── however it is cut ──


@given(STREAM, CUTS)
def test_no_byte_is_lost_or_changed(stream: bytes, cuts: list[int]) -> None:
    splitter = Splitter()
    blocks = [splitter.feed(chunk) for chunk in cut(stream, cuts)]
    assert b"".join(blocks) + splitter.rest == stream


@given(STREAM, CUTS)
@example(b"\r\n\r\n", [1, 2, 3])
@example(b"data: a\r\rdata: b\r\r\n", [8, 9])
@example(b"\n\n\xef\xbb\xbfdata: x\n\n", [2])
def test_every_cut_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    assert decoded(cut(stream, cuts)) == decoded([stream])


@given(STREAM, CUTS)
def test_events_in_covers_every_byte_of_whole_events(stream: bytes, cuts: list[int]) -> None:
    splitter = Splitter()
    for chunk in cut(stream, cuts):
        block = splitter.feed(chunk)
        events = events_in(block)
        assert b"".join(events) == block
        assert all(events)
        assert [each for event in events for each in decode(event)] == decode(block)
        assert all(len(decode(event)) <= 1 for event in events)


@given(STREAM, CUTS)
def test_a_block_ends_where_an_event_ends(stream: bytes, cuts: list[int]) -> None:
    splitter = Splitter()
    for chunk in cut(stream, cuts):
        block = splitter.feed(chunk)
        assert not block or re.search(rb"(?:\r\n|\n|\r){2}\Z", block)


@given(STREAM)
def test_a_blank_line_ends_what_was_held_back(stream: bytes) -> None:
    splitter = Splitter()
    splitter.feed(stream + b"\n\n")
    assert splitter.rest == b""


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_byte_by_byte(name: str) -> None:
    stream = STREAMS[name]
    splitter = Splitter()
    blocks = [splitter.feed(bytes([byte])) for byte in stream]
    whole = [block for block in blocks if block]
    assert b"".join(whole) == stream
    assert whole == events_in(stream)
    assert decoded(whole) == decoded([stream]) == decode(stream)


def test_there_are_recordings_of_every_dialect() -> None:
    assert len(STREAMS) >= 15
    assert all(each.startswith((b"data: {", b"event: ", b": ")) and each.endswith(b"\n\n") for each in STREAMS.values())
    data = [event.data for stream in STREAMS.values() for event in decode(stream) if event.has_data]
    assert any("chat.completion.chunk" in each for each in data)
    assert any("text_completion" in each for each in data)
    assert any("message_stop" in each for each in data)
    assert any("response.completed" in each for each in data)
    assert all(each == "[DONE]" or json.loads(each) for each in data)


def test_recorded_comments_are_comments() -> None:
    events = decode(STREAMS["keep-alive comments during long prefill"])
    assert events[0] == Event(comment="keep-alive")
    assert events[-1] == Event(data="[DONE]", has_data=True)


# ── what it says (WHATWG HTML, section 9.2.6) ──


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [Event("a", has_data=True)]),
        (b"data:a\n\n", [Event("a", has_data=True)]),
        (b"data:  a\n\n", [Event(" a", has_data=True)]),
        (b"data: a\ndata: b\n\n", [Event("a\nb", has_data=True)]),
        (b"data: a\r\ndata: b\r\n\r\n", [Event("a\nb", has_data=True)]),
        (b"data: a\rdata: b\r\rx", [Event("a\nb", has_data=True)]),
        (b"data: a\n\r\ndata: b\r\n\n", [Event("a", has_data=True), Event("b", has_data=True)]),
        (b"data\n\n", [Event("", has_data=True)]),
        (b"data:\ndata:\n\n", [Event("\n", has_data=True)]),
        (b"data: a: b\n\n", [Event("a: b", has_data=True)]),
        (b"event: e\ndata: a\n\n", [Event("a", "e", has_data=True)]),
        (b"event: e\nevent: f\ndata: a\n\n", [Event("a", "f", has_data=True)]),
        (b"event:\ndata: a\n\n", [Event("a", has_data=True)]),
        (b"id: 1\nid: 2\ndata: a\n\n", [Event("a", id="2", has_data=True)]),
        (b"id\ndata: a\n\n", [Event("a", id="", has_data=True)]),
        (b"id: 1\nid: 2\x003\n\n", [Event(id="1")]),
        (b": note\n\n", [Event(comment="note")]),
        (b": a\n:b\ndata: c\n\n", [Event("c", comment="a\nb", has_data=True)]),
        (b"event: e\n\n", [Event(event="e")]),
        (b"retry: 5\nnonsense: 1\n data: a\n\n", [Event()]),
        (b"\n\n\n\ndata: a\n\n\n\n", [Event("a", has_data=True)]),
        (b"data: \xff\xc3\n\n", [Event("��", has_data=True)]),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"data: a\n\r", []),
        (b"data: a\r\r", []),
        (b"data: a\r\n\r", []),
        (b"", []),
    ],
)
def test_what_an_event_says(stream: bytes, events: list[Event]) -> None:
    assert decoded([stream]) == events


def test_a_byte_order_mark_is_passed_over_at_the_beginning_and_only_there() -> None:
    mark = b"\xef\xbb\xbf"
    assert decoded([mark + b"data: a\n\n"]) == [Event("a", has_data=True)]
    assert decoded([mark[:1], mark[1:] + b"data: a\n\n"]) == [Event("a", has_data=True)]
    assert decoded([b"data: a\n\n", mark + b"data: b\n\n"]) == [Event("a", has_data=True), Event()]


def test_a_return_at_the_end_of_a_chunk_waits_for_its_line_feed() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\n\r") == b""
    assert splitter.feed(b"\n") == b"data: a\r\n\r\n"
    assert splitter.feed(b"data: a\n\n\r") == b"data: a\n\n"
    assert splitter.feed(b"\n") == b""
    assert splitter.feed(b"data: b\r\r") == b""
    assert splitter.feed(b"d") == b"\r\ndata: b\r\r"
    assert splitter.rest == b"d"


# ── writing ──

TEXT = st.text(st.characters(codec="utf-8"))
LINE = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"))


@given(TEXT, LINE, st.none() | LINE)
def test_what_is_written_is_read(data: str, event: str, event_id: str | None) -> None:
    written = encode(data, event, event_id)
    lines = re.sub("\r\n|\r", "\n", data)
    assert decoded([written]) == [Event(lines, event or "message", event_id, has_data=True)]
    assert events_in(written) == [written]


@given(st.lists(TEXT), CUTS)
def test_many_events_one_after_the_other(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(map(encode, texts))
    assert [event.data for event in decoded(cut(stream, cuts))] == [re.sub("\r\n|\r", "\n", text) for text in texts]


@given(st.text())
def test_comments_stay_comments(text: str) -> None:
    (event,) = decoded([comment(text)])
    assert not event.has_data
    assert event == Event(comment=" ".join(text.splitlines()))


def test_a_number_may_be_an_id() -> None:
    assert encode("a", "model", 7) == b"event: model\nid: 7\ndata: a\n\n"


def test_half_a_character_does_not_stop_the_stream() -> None:
    assert encode("a\ud83d") == b"data: a?\n\n"
    assert comment("a\ud83d") == b": a?\n\n"
