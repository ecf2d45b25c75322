"""Where a stream ends, and whether it ended well: in recordings of vLLM, and in what only looks like it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import last_events, streams

from vllmd import sse
from vllmd.errors import EngineFailed, NotReady, StreamBroken
from vllmd.server.endings import Fault, Reading, aborted, error_event, read, refusal
from vllmd.wire import error_body

RECORDED = streams()
REFUSED = RECORDED.pop("ERROR bad json schema")
CHAT = RECORDED["chat stream, include_usage"]
COMPLETIONS = RECORDED["completions stream, include_usage"]
MESSAGES = RECORDED["anthropic messages stream"]
RESPONSES = RECORDED["responses API stream"]
DIALECTS = {"chat": CHAT, "completions": COMPLETIONS, "messages": MESSAGES, "responses": RESPONSES}

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
STOPPED = "the engine was stopped before the answer was complete"


def read_all(blocks: list[bytes]) -> tuple[bytes, Reading]:
    """What is kept of a stream, and the last reading: as the relay does it."""
    kept = b""
    for block in blocks:
        reading = read(block)
        kept += reading.kept
        if reading.done or reading.fault:
            return kept, reading
    return kept, reading


def event(data: object, name: str = "") -> bytes:
    return sse.encode(json.dumps(data, ensure_ascii=False, separators=(",", ":")), name)


def chunk(text: str, **choice: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, **choice}]})


# ── streams that end well ──


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_passes_unchanged_and_ends_with_its_last_event(name: str) -> None:
    stream = RECORDED[name]
    assert read(stream) == Reading(stream, done=True)
    *before, last = sse.events_in(stream)
    assert all(read(each) == Reading(each) for each in before)
    assert read(last) == Reading(last, done=True)


@given(st.sampled_from(sorted(RECORDED)), st.sets(st.integers(0, 40)))
def test_however_its_events_arrive_the_stream_passes_unchanged(name: str, cuts: set[int]) -> None:
    events = sse.events_in(RECORDED[name])
    borders = sorted({0, len(events), *(each % len(events) for each in cuts)})
    blocks = [b"".join(events[start:end]) for start, end in pairwise(borders)]
    kept, last = read_all(blocks)
    assert (kept, last.done, last.fault) == (RECORDED[name], True, None)


def test_every_dialect_has_its_own_last_event() -> None:
    last = {name: sse.events_in(stream)[-1].splitlines()[0] for name, stream in DIALECTS.items()}
    assert last == {
        "chat": b"data: [DONE]",
        "completions": b"data: [DONE]",
        "messages": b"event: message_stop",
        "responses": b"event: response.completed",
    }


@pytest.mark.parametrize("name", ["response.incomplete", "response.failed", "response.completed", "message_stop"])
def test_other_last_events(name: str) -> None:
    last = event({"type": name, "response": {"status": "failed"}}, name)
    assert read(last) == Reading(last, done=True)


def test_what_follows_the_last_event_is_not_passed_on() -> None:
    done = b"data: [DONE]\n\n"
    assert read(chunk("a") + done + chunk("b") + done) == Reading(chunk("a") + done, done=True)


# ── streams that end badly ──


@pytest.mark.parametrize("fault", ["kill9-engine", "kill9-worker"])
def test_a_recorded_death_is_a_fault_and_its_done_is_not_passed_on(fault: str) -> None:
    error = {"message": DEAD, "type": "InternalServerError", "param": None, "code": 500}
    assert read(chunk("a") + last_events(fault)) == Reading(
        chunk("a"), fault=Fault(500, DEAD, json.dumps({"error": error}).encode())
    )


def test_a_recorded_abort_is_a_fault_and_its_done_is_not_passed_on() -> None:
    reading = read(chunk("a") + last_events("term0"))
    assert (reading.kept, reading.done) == (chunk("a"), False)
    assert reading.fault is not None
    assert (reading.fault.status, reading.fault.message) == (502, STOPPED)
    assert json.loads(reading.fault.body) == error_body(StreamBroken(STOPPED, "ask again"))


def test_a_recorded_refusal_inside_the_stream_keeps_its_status() -> None:
    message = "Grammar error: Invalid type: nonsense"
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    assert read(REFUSED) == Reading(b"", fault=Fault(400, message, json.dumps({"error": error}).encode()))


ABORTED = {
    "chat": CHAT.replace(b'"finish_reason":"length"', b'"finish_reason":"abort"'),
    "completions": COMPLETIONS.replace(b'"finish_reason":"length"', b'"finish_reason":"abort"'),
    "messages": MESSAGES.replace(b'"stop_reason":"max_tokens"', b'"stop_reason":null'),
    "messages, without the key": MESSAGES.replace(b'"stop_reason":"max_tokens",', b""),
    "responses": RESPONSES.replace(b'"status":"incomplete"', b'"status":"cancelled"'),
}


@pytest.mark.parametrize("dialect", ABORTED)
def test_an_aborted_answer_is_a_fault_in_every_dialect(dialect: str) -> None:
    stream = ABORTED[dialect]
    assert stream != DIALECTS[dialect.partition(",")[0]]
    kept, last = read_all(sse.events_in(stream))
    assert last.fault is not None
    assert last.fault.message == STOPPED
    assert stream.startswith(kept)
    assert not any(each in kept for each in (b"[DONE]", b"message_stop", b"response.completed"))


ERRORS = {
    "chat": event({"error": {"message": "no", "code": 500}}),
    "messages": event({"type": "error", "error": {"type": "internal_error", "message": "no"}}, "error"),
    "responses": event({"type": "error", "code": "500", "message": "no", "sequence_number": 4}, "error"),
}


@pytest.mark.parametrize("dialect", ERRORS)
def test_an_error_event_is_a_fault_in_every_dialect(dialect: str) -> None:
    first = sse.events_in(DIALECTS[dialect])[0]
    reading = read(first + ERRORS[dialect] + b"data: [DONE]\n\n")
    assert reading.kept == first
    assert reading.fault is not None
    assert (reading.fault.status, reading.fault.message) == (500, "no")


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), ("404", 404), (503, 503), (None, 500), (200, 500), ("boom", 500), (True, 500), (4000, 500)],
)
def test_the_status_is_the_engines_where_it_names_one(code: object, status: int) -> None:
    fault = read(event({"error": {"message": "no", "code": code}})).fault
    assert fault is not None
    assert fault.status == status


def test_an_error_without_words_gets_some() -> None:
    for error in ({}, {"message": None}, {"message": ""}):
        fault = read(event({"error": error})).fault
        assert fault is not None
        assert fault.message == "the engine reported an error"


def test_one_aborted_choice_of_several_is_a_fault() -> None:
    choices = [{"index": 0, "finish_reason": "stop"}, {"index": 1, "finish_reason": "abort"}]
    assert read(event({"choices": choices})).fault is not None


# ── what only looks like an ending ──

INNOCENT = [
    "[DONE]",
    "data: [DONE]",
    "data: [DONE]\n\n",
    '"error"',
    "abort",
    '"abort"',
    '{"error": {"message": "no", "code": 500}}',
    '"finish_reason":"abort"',
    "message_stop",
    "event: message_stop\n\n",
    '{"type":"error"}',
    '{"type":"message_delta","delta":{}}',
    "response.completed",
    '{"response":{"status":"cancelled"}}',
]


def sayings(text: str) -> list[bytes]:
    """A model that says `text`, in each dialect."""
    return [
        chunk(text),
        chunk(text, logprobs={"content": [{"token": text, "logprob": -1.0}]}),
        event({"choices": [{"index": 0, "delta": {"reasoning": text}, "finish_reason": None}]}),
        event({"choices": [{"delta": {"tool_calls": [{"function": {"name": text, "arguments": text}}]}}]}),
        event({"object": "text_completion", "choices": [{"text": text, "stop_reason": text, "finish_reason": "stop"}]}),
        event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}, "content_block_delta"),
        event({"type": "response.output_text.delta", "delta": text}, "response.output_text.delta"),
        event({"type": "response.output_text.done", "text": text}, "response.output_text.done"),
        sse.comment(text),
    ]


@pytest.mark.parametrize("text", INNOCENT)
def test_what_a_model_says_is_no_ending(text: str) -> None:
    for saying in sayings(text):
        assert read(saying) == Reading(saying), saying


@given(st.lists(st.sampled_from(INNOCENT) | st.text(max_size=5), max_size=4).map("".join))
def test_whatever_a_model_says_is_no_ending(text: str) -> None:
    block = b"".join(sayings(text))
    assert read(block) == Reading(block)


@pytest.mark.parametrize(
    "data",
    [
        "{",
        '{"error": ',
        '"error"',
        '["error"]',
        '{"error": null}',
        '{"error": "a word"}',
        '{"choices": "abort"}',
        '{"choices": ["abort"]}',
        '{"choices": null, "x": "abort"}',
        '{"type": "message_delta"}',
        '{"response": "response.completed"}',
        '{"error": ' + "[" * 100_000,
        "[DONE] and more",
        "",
    ],
)
def test_what_cannot_be_understood_passes(data: str) -> None:
    block = sse.encode(data)
    assert read(block) == Reading(block)


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b'"error"', b"[DONE]", b"data: ", b"\n", b"{}"])))
def test_whatever_bytes_come_a_prefix_of_them_passes(parts: list[bytes]) -> None:
    block = sse.Splitter().feed(b"".join(parts) + b"\n\n")
    reading = read(block)
    assert block.startswith(reading.kept)
    assert reading.kept == block or reading.done or reading.fault


def test_nothing_is_nothing() -> None:
    assert read(b"") == Reading(b"")


# ── answers in one piece ──

MESSAGE = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "abort"}]}
WHOLE: list[dict[str, Any]] = [
    {"object": "chat.completion", "choices": [{"message": {"content": '"abort"'}, "finish_reason": "stop"}]},
    {"object": "chat.completion", "choices": [{"message": {"content": "abort"}, "finish_reason": "length"}]},
    {"object": "text_completion", "choices": [{"text": "cancelled", "finish_reason": "stop", "stop_reason": None}]},
    {**MESSAGE, "stop_reason": "end_turn"},
    {"object": "response", "status": "completed", "output": [{"text": "cancelled"}], "stop_reason": None},
    {"object": "response", "status": "incomplete"},
    {"object": "list", "data": [{"embedding": [0.1]}]},
]
BROKEN_OFF: list[dict[str, Any]] = [
    {"object": "chat.completion", "choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]},
    {"object": "chat.completion", "choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}]},
    {"object": "text_completion", "choices": [{"text": "a", "finish_reason": "abort"}]},
    {**MESSAGE, "stop_reason": None},
    {"object": "response", "status": "cancelled"},
]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_whole_answer_that_was_broken_off_is_a_fault(separators: tuple[str, str]) -> None:
    for table in WHOLE:
        assert aborted(json.dumps(table, separators=separators).encode()) is None, table
    for table in BROKEN_OFF:
        fault = aborted(json.dumps(table, separators=separators).encode())
        assert fault is not None, table
        assert (fault.status, fault.message) == (502, STOPPED)
        assert json.loads(fault.body) == error_body(StreamBroken(STOPPED, "ask again"))


@pytest.mark.parametrize(
    "body", [b"", b'"abort"', b'["cancelled"]', b'{"abort"', b'"abort"\xff', b'"stop_reason":null']
)
def test_a_whole_answer_that_cannot_be_understood_is_none(body: bytes) -> None:
    assert aborted(body) is None


# ── errors before any stream, and vllmd's own ──


def test_a_refusal_keeps_its_body_and_tells_its_message() -> None:
    body = b'{"error":{"message":"temperature must be non-negative","code":400}}'
    assert refusal(400, body) == Fault(400, "temperature must be non-negative", body)
    for odd in (b"", b"<html>", b"[]", b'{"error":"no"}', b'{"error":{}}', b"\xff"):
        assert refusal(502, odd) == Fault(502, "the engine answered 502", odd)


ERROR = EngineFailed("m failed: it hung\nbadly", "see: vllmctl status")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/anything"])
def test_vllmds_own_error_event_as_openais_clients_read_it(path: str) -> None:
    (found,) = sse.decode(error_event(path, ERROR))
    assert (found.event, json.loads(found.data)) == ("message", error_body(ERROR))


def test_vllmds_own_error_event_as_anthropics_clients_read_it() -> None:
    (found,) = sse.decode(error_event("/v1/messages", ERROR))
    assert (found.event, json.loads(found.data)) == ("error", {"type": "error", **error_body(ERROR)})


def test_vllmds_own_error_event_on_responses() -> None:
    (found,) = sse.decode(error_event("/v1/responses", ERROR))
    body = error_body(ERROR)["error"]
    assert (found.event, json.loads(found.data)) == ("error", {**body, "type": "error", "sequence_number": 0})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_vllmd_recognises_its_own_error_events(path: str) -> None:
    fault = read(error_event(path, NotReady("m is not ready"))).fault
    assert fault is not None
    assert fault.message == "m is not ready"
