"""More requests than an engine takes at once: they wait in vllmd, in turns, and none is lost or answered twice."""

import asyncio
import os
import signal
from collections import Counter
from typing import Any

import pytest
from asking import Door, Exchange
from conftest import Start
from daemons import Daemon
from waiting import until

CHAT = "/v1/chat/completions"
HANGS: dict[str, Any] = {"fault": "hang"}
"""Answers stop before their first token, until the knobs are set anew."""


def hello(content: str = "hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def ask(door: Door, content: str, **more: Any) -> "asyncio.Task[Exchange]":
    return asyncio.create_task(door.ask(CHAT, hello(content, **more)))


def contents(daemon: Daemon) -> list[str]:
    """What the engine was asked, in the order in which it came there."""
    return [each["body"]["messages"][0]["content"] for each in daemon.requests()]


async def counts(daemon: Daemon, running: int, held: int) -> None:
    def now() -> tuple[int, int]:
        model = daemon.model()
        return model.running, model.held

    await until(lambda: now() == (running, held), f"{running} requests to run and {held} to wait")


async def full(start: Start, held: int = 0, *, running: int = 2, **how: Any) -> tuple[Daemon, list[Any]]:
    """A daemon whose engine has all that it takes at once, all from TCP, while so many more wait.

    What runs at the same time comes to the engine in any order: whoever asks for that order lets one run at once.
    """
    daemon = start(args={"max-num-seqs": running}, **how)
    daemon.control(**HANGS)
    asked = []
    for number in range(running + held):  # one by one, so that their order is known
        asked.append(ask(daemon.tcp, f"hog {number}"))
        await counts(daemon, min(number + 1, running), max(0, number + 1 - running))
    return daemon, asked


async def test_one_request_does_not_wait_for_a_client_s_hundred(start: Start) -> None:
    daemon, hogs = await full(start, running=1)
    hogs += [ask(daemon.tcp, f"more {number}") for number in range(99)]
    await counts(daemon, 1, 99)
    assert len(daemon.requests()) == 1, "the rest waits in vllmd"
    one = ask(daemon.unix, "one")
    await counts(daemon, 1, 100)
    daemon.control()
    assert (await one).status == 200
    assert {(await hog).status for hog in hogs} == {200}
    assert contents(daemon).index("one") == 2, "after the one that ran, and the one whose turn it was"


async def test_an_identity_s_own_requests_go_in_order_of_arrival(start: Start) -> None:
    daemon, asked = await full(start, held=5, running=1)
    daemon.control()
    await asyncio.gather(*asked)
    assert contents(daemon) == [f"hog {number}" for number in range(6)]


async def test_an_engine_that_becomes_ready_gets_as_many_as_it_takes_at_once(start: Start) -> None:
    knobs = {"ready_after_s": 0.5, "fault": "hang", "fault_request": 2}  # the first is vllmd's own health check
    daemon = start(ready=False, args={"max-num-seqs": 3}, knobs=knobs)
    asked = [ask(daemon.unix, "x") for _ in range(10)]
    await counts(daemon, 3, 7)
    daemon.control()
    assert {(await each).status for each in asked} == {200}


async def test_the_limit_without_max_num_seqs_is_the_queue_s(start: Start) -> None:
    daemon = start(queue={"running": 2})
    daemon.control(**HANGS)
    asked = [ask(daemon.unix, "x") for _ in range(5)]
    await counts(daemon, 2, 3)
    daemon.control()
    await asyncio.gather(*asked)


async def test_a_thousand_requests_are_each_answered_once(start: Start) -> None:
    daemon = start(args={"max-num-seqs": 16}, queue={"limit": 1000})
    asked = [ask((daemon.tcp, daemon.unix)[number % 3 == 0], str(number)) for number in range(1000)]
    for each in asked:
        answer = await each
        assert answer.status == 200
        assert b"tok15" in answer.body
    assert Counter(contents(daemon)) == Counter(map(str, range(1000)))
    running = most = 0
    for entry in daemon.journal():
        running += {"request": 1, "end": -1}.get(entry["event"], 0)
        most = max(most, running)
    assert most <= 16
    await counts(daemon, 0, 0)


# ── a full queue ──


async def test_a_full_queue_refuses_the_one_who_fills_it(start: Start) -> None:
    daemon, asked = await full(start, held=3, running=1, queue={"limit": 3})
    alone = await daemon.tcp.ask(CHAT, hello())
    assert (alone.status, alone.error["code"]) == (503, "overloaded"), "nobody else waits"
    one = ask(daemon.unix, "one")
    for refused in (await asked.pop(), await daemon.tcp.ask(CHAT, hello())):
        assert (refused.status, refused.error["code"]) == (429, "too_many_requests")
        assert (refused.error["type"], refused.error["source"]) == ("rate_limit_error", "vllmd")
        assert int(refused.header("retry-after")) > 0
    await counts(daemon, 1, 3)
    daemon.control()
    assert {(await each).status for each in (one, *asked)} == {200}
    assert contents(daemon) == ["hog 0", "hog 1", "one", "hog 2"]


async def test_a_stream_that_was_told_to_wait_hears_that_it_must_go(start: Start) -> None:
    daemon, asked = await full(start, held=1, queue={"limit": 2, "status_after_s": 0})
    async with daemon.tcp.stream(CHAT, hello(stream=True)) as stream:
        await stream.until(b": waiting for a place: 1 request is ahead\n\n")
        one = ask(daemon.unix, "one")
        await stream.end()
        assert stream.status == 200
        assert stream.events[-1].json()["error"]["code"] == "too_many_requests"
        assert stream.cut
    daemon.control()
    assert {(await each).status for each in (one, *asked)} == {200}


# ── waiting ──


async def test_waiting_for_a_place_is_told_of_about_once_a_second(start: Start) -> None:
    daemon, asked = await full(start, held=1, running=1, queue={"status_after_s": 0.2})
    async with daemon.tcp.stream(CHAT, hello(stream=True)) as stream:
        await stream.until(b": waiting for a place: 1 request is ahead\n\n", times=2)
        daemon.control()
        await stream.end()
        assert stream.whole
        assert b"tok15" in stream.body
    await asyncio.gather(*asked)


async def test_a_client_that_does_not_want_to_wait_is_refused_while_no_place_is_free(start: Start) -> None:
    daemon, asked = await full(start)
    answer = await daemon.unix.ask(CHAT, hello(), headers={"X-Vllmd-Wait": "0"})
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert int(answer.header("retry-after")) > 0
    daemon.control()
    await asyncio.gather(*asked)
    assert (await daemon.unix.ask(CHAT, hello(), headers={"X-Vllmd-Wait": "0"})).status == 200


async def test_waiting_for_a_place_ends_after_wait_s(start: Start) -> None:
    daemon, asked = await full(start, queue={"wait_s": 0.3})
    answer = await daemon.unix.ask(CHAT, hello())
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert answer.error["message"].startswith("waited 0.3 s for tiny")
    daemon.control()
    await asyncio.gather(*asked)


async def test_all_waits_of_a_replayed_request_together_end_after_wait_s(start: Start) -> None:
    """Each engine takes 1.5 s to start, and dies of its first request."""
    daemon = start(queue={"wait_s": 4}, replay={"limit": 50}, supervision={"restart_limit": 60})
    daemon.control(ready_after_s=1.5, fault="cut", fault_exit="SIGKILL", fault_request=2)
    os.kill(daemon.engine_pid, signal.SIGKILL)
    await until(lambda: daemon.model().state != "ready", "the crash to be seen")
    answer = await daemon.unix.ask(CHAT, hello())
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    assert "waited 4 s for tiny" in answer.error["message"]
    assert 1 <= len(daemon.requests()) <= 3


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_what_takes_no_place_is_answered_while_none_is_free(start: Start, path: str) -> None:
    daemon, asked = await full(start, held=1)
    answer = await daemon.unix.ask(path, hello(prompt="x"))
    assert answer.status != 503
    assert answer.whole
    await counts(daemon, 2, 1)
    daemon.control()
    await asyncio.gather(*asked)


# ── who leaves, and what dies ──


async def test_who_leaves_the_queue_is_not_asked_for(start: Start) -> None:
    daemon, asked = await full(start, held=2)
    left = [await daemon.unix.open(CHAT, hello(f"left {number}", stream=True)) for number in range(3)]
    await counts(daemon, 2, 5)
    for each in left:
        await each.leave()
    await counts(daemon, 2, 2)
    daemon.control()
    await asyncio.gather(*asked)
    assert sorted(contents(daemon)) == [f"hog {number}" for number in range(4)]


async def test_who_leaves_the_engine_makes_place_for_the_next(start: Start) -> None:
    daemon = start(args={"max-num-seqs": 1})
    daemon.control(**HANGS)
    async with daemon.tcp.stream(CHAT, hello("left", stream=True)):
        await counts(daemon, 1, 0)
        one = ask(daemon.unix, "one")
        await counts(daemon, 1, 1)
    await until(lambda: "one" in contents(daemon), "the next request to reach the engine")
    daemon.control()
    assert (await one).status == 200


async def test_what_a_dead_engine_had_goes_first_and_everything_is_answered(start: Start) -> None:
    daemon, asked = await full(start, held=3, running=1)
    os.kill(daemon.engine_pid, signal.SIGKILL)
    daemon.control()  # only now: the old engine would have answered one or the other
    assert {(await each).status for each in asked} == {200}
    assert contents(daemon)[1:] == ["hog 0", "hog 1", "hog 2", "hog 3"], "sent again, before those that waited"
