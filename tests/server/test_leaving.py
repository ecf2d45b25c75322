"""A client that goes away stops its generation at once, and leaves nothing behind (promise 5)."""

import asyncio
import re
import socket
import statistics
import struct
import time
from typing import Any

import pytest
from asking import Door, Exchange, request
from conftest import Start
from daemons import Daemon
from waiting import until

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
KINDS = {
    "stream": (CHAT, STREAM),
    "whole": (CHAT, HELLO),
    "text": (PROMPT, {"prompt": "x"}),
    "json": (PROMPT, {"prompt": "x", "stream": False}),
}
SOON_S = 5.0
"""The promise says a second; a test machine may be busy."""


async def running(daemon: Daemon) -> float:
    """What the engine itself says it works on, asked behind vllmd's back."""
    page = (await daemon.engine.ask("/metrics")).body.decode()
    found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.MULTILINE)
    assert found
    return float(found[1])


async def engine_works(daemon: Daemon, count: int) -> None:
    async def is_so() -> bool:
        return await running(daemon) == count

    await until(is_so, f"the engine to work on {count} requests", SOON_S)


async def nothing_is_left(daemon: Daemon) -> None:
    await engine_works(daemon, 0)
    await until(lambda: (daemon.model().running, daemon.model().held) == (0, 0), "vllmd to count no calls", SOON_S)


@pytest.fixture(params=["unix", "tcp"])
def door(request: pytest.FixtureRequest, daemon: Daemon) -> Door:
    return daemon.unix if request.param == "unix" else daemon.tcp


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_in_the_middle_of_an_answer(daemon: Daemon, door: Door, kind: str) -> None:
    daemon.control(tokens_per_s=5, tokens=1000)
    exchange = await door.open(*KINDS[kind])
    await engine_works(daemon, 1)
    if kind in ("stream", "text"):
        await exchange.until(b"tok1")
    assert daemon.model().running == 1
    await exchange.leave()
    await nothing_is_left(daemon)
    (end,) = daemon.journal("end")
    assert end["how"] == "cancelled"
    assert end["tokens"] < 100


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_during_a_silent_prefill(daemon: Daemon, door: Door, kind: str) -> None:
    daemon.control(prefill_s=60)
    exchange = await door.open(*KINDS[kind])
    await engine_works(daemon, 1)
    await exchange.leave()
    await nothing_is_left(daemon)
    assert daemon.journal("end")[0]["tokens"] == 0


def reset(connection: socket.socket) -> None:
    """Closes a TCP connection with RST instead of FIN (socket(7), SO_LINGER)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def test_leaving_by_reset(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=5, tokens=1000)
    for path, body in KINDS.values():
        connection = socket.create_connection(("127.0.0.1", daemon.port))
        connection.sendall(request(path, body))
        await engine_works(daemon, 1)
        reset(connection)
        await nothing_is_left(daemon)


@pytest.mark.parametrize("kind", ["stream", "text"])
async def test_leaving_by_reset_in_full_flow(daemon: Daemon, kind: str) -> None:
    daemon.control(tokens=2000)
    path, body = KINDS[kind]
    for _ in range(15):
        connection = socket.create_connection(("127.0.0.1", daemon.port))
        connection.sendall(request(path, {**body, "max_tokens": 2000}))
        connection.recv(100)
        reset(connection)
    await nothing_is_left(daemon)


async def test_leaving_in_a_crowd_stops_only_the_own_generation(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=100, tokens=60)
    exchanges = [await daemon.unix.open(CHAT, STREAM) for _ in range(12)]
    for exchange in exchanges:
        await exchange.until(b"tok1")
    for exchange in exchanges[::2]:
        await exchange.leave()
    await engine_works(daemon, 6)
    for exchange in exchanges[1::2]:
        await exchange.end()
        assert exchange.whole
        assert b"tok59" in exchange.body
        await exchange.leave()
    await nothing_is_left(daemon)


async def test_many_clients_that_leave_at_any_moment_leave_nothing(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=300, tokens=2000)

    async def come_and_go(number: int) -> None:
        path, body = list(KINDS.values())[number % 4]
        exchange = await (daemon.unix if number % 3 else daemon.tcp).open(path, body)
        await asyncio.sleep(number * 0.004)
        await exchange.leave()

    await asyncio.gather(*(come_and_go(number) for number in range(80)))
    await nothing_is_left(daemon)


async def test_a_client_that_has_stopped_reading_and_then_leaves(daemon: Daemon) -> None:
    daemon.control(tokens=2000)
    for path in (CHAT, PROMPT):
        exchange = await daemon.unix.open(path, {**(STREAM if path == CHAT else {"prompt": "x"}), "max_tokens": 2000})
        await exchange.until(b"tok1")
        await exchange.leave()
        await nothing_is_left(daemon)


async def test_leaving_while_held(start: Start) -> None:
    daemon = start(ready=False, knobs={"start_end": "never"}, queue={"status_after_s": 0})
    for kind in KINDS:
        for door in (daemon.unix, daemon.tcp):
            exchange = await door.open(*KINDS[kind])
            await until(lambda: daemon.model().held == 1, "the request to be held")
            await exchange.leave()
            await until(lambda: daemon.model().held == 0, "it to be forgotten", SOON_S)
    daemon.control()
    daemon.order("restart", wait=True)
    assert not daemon.requests()


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_while_waiting_for_a_turn(start: Start, kind: str) -> None:
    daemon = start(queue={"running": 1, "status_after_s": 0.1}, knobs={"tokens_per_s": 5, "tokens": 1000})
    first = await daemon.unix.open(CHAT, STREAM)
    await first.until(b"tok1")
    waiting = [await door.open(*KINDS[kind]) for door in (daemon.unix, daemon.tcp)]
    await until(lambda: daemon.model().held == 2, "both to wait for a place")
    if kind in ("stream", "text"):
        await waiting[1].until(b": waiting for a place")
    for exchange in waiting:
        await exchange.leave()
    await until(lambda: (daemon.model().running, daemon.model().held) == (1, 0), "both to be forgotten", SOON_S)
    await first.leave()
    await nothing_is_left(daemon)
    daemon.control()
    assert (await daemon.unix.ask(*KINDS[kind])).status == 200, "the place is free again"
    assert len(daemon.requests()) == 2, "the engine never heard of them"


async def test_the_engine_stops_within_a_second(daemon: Daemon) -> None:
    """The median of many, as a test machine may be busy at one moment or another."""
    daemon.control(tokens_per_s=5, tokens=1000, prefill_s=0)
    took_s = []
    for path, body in [*KINDS.values()] * 3:
        exchange = await daemon.unix.open(path, body)
        await engine_works(daemon, 1)
        left_at, ends = time.time(), len(daemon.journal("end"))
        await exchange.leave()
        await until(lambda: len(daemon.journal("end")) > ends, "the engine to drop it")  # noqa: B023
        took_s.append(daemon.journal("end")[-1]["time"] - left_at)
        await nothing_is_left(daemon)
    assert statistics.median(took_s) < 1


async def test_leaving_while_a_request_is_to_be_sent_again(start: Start) -> None:
    daemon = start()
    daemon.control(fault="cut", ready_after_s=1)
    exchanges = [await daemon.unix.open(path, body) for path, body in KINDS.values()]
    await until(lambda: len(daemon.requests()) >= 4, "the engine to have them")
    for exchange in exchanges:
        await exchange.leave()
    await nothing_is_left(daemon)
    daemon.control()
    answer = await daemon.unix.ask(CHAT, STREAM)
    assert answer.whole


async def test_a_slow_reader_blocks_only_itself_and_little_is_kept_for_it(start: Start) -> None:
    daemon = start(args={"max-model-len": 1_000_000})
    tokens = 200_000
    daemon.control(tokens=tokens)

    def resident_kib() -> int:
        with open(f"/proc/{daemon.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])  # type: ignore[index]

    before = resident_kib()
    slow: list[Exchange] = []
    for path, body in (KINDS["stream"], KINDS["text"]) * 3:
        slow.append(await daemon.unix.open(path, {**body, "max_tokens": tokens}))
    for exchange in slow:
        await exchange.until(b"tok9")
    daemon.control()
    for _ in range(20):
        answer = await daemon.unix.ask(CHAT, STREAM)
        assert answer.whole
    assert resident_kib() - before < 30_000, "six answers of 40 MB each must not be kept"
    assert daemon.model().running == 6
    for exchange in slow:
        await exchange.leave()
    await nothing_is_left(daemon)
