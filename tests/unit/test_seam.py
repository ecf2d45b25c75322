"""The events on the far side of the seam: facts, whitespace, counts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.server.seam import Seam, Told, chunk_in, encode, missing

SPACE = st.text(alphabet=" \n\t\u2028", max_size=6)


@pytest.mark.parametrize(
    ("said", "again", "rest"),
    [
        ("", "\n ", "\n "),
        (" ", " ", ""),
        ("\n", "\n\n  ", "\n  "),
        ("\n\n", "\n", ""),
        ("\n\n", " ", ""),
        (" ", "", ""),
        (" ", "\n\n", "\n\n"),
        (" \n", "\n", ""),
        ("\n", " \n", ""),
        (" \n", "\n  ", "  "),
        ("\n  ", "\n\n", "\n"),
        ("\n    ", "\n  ", ""),
        ("\t", "  ", ""),
    ],
)
def test_what_is_missing_of_whitespace(said: str, again: str, rest: str) -> None:
    assert missing(said, again) == rest


@given(SPACE, SPACE)
def test_whitespace_is_never_doubled_and_never_lost(said: str, again: str) -> None:
    joined = said + missing(said, again)
    assert joined.count("\n") == max(said.count("\n"), again.count("\n"))
    if again.startswith(said):
        assert joined == again


@given(st.lists(st.sampled_from([" ", "\n", "\n\n"]), max_size=4), st.sampled_from(["a", " a", ""]), SPACE)
def test_however_the_whitespace_comes_it_is_judged_as_a_whole(pieces: list[str], last: str, tail: str) -> None:
    seam = Seam(told(), tail, 0)
    events = [chunk(piece) for piece in pieces] + [chunk(last, "stop")]
    again = "".join([*pieces, last])
    space = again[: len(again) - len(again.lstrip())]
    assert text_of([seam.mend(event) for event in events]) == missing(tail, space) + again.lstrip()


@pytest.mark.parametrize("delta", [{}, {"content": None}, {"content": ""}])
def test_an_end_without_text(delta: dict[str, Any]) -> None:
    seam = Seam(told(), "\n", 0)
    seam.mend(chunk(" "))
    end = seam.mend(encode({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}))
    assert text_of([end]) == ""
    assert b'"finish_reason":"stop"' in end


def test_facts_stay_as_first_told() -> None:
    mended = chunk_in(Seam(told(id="a", created=1, model="m"), "", 0).mend(chunk("x", id="b", created=2, model="n")))
    assert mended == chunk_in(chunk("x", id="a", created=1, model="m"))


def test_whitespace_goes_on_as_soon_as_the_client_has_what_was_cut_off() -> None:
    seam = Seam(told(), "\n", 0)
    assert [text_of([seam.mend(chunk(piece))]) for piece in ("\n", "\n", " a")] == ["", "\n", " a"]


def test_the_first_to_tell_is_right() -> None:
    first = told(id="a")
    first.note({"id": "b", "model": "n", "choices": []})
    assert chunk_in(Seam(first, "", 0).mend(chunk("x", id="c", model="c"))) == chunk_in(chunk("x", id="a", model="n"))


def test_what_was_not_told_comes_from_the_next_engine() -> None:
    mended = chunk_in(Seam(told(id="a"), "", 0).mend(chunk("x", "stop", system_fingerprint="f", created=2)))
    assert mended == chunk_in(chunk("x", "stop", system_fingerprint="f", created=2))


def test_the_role_comes_once() -> None:
    role = encode({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    assert Seam(told(), "", 0).mend(role) == b""
    assert Seam(Told(), "", 0).mend(role) == role
    with_text = encode({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "x"}}]})
    assert Seam(told(), "", 0).mend(with_text) == encode({"choices": [{"index": 0, "delta": {"content": "x"}}]})


@pytest.mark.parametrize("event", [b": keep-alive\n\n", b"data: [DONE]\n\n", b'data: {"error":{"code":500}}\n\n'])
def test_what_is_no_chunk_passes(event: bytes) -> None:
    assert Seam(told(), " ", 3).mend(event) == event


def test_usage_counts_what_was_said_as_answer() -> None:
    usage = {"prompt_tokens": 20, "total_tokens": 25, "completion_tokens": 5, "prompt_tokens_details": None}
    mended = chunk_in(Seam(told(), "", 7).mend(encode({"choices": [], "usage": usage})))
    assert mended
    assert mended["usage"] == usage | {"prompt_tokens": 13, "completion_tokens": 12}


def test_a_prompt_is_as_long_as_was_told_at_first() -> None:
    first = told(usage={"prompt_tokens": 14, "total_tokens": 15, "completion_tokens": 1})
    usage = {"prompt_tokens": 20, "total_tokens": 25, "completion_tokens": 5}
    mended = chunk_in(Seam(first, "", 7).mend(encode({"choices": [], "usage": usage})))
    assert mended
    assert mended["usage"] == {"prompt_tokens": 14, "total_tokens": 25, "completion_tokens": 11}


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": 3}])
def test_usage_without_counts_passes(usage: object) -> None:
    event = encode({"choices": [], "usage": usage})
    assert Seam(told(), "", 7).mend(event) == event


def test_what_utf8_cannot_carry_is_escaped() -> None:
    assert json.loads(encode({"a": "\ud83d"})[6:]) == {"a": "\ud83d"}


def told(**facts: Any) -> Told:
    """What a client knows that has had the first chunk."""
    first = Told()
    first.note({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], **facts})
    return first


def chunk(text: str, finish: str | None = None, **facts: Any) -> bytes:
    return encode({**facts, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def text_of(events: list[bytes]) -> str:
    chunks = [found for event in events if (found := chunk_in(event))]
    return "".join(choice["delta"]["content"] or "" for found in chunks for choice in found["choices"])
