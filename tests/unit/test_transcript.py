"""What is kept of a chat stream, what is asked of the next engine, and what stands in the way."""

import json
from typing import Any

import pytest
from continuing import ASKED, Engine
from fake_engine.knobs import Knobs

from vllmd.server.continuation import Transcript
from vllmd.server.seam import chunk_in
from vllmd.sse import events_in


def transcript_of(said: str, **request: Any) -> Transcript:
    transcript = Transcript(json.dumps(ASKED | request).encode(), 1 << 16)
    transcript.text += json.dumps(said)[1:-1].encode()
    transcript.tokens = len(said.split())
    return transcript


def test_the_partial_answer_is_appended_and_all_else_stays() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hé"}]},
        {"role": "assistant", "content": "Arr."},
        {"role": "user", "content": "More!"},
    ]
    request = {"messages": messages, "temperature": 0.5, "min_tokens": 3, "max_tokens": 9, "x-of-a-fork": 1.5}
    resumed = json.loads(transcript_of('Say "é"\n\n', **request).resume(4).body)
    assert resumed == ASKED | request | {
        "messages": [*messages, {"role": "assistant", "content": 'Say "é"'}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_tokens": 5,
        "min_tokens": 0,
    }


def test_at_least_one_token_is_left_and_no_limit_stays_none() -> None:
    resumed = json.loads(transcript_of("one two", max_tokens=2, max_completion_tokens=None).resume(None).body)
    assert (resumed["max_tokens"], resumed["max_completion_tokens"]) == (1, None)


@pytest.mark.parametrize("said", ["", " \n"])
def test_where_nothing_was_said_the_request_is_the_first_one(said: str) -> None:
    transcript = transcript_of(said, max_tokens=5)
    assert transcript.questions() == []
    assert transcript.judge([]) == 0
    assert transcript.resume(0).body == json.dumps(ASKED | {"max_tokens": 5}).encode()


# ── the chat template ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("knobs", "obstacle"),
    [
        (Knobs(template="think"), "the chat template changes an answer that is sent back"),
        (Knobs(template="refuse"), "the chat template takes no partial answer"),
    ],
)
def test_templates_that_cannot_go_on(knobs: Knobs, obstacle: str) -> None:
    transcript = transcript_of("tok0 tok1")
    transcript.judge([Engine(knobs).tokenize(question) for question in transcript.questions()])
    assert transcript.obstacle == obstacle


def test_the_template_gets_what_it_got_in_the_chat() -> None:
    of_the_template = {"chat_template_kwargs": {"a": 1}, "reasoning_effort": "low", "documents": [{"text": "x"}]}
    for question in transcript_of("tok0", **of_the_template).questions()[:2]:
        asked = json.loads(question)
        assert asked["chat_template_kwargs"] == {"a": 1, "reasoning_effort": "low", "documents": [{"text": "x"}]}


@pytest.mark.parametrize("word_start", ["▁", "Ġ", ""])
def test_tokenizers_that_put_something_before_a_text_alone(word_start: str) -> None:
    strings = [["<s>", "hi"], ["<s>", "hi", "Ċ", "a"], [f"{word_start}a"]]
    transcript = transcript_of("\na")
    answers = [json.dumps({"count": len(each), "token_strs": each}).encode() for each in strings]
    assert transcript.judge(answers) == 2
    assert not transcript.obstacle


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"detail":"Not Found"}', b'{"count":"many"}'])
def test_an_engine_that_does_not_count(answer: bytes) -> None:
    transcript = transcript_of("tok0")
    assert transcript.judge([answer] * 3) is None
    assert transcript.judge([]) is None
    assert not transcript.obstacle


def test_an_engine_that_counts_and_shows_no_tokens() -> None:
    transcript = transcript_of("tok0")
    assert transcript.judge([b'{"count":9}', b'{"count":10}', b'{"count":1}']) == 1
    assert not transcript.obstacle


# ── what is no plain text ────────────────────────────────────────────────────────────────────────────────────────────


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return f"data: {json.dumps({'id': 'x', 'choices': choices, **more})}\n\n".encode()


@pytest.mark.parametrize(
    ("strange", "obstacle"),
    [
        (event([{"index": 0, "delta": {"reasoning": "hm"}}]), "the answer has reasoning"),
        (event([{"index": 0, "delta": {"reasoning_content": "hm"}}]), "the answer has reasoning_content"),
        (event([{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]), "the answer has tool_calls"),
        (event([{"index": 0, "delta": {"refusal": "no"}}]), "the answer has refusal"),
        (event([{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]), "the answer has logprobs"),
        (event([{"index": 0, "delta": {}, "token_ids": [1]}]), "the answer has token_ids"),
        (event([{"index": 1, "delta": {"content": "a"}}]), "the answer is one of several"),
        (event([{"index": 0}, {"index": 1}]), "the answer is one of several"),
        (b'data: {"id":\n\n', "an event was no chunk of a chat completion"),
        (b'data: {"choices":[3]}\n\n', "an event was no chunk of a chat completion"),
    ],
)
def test_what_is_no_plain_text_is_an_obstacle(strange: bytes, obstacle: str) -> None:
    transcript = transcript_of("a")
    transcript.take(strange)
    assert transcript.obstacle == obstacle
    seam = transcript_of("a").resume(1).seam
    if chunk_in(strange):
        assert seam.mend(strange) == b""
        assert seam.fault == obstacle


def test_comments_and_endings_are_no_obstacle() -> None:
    transcript = transcript_of("a")
    for harmless in events_in(b": keep-alive\n\ndata: [DONE]\n\n" + event([], usage={"prompt_tokens": 3})):
        transcript.take(harmless)
    assert not transcript.obstacle
    assert not transcript.is_finished


def test_too_long_a_text_is_given_up() -> None:
    transcript = Transcript(json.dumps(ASKED).encode(), 4)
    transcript.text += b"four"
    transcript.mind_the_bound()
    assert not transcript.obstacle
    for _ in range(2):  # the relay may not have noticed at once
        transcript.text += b"!"
        transcript.mind_the_bound()
        assert transcript.obstacle.startswith("more than 4 bytes")
        assert not transcript.text


@pytest.mark.parametrize("halves", [(b"\\ud83d", b"\\ude00"), (b"\\ud83d\\ude00", b""), ("😀".encode(), b"")])
def test_a_character_in_halves(halves: tuple[bytes, bytes]) -> None:
    transcript = transcript_of("")
    for half in halves:
        transcript.take(b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half)
    assert transcript.said() == "😀"


def test_half_a_character_does_not_break_the_request() -> None:
    transcript = transcript_of("a")
    transcript.text += b"\\ud83d"
    assert json.loads(transcript.resume(1).body)["messages"][-1]["content"] == "a\ufffd"
