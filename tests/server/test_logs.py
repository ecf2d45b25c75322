"""`/api/logs`: an engine's last lines, and the next ones as they come, at nobody's expense."""

import asyncio
import json
from pathlib import Path

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon, running
from waiting import until

from vllmd.engine.lines import KEPT_CHARACTERS, KEPT_LINES

LOGS = "/api/logs"


def lines_of(exchange: Exchange) -> list[str]:
    return [each.json()["line"] for each in exchange.events if each.name == "line"]


async def last(daemon: Daemon, query: str = "") -> list[str]:
    answer = (await daemon.unix.ask(f"{LOGS}{query}")).json()
    assert answer["model"] == "tiny"
    return [each["line"] for each in answer["lines"]]


def start_log(daemon: Daemon, count: int, width: int = 20) -> str:
    """A start that prints so many lines."""
    path: Path = daemon.folder / "start.log"
    path.write_text("\n".join(f"start line {number} {'x' * width}" for number in range(count)) + "\n")
    return str(path)


async def test_the_last_lines(start: Start) -> None:
    daemon = start()  # of one that others have used, the first lines are gone
    lines = await last(daemon)
    assert any("Application startup complete" in each for each in lines)
    assert await last(daemon, "?lines=2&model=tiny&follow=0") == lines[-2:]
    assert await last(daemon, "?lines=0") == []
    entries = (await daemon.tcp.ask(LOGS)).json()["lines"]
    assert [each["at"] for each in entries] == sorted(each["at"] for each in entries)
    assert entries[0]["at"] >= daemon.status().since


async def test_and_the_next_ones(start: Start) -> None:
    daemon = start()
    before = await last(daemon, "?lines=3")
    async with daemon.unix.stream(f"{LOGS}?lines=3&follow=1") as exchange:
        await exchange.until(b"event: line", 3)
        assert lines_of(exchange) == before
        assert exchange.header("content-type") == "text/event-stream"
        daemon.order("restart", wait=True)
        await exchange.until(b"Application startup complete")
    numbers = [int(each.id or 0) for each in exchange.events if each.name == "line"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    async with daemon.unix.stream(f"{LOGS}?lines=0&follow=1") as nothing:
        await nothing.until(b": what the engine of tiny prints")
        assert lines_of(nothing) == []


@pytest.mark.parametrize(("query", "param"), [("?lines=x", "lines"), ("?lines=-1", "lines"), ("?follow=yes", "follow")])
async def test_what_is_no_number_is_refused(daemon: Daemon, query: str, param: str) -> None:
    answer = await daemon.unix.ask(f"{LOGS}{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_of_which_model_and_that_silence_is_no_end() -> None:
    daemon = Daemon()
    both = {"tiny": {**daemon.tiny(), "default": True}, "other": daemon.tiny()}
    daemon.configure({}, {"models": both, "sse": {"keepalive_s": 0.1}})
    with running(daemon):
        await until(lambda: daemon.model("other").state == "ready", "the other model")
        before = await last(daemon)
        async with daemon.unix.stream(f"{LOGS}?model=other&lines=0&follow=1") as exchange:
            await exchange.until(b": ping", 2)
            assert lines_of(exchange) == []
            daemon.order("restart", "other", wait=True)
            await exchange.until(b"Application startup complete")
        assert daemon.fetch(f"{LOGS}?model=other&lines=1")[1]["model"] == "other"
        assert await last(daemon) == before


async def test_a_model_that_is_not_there(daemon: Daemon) -> None:
    assert (await daemon.unix.ask(f"{LOGS}?model=tini")).error["code"] == "model_not_found"


async def test_what_is_kept_is_bounded(start: Start) -> None:
    daemon = start()
    daemon.control(start_log=start_log(daemon, KEPT_LINES + 500))
    daemon.order("restart", wait=True)
    lines = await last(daemon)
    assert len(lines) == KEPT_LINES
    daemon.control(start_log=start_log(daemon, 400, width=8000))
    daemon.order("restart", wait=True)
    assert len(await last(daemon)) < KEPT_CHARACTERS / 8000 + 10
    assert sum(map(len, await last(daemon))) <= KEPT_CHARACTERS


async def test_a_follower_that_does_not_read_slows_nobody_and_is_told_what_it_missed(start: Start) -> None:
    daemon = start()
    # Less than what the kernel takes for it goes out at once; a megabyte is far more than that.
    daemon.control(start_log=start_log(daemon, 3 * KEPT_LINES, width=1000))
    async with daemon.unix.stream(f"{LOGS}?follow=1") as lazy:
        await lazy.until(b"\n\n")
        for _ in range(2):
            status, model = await asyncio.wait_for(asyncio.to_thread(daemon.order, "restart", wait=True), 30)
            assert (status, model["state"]) == (200, "ready")
        await lazy.until(b"event: missed")
        newest = (await last(daemon, "?lines=1"))[0]
        await lazy.until(json.dumps(newest).encode())
    (missed, *_) = [each.json()["missed"] for each in lazy.events if each.name == "missed"]
    assert missed > KEPT_LINES
    numbers = [int(each.id or 0) for each in lazy.events if each.name == "line"]
    assert numbers == sorted(set(numbers))


async def test_the_daemon_does_not_wait_for_followers_when_it_stops(start: Start) -> None:
    daemon = start()
    followers = [await daemon.unix.open(f"{LOGS}?follow=1") for _ in range(3)]
    for each in followers:
        await each.until(b"\n\n")
    assert daemon.stop() == 0
    for each in followers:
        await each.end()
        await each.leave()
