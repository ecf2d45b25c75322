"""Reading an answer: what is taken out of ordinary events at a glance is what their JSON says, however they come."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmd.ctl.reading import Chunk, Reader, read_chunk
from vllmd.errors import StreamBroken
from vllmd.sse import Decoder, decode

TEXT = st.one_of(
    st.text(max_size=6), st.sampled_from(['"', "\\", '\\"', "\n", '"},"finish_reason":null}]}', "a b", "é", "😀"])
)
PART = st.tuples(st.sampled_from(["content", "content", "content", "reasoning", "reasoning_content", ":"]), TEXT)


def event(name: str, text: str, ascii: bool = True) -> bytes:
    """A chunk as vLLM writes it; `:` is a comment."""
    if name == ":":
        return b": wait\n\n"
    choice = {"index": 0, "delta": {name: text}, "logprobs": None, "finish_reason": None}
    table = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [choice]}
    written = json.dumps(table, ensure_ascii=ascii, separators=(",", ":"))
    return f"data: {written}\n\n".encode(errors="replace")


def read(stream: bytes, cuts: list[int]) -> Iterator[Chunk]:
    """What a reader makes of the stream, cut at these places."""
    reader, decoder = Reader(), Decoder()
    places = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    for start, end in pairwise(places):
        for part in reader.read(decoder.block(stream[start:end])):
            if isinstance(part, Chunk):
                yield part
            elif part.has_data:
                yield read_chunk(json.loads(part.data))


def joined(chunks: list[Chunk]) -> tuple[str, str]:
    text, reasoning = "".join(each.text for each in chunks), "".join(each.reasoning for each in chunks)
    whole = [each.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for each in (text, reasoning)]
    return whole[0], whole[1]


@given(st.lists(PART, max_size=30), st.lists(st.integers(0, 10_000), max_size=10), st.booleans())
@example([("content", "a"), ("content", "b"), ("content", "\ud83d"), ("content", "\ude00")], [], True)
@example([("reasoning", "hm"), ("reasoning", "hm"), ("content", "a"), ("content", "a"), ("reasoning", "x")], [], True)
def test_it_is_what_the_json_says(parts: list[tuple[str, str]], cuts: list[int], ascii: bool) -> None:
    stream = b"".join(event(name, text, ascii) for name, text in parts)
    plain = [read_chunk(json.loads(each.data)) for each in decode(stream) if each.has_data]
    assert joined(list(read(stream, cuts))) == joined(plain)


def test_ordinary_events_that_came_together_are_one_chunk() -> None:
    reader = Reader()
    (first,) = reader.read(event("content", "a"))
    assert not isinstance(first, Chunk), "it tells the id and the model"
    assert list(reader.read(b"".join(event("content", each) for each in "bcd"))) == [Chunk("bcd")]
    both = b"".join(event(name, "x") for name in ("reasoning", "reasoning", "content"))
    assert list(reader.read(both)) == [Chunk(reasoning="xx"), Chunk("x")]


def test_halves_of_a_character_in_two_events_are_one() -> None:
    reader = Reader()
    list(reader.read(event("content", "a")))
    assert list(reader.read(event("content", "\ud83d") + event("content", "\ude00"))) == [Chunk("😀")]


def test_what_says_more_than_text_comes_whole() -> None:
    reader = Reader()
    stream = event("content", "a") + event("content", "b").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
    ends = [part for part in reader.read(stream) if not isinstance(part, Chunk)]
    assert json.loads(ends[-1].data)["choices"][0]["finish_reason"] == "stop"


def test_a_text_that_is_no_json_is_told() -> None:
    reader = Reader()
    list(reader.read(event("content", "a") + event("content", "b")))
    with pytest.raises(StreamBroken, match="cannot be read"):
        list(reader.read(event("content", "b").replace(b'"b"', b'"\\x"')))
