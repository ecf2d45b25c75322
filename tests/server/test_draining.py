"""SIGTERM: running answers may finish, nothing new begins, nothing is left behind."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import Exchange, request
from conftest import Start
from daemons import Daemon
from waiting import until

from vllmd.routes import ENVIRONMENTS, PULL, VERIFY
from vllmd.sections import Config
from vllmd.server.draining import CUT_SHORT_S

ROOT = Path(__file__).parents[2]
SLACK_S = 10.0
"""What else a stop takes on a busy machine: sockets, the engine's death by SIGKILL, files."""

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, STREAM),
    (CHAT, HELLO),
    (PROMPT, {"prompt": "x"}),
    (PROMPT, {"prompt": "x", "stream": False}),
)


@contextmanager
def activated(daemon: Daemon) -> Iterator[tuple[Daemon, Callable[[], None]]]:
    """A daemon whose sockets are somebody else's, as under vllmd.socket, and how to start it, again and again."""
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3, True); os.dup2(int(sys.argv[2]), 4, True);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2'); os.execv(sys.argv[3], sys.argv[3:])"
    )
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", daemon.port))
        unix.bind(str(daemon.socket))
        numbers = [fcntl.fcntl(each, fcntl.F_DUPFD, 200) for each in (tcp, unix)]  # away from 3 and 4
        try:
            for each in (tcp, unix):
                each.listen(100)
            words = [sys.executable, "-c", code, *map(str, numbers)]
            yield daemon, lambda: daemon.start(*words, pass_fds=numbers)
        finally:
            for number in numbers:
                os.close(number)
            daemon.see_to_its_end(sockets_stay=True)


async def answers_begin(daemon: Daemon, kinds: Any = KINDS) -> list[Exchange]:
    """Requests that run, streams with something out."""
    exchanges = [await daemon.unix.open(path, body) for path, body in kinds]
    await until(lambda: daemon.model().running == len(exchanges), "all requests to run")
    for exchange, (path, body) in zip(exchanges, kinds, strict=True):
        if body.get("stream", path == PROMPT):
            await exchange.until(b"tok1")
    return exchanges


def closed(daemon: Daemon) -> bool:
    return "stopping: running streams get" in daemon.log


async def assert_ends(daemon: Daemon) -> None:
    """It ends by itself, in good order; the fixture looks for what it left."""
    assert await asyncio.to_thread(daemon.wait) == 0
    assert not daemon.socket.exists()
    assert not list(daemon.folder.glob("r/*.*"))
    assert not daemon.everybody()


@pytest.mark.parametrize(("number", "loop"), [(signal.SIGTERM, "asyncio"), (signal.SIGINT, "uvloop")])
async def test_running_answers_finish(start: Start, number: signal.Signals, loop: str) -> None:
    daemon = start(loop=loop, knobs={"tokens_per_s": 40, "tokens": 30})
    exchanges = await answers_begin(daemon)
    daemon.signal(number)
    for exchange, (path, _) in zip(exchanges, KINDS, strict=True):
        await exchange.end()
        assert exchange.whole, path
        assert b"tok29" in exchange.body
        assert b"error" not in exchange.body
        await exchange.leave()
    await assert_ends(daemon)


async def test_nothing_new_begins(start: Start) -> None:
    daemon = start(knobs={"tokens_per_s": 20, "tokens": 20})
    orders: dict[str, Any] = {PULL: {"model": "acme/m"}, VERIFY: {"model": "acme/m"}, ENVIRONMENTS: {}}
    wanted = [(daemon.unix, CHAT, HELLO), (daemon.tcp, CHAT, HELLO), *((daemon.unix, *each) for each in orders.items())]
    idle = [(*await door.connect(), path, body) for door, path, body in wanted]
    for reader, writer, *_ in idle:  # connections that were open before
        writer.write(request("/health"))
        await Exchange(reader, writer).until(b"alive")
    (running,) = await answers_begin(daemon, KINDS[:1])
    daemon.signal(signal.SIGTERM)
    await until(lambda: closed(daemon), "vllmd to drain")
    await asyncio.sleep(0)
    for door in (daemon.unix, daemon.tcp):

        async def is_refused(door: Any = door) -> bool:
            try:
                exchange = await door.open(CHAT, HELLO)
            except OSError:
                return True
            await exchange.leave()
            return False

        await until(is_refused, "new connections to be refused")
    for reader, writer, path, body in idle:
        writer.write(request(path, body))
        answer = await Exchange(reader, writer).end()
        assert (answer.status, answer.error["code"]) == (503, "not_ready"), path
        writer.close()
    assert len(daemon.requests()) == 1
    await running.end()
    assert running.whole
    await running.leave()
    await assert_ends(daemon)


async def test_held_requests_are_told_at_once(start: Start) -> None:
    daemon = start(ready=False, knobs={"start_end": "never"}, queue={"status_after_s": 0.1})
    held = [asyncio.create_task(daemon.unix.ask(path, body)) for path, body in KINDS]
    await until(lambda: daemon.model().held == len(KINDS), "them to be held")
    told = await daemon.unix.open(CHAT, STREAM)
    await told.until(b": starting")
    daemon.signal(signal.SIGTERM)
    for task in held:
        answer = await task
        begun = answer.status == 200  # a comment was out already
        error = answer.events[-1].json()["error"] if begun else answer.error
        assert error["code"] == "not_ready"
        assert error["source"] == "vllmd"
        assert "stopping" in error["message"]
    await told.end()
    assert told.cut
    assert "stopping" in told.events[-1].json()["error"]["message"]
    await told.leave()
    await assert_ends(daemon)


async def test_drain_s_bounds_the_patience(start: Start) -> None:
    daemon = start(knobs={"tokens_per_s": 5, "tokens": 10_000}, relay={"drain_s": 0.5})
    exchanges = await answers_begin(daemon)
    daemon.signal(signal.SIGTERM)
    for exchange, (path, body) in zip(exchanges, KINDS, strict=True):
        await exchange.end()
        if body.get("stream", path == PROMPT):
            assert exchange.cut
            last = exchange.events[-1]
            assert b"[DONE]" not in exchange.body
            assert b"event: done" not in exchange.body
            error = last.json()["error"]
        else:
            assert exchange.status == 503
            error = exchange.error
        assert error["source"] == "vllmd"
        assert "stopping" in error["message"]
        await exchange.leave()
    await assert_ends(daemon)


async def test_a_second_signal_hurries(start: Start) -> None:
    daemon = start(knobs={"tokens_per_s": 5, "tokens": 10_000}, relay={"drain_s": 600})
    (exchange,) = await answers_begin(daemon, KINDS[:1])
    daemon.signal(signal.SIGTERM)
    await until(lambda: closed(daemon), "vllmd to drain")
    daemon.signal(signal.SIGTERM)
    await exchange.end()
    assert "stopping" in exchange.events[-1].json()["error"]["message"]
    await exchange.leave()
    await assert_ends(daemon)


async def test_one_more_signal_hurries_the_engine_too(start: Start) -> None:
    daemon = start(knobs={"term": "ignore", "tree": 1}, supervision={"stop_timeout_s": 600})
    daemon.signal(signal.SIGTERM)
    await until(lambda: "ready → stopping" in daemon.log, "the engine to be asked to stop")
    daemon.signal(signal.SIGINT)
    await assert_ends(daemon)


async def test_an_engine_that_does_not_stop_is_killed(start: Start) -> None:
    daemon = start(knobs={"term": "ignore", "tree": 1, "stray": 1}, supervision={"stop_timeout_s": 0.3})
    daemon.signal(signal.SIGTERM)
    await assert_ends(daemon)


@pytest.mark.parametrize("manner", ["die", "ignore", "hang"])
async def test_a_start_can_be_stopped_at_any_time(start: Start, manner: str) -> None:
    knobs = {"start_end": "never", "start_term": manner, "tree": 1}
    daemon = start(ready=False, knobs=knobs, supervision={"stop_timeout_s": 600})
    daemon.signal(signal.SIGTERM)
    await assert_ends(daemon)


async def test_it_can_be_stopped_at_the_very_first_moment() -> None:
    daemon = Daemon(knobs={"start_end": "never"})
    try:
        for count in (1, 2, 3):
            daemon.start(ready=False)
            for _ in range(count):
                daemon.signal(signal.SIGTERM)
            await assert_ends(daemon)
    finally:
        daemon.see_to_its_end()


async def test_it_can_be_stopped_while_it_backs_off_and_after_it_has_failed(start: Start) -> None:
    slow = {"backoff_initial_s": 600, "backoff_max_s": 600}
    daemon = start(ready=False, knobs={"start_end": "exit:1"}, supervision=slow)
    daemon.wait_for("backoff")
    daemon.signal(signal.SIGTERM)
    await assert_ends(daemon)
    daemon = start(ready=False, knobs={"start_end": "exit:1"}, supervision={"restart_limit": 0})
    daemon.wait_for("failed")
    daemon.signal(signal.SIGTERM)
    await assert_ends(daemon)


async def test_those_who_follow_the_events_do_not_hold_it_up(start: Start) -> None:
    daemon = start(relay={"drain_s": 600})
    async with daemon.unix.stream("/api/events") as events, daemon.tcp.stream("/api/events") as others:
        await asyncio.gather(events.until(b"data:"), others.until(b"data:"))
        daemon.signal(signal.SIGTERM)
        await assert_ends(daemon)
        await events.end()
        assert all(json.loads(each.data or "{}") for each in events.events if each.name == "model")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_clients_that_take_nothing_do_not_hold_it_up(start: Start, loop: str) -> None:
    daemon = start(args={"max-model-len": 1_000_000}, relay={"drain_s": 0.3}, loop=loop)
    daemon.control(tokens=300_000)
    bodies = [(CHAT, {**STREAM, "max_tokens": 300_000}), (PROMPT, {"prompt": "x", "max_tokens": 300_000})]
    asked = [await door.open(*each) for each in bodies * 5 for door in (daemon.unix, daemon.tcp)]
    for exchange in asked:
        await exchange.until(b"tok9")
    began_at = time.monotonic()
    daemon.signal(signal.SIGTERM)
    await assert_ends(daemon)
    assert time.monotonic() - began_at < 0.3 + CUT_SHORT_S + SLACK_S
    for exchange in asked:
        await exchange.leave()


def test_the_whole_stop_fits_what_systemd_allows() -> None:
    """Else systemd kills it in mid-stop: with the defaults, the longest stop has to be over before TimeoutStopSec."""
    config = Config()
    (allowed,) = re.findall(r"^TimeoutStopSec=(\d+)s$", (ROOT / "systemd/vllmd.service").read_text(), re.M)
    assert config.relay.drain_s + CUT_SHORT_S + config.supervision.stop_timeout_s + SLACK_S < int(allowed)


async def test_who_comes_during_the_drain_waits_for_the_next_vllmd_in_systemd_s_socket() -> None:
    """The listening sockets are systemd's: nobody is refused, and nothing new begins."""
    with activated(Daemon(knobs={"tokens_per_s": 40, "tokens": 40})) as (daemon, go):
        await asyncio.to_thread(go)
        (running,) = await answers_begin(daemon, KINDS[:1])
        daemon.signal(signal.SIGTERM)
        await until(lambda: closed(daemon), "vllmd to drain")
        later = [asyncio.create_task(door.ask(CHAT, STREAM)) for door in (daemon.unix, daemon.tcp)]
        await running.end()
        assert running.whole
        await running.leave()
        assert await asyncio.to_thread(daemon.wait) == 0
        assert not any(task.done() for task in later)
        assert len(daemon.requests()) == 1
        await asyncio.to_thread(go)
        for task in later:
            answer = await task
            assert (answer.status, answer.whole) == (200, True)
