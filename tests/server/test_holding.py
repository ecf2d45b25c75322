"""While the engine loads or is replaced, requests are held; and bounded in number and in time (promises 5 and 6)."""

import asyncio
import os
import re
import signal
import time
from typing import Any

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon
from waiting import until

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
KINDS = ((CHAT, STREAM), (CHAT, HELLO), (PROMPT, {"prompt": "x"}), (PROMPT, {"prompt": "x", "stream": False}))
NEVER: dict[str, Any] = {"start_end": "never"}
"""An engine that starts and does not become ready, until it is told otherwise and restarted."""


async def hold(daemon: Daemon, count: int) -> None:
    await until(lambda: daemon.model().held == count, f"{count} requests to be held")


async def test_requests_during_the_start_are_held_and_answered(start: Start) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 0.7})
    assert daemon.model().state == "starting"
    answers = await asyncio.gather(*(daemon.unix.ask(path, body) for path, body in KINDS))
    for answer in answers:
        assert answer.status == 200
        assert answer.whole
        assert b"tok15" in answer.body
        assert not re.search(rb"^:", answer.body, re.MULTILINE), "no comment before queue.status_after_s"
    assert len(daemon.requests()) == len(KINDS)


async def test_held_requests_are_counted_and_then_run(start: Start) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 0.7, "tokens_per_s": 40})
    asked = [asyncio.create_task(daemon.unix.ask(path, body)) for path, body in KINDS]
    await hold(daemon, len(KINDS))
    assert daemon.model().running == 0
    await until(lambda: daemon.model().running == len(KINDS), "them to run")
    assert daemon.model().held == 0
    await asyncio.gather(*asked)
    done = asked[2].result().events[-1].json()
    assert done["timings"]["queue_s"] > 0.1


async def test_a_held_stream_is_told_about_once_a_second_how_far_the_model_is(start: Start) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 2.4}, queue={"status_after_s": 0.5})
    began = time.monotonic()
    streams = await asyncio.gather(*(daemon.unix.open(path, body) for path, body in (KINDS[0], KINDS[2])))
    for stream in streams:
        await stream.until(b":")
        assert time.monotonic() - began >= 0.5, "comments begin only after queue.status_after_s"
        assert stream.status == 200
        assert stream.header("content-type") == "text/event-stream"
    for stream in streams:
        await stream.end()
        await stream.leave()
        comments = [each.comment for each in stream.events if each.comment and each.comment != "ping"]
        assert 2 <= len(comments) <= 6, comments
        for comment in comments:
            assert re.fullmatch(r"starting, [a-z ]+( \d+ %)?, \d+ s", comment), comment
        assert stream.whole
        assert b"tok15" in stream.body


async def test_what_is_no_stream_gets_no_comments_and_so_keeps_its_status(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER, queue={"status_after_s": 0, "wait_s": 1.3})
    embeddings = ("/v1/embeddings", {"input": "x", "stream": True})
    for answer in await asyncio.gather(*(daemon.unix.ask(*kind) for kind in (KINDS[1], KINDS[3], embeddings))):
        assert (answer.status, answer.error["code"]) == (503, "not_ready")


async def test_a_client_that_does_not_want_to_wait_gets_503_at_once(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER)
    for path, body in KINDS:
        for value in ("0", " 0 "):
            answer = await daemon.unix.ask(path, body, headers={"X-Vllmd-Wait": value})
            assert (answer.status, answer.error["code"], answer.error["source"]) == (503, "not_ready", "vllmd")
            assert "starting" in answer.error["message"]
            assert int(answer.header("retry-after")) > 0
    assert not daemon.requests()


async def test_a_client_is_told_not_to_ask_before_the_next_try(start: Start) -> None:
    pause = {"backoff_initial_s": 600, "backoff_max_s": 600}
    daemon = start(ready=False, knobs={"start_end": "exit:1"}, supervision=pause)
    daemon.wait_for("backoff")
    answer = await daemon.unix.ask(*KINDS[0], headers={"X-Vllmd-Wait": "0"})
    assert (answer.status, answer.header("retry-after")) == (503, "60")
    assert (await daemon.unix.ask("/ready")).header("retry-after") == "60"
    daemon.control()
    assert daemon.order("restart", wait=True)[0] == 200
    daemon.control(**NEVER)
    daemon.order("restart")
    daemon.wait_for("starting")
    answer = await daemon.unix.ask(*KINDS[0], headers={"X-Vllmd-Wait": "0"})
    assert 0 < int(answer.header("retry-after")) < 60, "the pause is over"


async def test_waiting_ends_after_wait_s(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER, queue={"wait_s": 0.3})
    for path, body in KINDS:
        answer = await daemon.unix.ask(path, body)
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert "waited 0.3 s for tiny: starting" in answer.error["message"]
        assert int(answer.header("retry-after")) > 0


async def test_waiting_that_has_been_told_of_ends_with_an_error_event(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER, queue={"wait_s": 1.3, "status_after_s": 0.1})
    for answer in await asyncio.gather(daemon.unix.ask(*KINDS[0]), daemon.unix.ask(*KINDS[2])):
        assert answer.status == 200
        assert answer.cut
        last = answer.events[-1]
        assert last.json()["error"]["code"] == "not_ready"
        assert b"[DONE]" not in answer.body
        assert b"event: done" not in answer.body


async def test_one_more_than_the_queue_takes_is_refused(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER, queue={"limit": 3})
    held = [asyncio.create_task(daemon.unix.ask(path, body)) for path, body in KINDS[:3]]
    await hold(daemon, 3)
    for path, body in KINDS:
        answer = await daemon.unix.ask(path, body)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.header("retry-after")) > 0
    daemon.control()
    daemon.order("restart")
    for task in held:
        assert (await task).status == 200
    assert (await daemon.unix.ask(*KINDS[0])).status == 200


async def test_a_limit_of_none_holds_nobody(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER, queue={"limit": 0})
    assert (await daemon.unix.ask(*KINDS[0])).error["code"] == "overloaded"


async def test_a_failed_engine_is_told_of_with_the_verdict_s_reason(start: Start) -> None:
    last = "ValueError: The model's max seq len (4096) is larger than the maximum number of tokens"
    knobs = {"start_end": "exit:1", "start_at": 0.3, "start_last": last}
    daemon = start(ready=False, knobs=knobs, supervision={"restart_limit": 0})
    held = await daemon.unix.ask(*KINDS[0])
    daemon.wait_for("failed")
    model = daemon.model()
    assert model.cause
    assert model.reason
    for answer in (held, *[await daemon.unix.ask(path, body) for path, body in KINDS]):
        assert (answer.status, answer.error["code"]) == (503, "engine_failed")
        assert answer.error["source"] == "vllmd"
        assert model.reason in answer.error["message"]
        assert answer.error["hint"]


async def test_held_streams_that_were_told_to_wait_hear_of_the_failure(start: Start) -> None:
    knobs = {"start_end": "exit:1", "ready_after_s": 1.2, "start_last": "ValueError: no such thing"}
    daemon = start(ready=False, knobs=knobs, supervision={"restart_limit": 0}, queue={"status_after_s": 0})
    for answer in await asyncio.gather(daemon.unix.ask(*KINDS[0]), daemon.unix.ask(*KINDS[2])):
        assert answer.status == 200
        assert answer.events[0].comment
        assert answer.events[-1].json()["error"]["code"] == "engine_failed"
        assert answer.cut


async def test_an_unloaded_model_is_not_waited_for(start: Start) -> None:
    daemon = start()
    assert daemon.order("unload", wait=True)[0] == 200
    for path, body in KINDS:
        answer = await daemon.unix.ask(path, body)
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert "not loaded" in answer.error["message"]
        assert "load" in answer.error["hint"]
    daemon.order("load", wait=True)
    assert (await daemon.unix.ask(*KINDS[0])).whole


async def test_an_unload_ends_the_waiting(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER)
    held = [asyncio.create_task(daemon.unix.ask(path, body)) for path, body in KINDS]
    await hold(daemon, len(KINDS))
    daemon.order("unload", wait=True)
    for task in held:
        assert ((await task).status, (await task).error["code"]) == (503, "not_ready")


async def test_requests_are_held_while_a_crashed_engine_is_replaced(start: Start) -> None:
    daemon = start(knobs={})
    daemon.control(ready_after_s=0.5)
    os.kill(daemon.engine_pid, signal.SIGKILL)
    await until(lambda: daemon.model().state != "ready", "the crash to be seen")
    answers = await asyncio.gather(*(daemon.tcp.ask(path, body) for path, body in KINDS))
    assert [answer.status for answer in answers] == [200] * len(KINDS)


async def test_a_hundred_held_requests_are_all_served(start: Start) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 0.5})
    asked = [daemon.unix.ask(*KINDS[number % len(KINDS)]) for number in range(100)]
    answers: list[Exchange] = await asyncio.gather(*asked)
    assert all(answer.whole and b"tok15" in answer.body for answer in answers)


async def test_ready_and_health_say_what_they_mean(start: Start) -> None:
    daemon = start(ready=False, knobs=NEVER)
    assert (await daemon.tcp.ask("/health")).status == 200
    answer = await daemon.tcp.ask("/ready")
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    daemon.control()
    daemon.order("restart", wait=True)
    assert (await daemon.tcp.ask("/ready")).json() == {"status": "ready", "model": "tiny"}


@pytest.mark.parametrize(("part", "phase", "percent"), [(0.36, "loading weights", 43), (0.5, "compiling", None)])
async def test_the_status_shows_phase_and_percent_of_a_start(
    start: Start, part: float, phase: str, percent: int | None
) -> None:
    daemon = start(ready=False, knobs={"start_end": "never", "start_at": part})
    await until(lambda: (daemon.model().phase, daemon.model().percent) == (phase, percent), f"the phase {phase}")
    assert daemon.model().state == "starting"
    assert daemon.model().pid
    daemon.order("unload", wait=True)
    assert daemon.model().phase is None
    assert daemon.model().pid is None
