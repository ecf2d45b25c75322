"""What is told of a request that has ended: its outcome, its numbers, its line in the log."""

import asyncio

import pytest
import recordings

from vllmd.errors import (
    Cancelled,
    EngineFailed,
    EngineRefused,
    ModelNotFound,
    NotReady,
    Overloaded,
    StreamBroken,
    TooMany,
    VllmdError,
)
from vllmd.server import outcomes
from vllmd.server.ended import Ended, refused
from vllmd.server.last_words import NOTHING_SAID, TAIL_BYTES, LastWords, last_words
from vllmd.server.outcomes import Outcome
from vllmd.server.requestlog import sentence
from vllmd.sse import events_in

USAGE = b'"usage":{"prompt_tokens":34,"total_tokens":154,"completion_tokens":120}'


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (b"", NOTHING_SAID),
        (b"data: [DONE]\n\n", NOTHING_SAID),
        (b'{"choices":[{"finish_reason":"stop","stop_reason":null}],%b}' % USAGE, LastWords("stop", 34, 120)),
        (b'{"choices":[{"finish_reason": "length"}]}', LastWords("length")),
        (b'{"choices":[{"finish_reason":"stop","stop_reason":"halt"}]}', LastWords("stop")),
        (b'{"stop_reason":"max_tokens","usage":{"input_tokens":3,"output_tokens":5}}', LastWords("max_tokens", 3, 5)),
        (b'{"status":"incomplete","usage":{"input_tokens":3,"output_tokens":5}}', LastWords("incomplete", 3, 5)),
        (b'{"status":"completed"}', NOTHING_SAID),
        (b'{"choices":[{"delta":{"content":"\\"finish_reason\\":\\"length\\""},"finish_reason":null}]}', NOTHING_SAID),
        (b'{"object":"list","data":[],"usage":{"prompt_tokens":7,"completion_tokens":0}}', LastWords("", 7, 0)),
        (b'{"prompt_tokens":1e9,"completion_tokens":99999999999,"finish_reason":"\xff"}', NOTHING_SAID),
    ],
)
def test_the_end_of_an_answer_says_why_and_how_much(tail: bytes, words: LastWords) -> None:
    assert last_words(tail) == words


STREAMS = {name: stream for name, stream in recordings.streams().items() if b'"error"' not in stream}


@pytest.mark.parametrize("name", STREAMS)
def test_the_real_vllm_s_streams_say_why_they_end(name: str) -> None:
    last_three = b"".join(each[-TAIL_BYTES:] for each in events_in(STREAMS[name])[-3:])
    assert last_words(last_three) == last_words(b"".join(events_in(STREAMS[name])[-3:]))
    assert last_words(STREAMS[name][-TAIL_BYTES:]) == last_words(last_three), "also where it comes in one block"
    known = ("stop", "length", "tool_calls", "end_turn", "max_tokens", "incomplete", "")
    said = last_words(last_three)
    assert said.reason in known
    assert said.reason or b"response.completed" in last_three, last_three
    if b'usage"' in last_three and b'"usage":null' not in last_three:
        assert said.tokens_out is not None, last_three


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (ModelNotFound("x"), Outcome.REFUSED, 404),
        (Overloaded("x"), Outcome.OVERLOADED, 503),
        (TooMany("x"), Outcome.OVERLOADED, 429),
        (NotReady("x"), Outcome.UNAVAILABLE, 503),
        (EngineFailed("x"), Outcome.UNAVAILABLE, 503),
        (StreamBroken("x"), Outcome.ENGINE_ERROR, 502),
        (EngineRefused("x"), Outcome.ENGINE_ERROR, 502),
        (Cancelled("x"), Outcome.CANCELLED, 499),
        (VllmdError("x"), Outcome.INTERNAL_ERROR, 500),
        (KeyError("x"), Outcome.INTERNAL_ERROR, 500),
        (asyncio.CancelledError(), Outcome.LEFT, 499),
        (ConnectionResetError(), Outcome.LEFT, 499),
    ],
)
def test_every_error_is_an_outcome(error: BaseException, outcome: Outcome, status: int) -> None:
    assert (outcomes.of_error(error), outcomes.status_of(error)) == (outcome, status)


def test_an_error_of_the_engine_s_is_one_by_its_status() -> None:
    words = [outcomes.of_status(status).value for status in (400, 404, 429, 503, 500, 502)]
    assert words == ["refused", "refused", "overloaded", "overloaded", "engine_error", "engine_error"]


def test_what_ends_by_order_is_no_failure() -> None:
    changed = {each: outcomes.by_order(each) for each in Outcome if outcomes.by_order(each) is not each}
    assert changed == dict.fromkeys((Outcome.ENGINE_ERROR, Outcome.UNAVAILABLE), Outcome.CUT)


FINISHED = Ended("3f", "key:me", "tiny", "/v1/completions", Outcome.FINISHED, 200, "stop", 34, 120)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            FINISHED._replace(first_token_s=0.123, duration_s=2.104, tokens_per_s=57.3),
            "completions of key:me, tiny: 34 → 120 tokens in 2.10 s (queue 0.00 s, first token 0.12 s, 57/s), stop",
        ),
        (
            FINISHED._replace(tokens_in=None, queue_s=61.2, duration_s=99.9, replays=1, continuations=2),
            "completions of key:me, tiny: 120 tokens in 100 s (queue 61 s, sent again 1 ×, continued 2 ×), stop",
        ),
        (
            FINISHED._replace(outcome=Outcome.ENGINE_ERROR, status=502, reason="", tokens_in=None, tokens_out=0),
            "completions of key:me, tiny: 0 tokens in 0.00 s (queue 0.00 s), engine error, 502",
        ),
        (
            FINISHED._replace(path="/tokenize", reason=""),
            "/tokenize of key:me, tiny: 34 → 120 tokens in 0.00 s (queue 0.00 s), finished",
        ),
        (refused("3f", "uid:0", "/v1/embeddings", 404), "embeddings of uid:0: refused, 404"),
    ],
)
def test_a_record_in_words(record: Ended, line: str) -> None:
    assert sentence(record) == line
