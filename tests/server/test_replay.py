"""A request of which nothing has come out survives the death of its engine (promise 5)."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon
from waiting import descendants, until

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": (CHAT, {**HELLO, "stream": True}),
    "whole": (CHAT, HELLO),
    "text": (PROMPT, {"prompt": "x"}),
    "json": (PROMPT, {"prompt": "x", "stream": False}),
    "messages": ("/v1/messages", {**HELLO, "max_tokens": 64, "stream": True}),
    "responses": ("/v1/responses", {"input": "x", "stream": True}),
}


TELLING = ("stream", "whole", "text", "json")
"""Those to which vLLM tells in one event that it was stopped. On /v1/responses it calls that completed."""


async def ask_all(daemon: Daemon) -> list[asyncio.Task[Exchange]]:
    """All kinds of requests, and they have reached the engine."""
    daemon.forget()
    asked = [asyncio.create_task(daemon.unix.ask(path, body)) for path, body in REQUESTS.values()]
    await until(lambda: len(daemon.requests()) == len(REQUESTS), "the engine to have every request")
    return asked


def leader(daemon: Daemon) -> int:
    return daemon.engine_pid


def core(daemon: Daemon) -> int:
    """The child of the leader that vLLM calls EngineCore."""
    below = descendants(daemon.engine_pid)
    return next(pid for pid in below if Path(f"/proc/{pid}/comm").read_text() == "VLLM::EngineCor\n")


async def replaced(daemon: Daemon, generation: int) -> None:
    await until(lambda: daemon.model().generation == generation, "the engine to be replaced")


def guard(daemon: Daemon) -> int:
    """vllmd's own child, the parent of the leader."""
    return int(Path(f"/proc/{daemon.engine_pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", [leader, core, guard], ids=["leader", "core", "guard"])
async def test_a_silent_request_survives_kill_9(start: Start, victim: Any) -> None:
    daemon = start(knobs={"tree": 1})
    daemon.control(tree=1, prefill_s=30)
    asked = await ask_all(daemon)
    daemon.control(tree=1)
    os.kill(victim(daemon), signal.SIGKILL)
    for name, task in zip(REQUESTS, asked, strict=True):
        answer = await task
        assert answer.status == 200, (name, answer.body)
        assert answer.whole, (name, answer.body)
        assert b"tok15" in answer.body, name
        assert b"error" not in answer.body.replace(b'"error":null', b""), name
    assert daemon.model().generation == 2
    assert daemon.model().restarts == 1


async def test_a_silent_request_survives_a_sigterm_from_elsewhere(start: Start) -> None:
    daemon = start()
    daemon.control(prefill_s=30)
    asked = await ask_all(daemon)
    daemon.control()
    os.kill(daemon.engine_pid, signal.SIGTERM)
    for name, task in zip(REQUESTS, asked, strict=True):
        answer = await task
        if name in TELLING:
            assert answer.whole, (name, answer.body)
            assert b"tok15" in answer.body, name


async def test_a_silent_request_survives_an_operator_s_restart(start: Start) -> None:
    daemon = start(supervision={"stop_timeout_s": 0.3})
    daemon.control(prefill_s=30, term="hang")
    asked = await ask_all(daemon)
    daemon.control()
    assert (await daemon.unix.ask("/api/models/tiny/restart", b"")).status == 202
    for name, task in zip(REQUESTS, asked, strict=True):
        answer = await task
        if name in TELLING:
            assert answer.whole, (name, answer.body)
            assert b"tok15" in answer.body, name
    assert daemon.model().restarts == 0, "an operator's restart is no crash"


async def test_an_answer_that_has_begun_is_not_begun_again(start: Start) -> None:
    daemon = start(knobs={"tokens_per_s": 5, "tokens": 100}, replay={"continuation": False})
    body = {**HELLO, "stream": True}
    async with daemon.unix.stream(CHAT, body) as stream, daemon.unix.stream(PROMPT, {"prompt": "x"}) as text:
        await asyncio.gather(stream.until(b"tok1"), text.until(b"tok1"))
        os.kill(daemon.engine_pid, signal.SIGKILL)
        await asyncio.gather(stream.end(), text.end())
    for answer in (stream, text):
        assert answer.cut
        assert answer.body.count(b"tok0") == 1
        assert b'"source": "engine"' in answer.body
    daemon.wait_for("ready")
    assert len(daemon.requests()) == 2, "neither was sent again"


async def test_a_whole_answer_under_way_is_sent_again(start: Start) -> None:
    daemon = start(knobs={"tokens_per_s": 5, "tokens": 100})
    asked = asyncio.create_task(daemon.unix.ask(CHAT, HELLO))
    await until(lambda: daemon.requests(), "the request to be there")
    daemon.control()
    os.kill(daemon.engine_pid, signal.SIGKILL)
    assert (await asked).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("limit", [0, 2])
async def test_it_is_sent_again_so_many_times_and_then_502(start: Start, limit: int) -> None:
    # Every engine dies of the request; the health check passes, as it is the first one of each engine.
    knobs = {"fault": "cut", "fault_request": 2, "fault_exit": "SIGKILL"}
    daemon = start(knobs=knobs, replay={"limit": limit}, supervision={"restart_limit": 10})
    for path, body in (REQUESTS["stream"], REQUESTS["json"])[: 2 - limit // 2]:
        daemon.forget()
        engines = daemon.model().generation
        answer = await daemon.unix.ask(path, body)
        assert answer.status == 502, answer.body
        assert answer.error["code"] == "engine_error"
        assert answer.error["source"] == "engine"
        assert answer.error["message"]
        assert len(daemon.requests()) == limit + 1
        await replaced(daemon, engines + limit + 1)
        daemon.wait_for("ready")


async def test_a_replayed_stream_that_has_been_told_to_wait_ends_honestly(start: Start) -> None:
    knobs = {"fault": "cut", "fault_request": 2, "fault_exit": "SIGKILL"}
    daemon = start(
        knobs={**knobs, "ready_after_s": 1},
        ready=False,
        queue={"status_after_s": 0},
        replay={"limit": 0},
        supervision={"restart_limit": 10},
    )
    answer = await daemon.unix.ask(*REQUESTS["stream"])
    assert answer.status == 200
    assert answer.cut
    assert answer.events[0].comment
    assert answer.events[-1].json()["error"]["code"] == "engine_error"


async def test_a_client_that_does_not_want_to_wait_is_not_replayed(start: Start) -> None:
    daemon = start()
    daemon.control(prefill_s=30)
    path, body = REQUESTS["whole"]
    asked = asyncio.create_task(daemon.unix.ask(path, body, headers={"x-vllmd-wait": "0"}))
    await until(lambda: daemon.requests(), "the request to be there")
    daemon.control(ready_after_s=2)
    os.kill(daemon.engine_pid, signal.SIGKILL)
    answer = await asked
    assert (answer.status, answer.error["code"]) == (503, "not_ready")


async def test_many_requests_survive_a_crash_together(start: Start) -> None:
    daemon = start()
    daemon.control(prefill_s=30)
    asked = [asyncio.create_task(daemon.unix.ask(CHAT, {**HELLO, "stream": n % 2 == 0})) for n in range(60)]
    await until(lambda: len(daemon.requests()) == 60, "all requests to be there")
    daemon.control()
    os.kill(daemon.engine_pid, signal.SIGKILL)
    more = [asyncio.create_task(daemon.unix.ask(CHAT, {**HELLO, "stream": n % 2 == 0})) for n in range(60)]
    for task in asked + more:
        answer = await task
        assert answer.whole, answer.body
        assert b"tok15" in answer.body
