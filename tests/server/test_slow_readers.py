"""A client that does not read blocks itself alone: little is kept for it, and in the end it is cut off."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from asking import request
from conftest import Start
from daemons import Daemon
from waiting import until

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**STREAM, "max_tokens": 200_000}),
    "text": (PROMPT, {"prompt": "x", "max_tokens": 200_000}),
}
ALL = [(kind, door) for kind in KINDS for door in ("unix", "tcp")]
ENDLESS = {"args": {"max-model-len": 1_000_000}, "knobs": {"tokens": 200_000}}
"""Answers of 40 MB, and of 3 MB as text: more than all buffers on the way hold."""

CUT = "is cut off"


class Reader:
    """A client that reads as much as it is told to.

    Args:
        connection: on which it has asked.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.got = b""

    async def take(self, most: int = 65536) -> int:
        """Reads what is there, but so much at most; returns how much that was."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.connection, most), 30)
        self.got += data
        return len(data)

    async def until(self, part: bytes) -> None:
        """Reads up to the block in which `part` comes."""
        while part and part not in self.got[-70_000:]:
            assert await self.take(4096), f"it ended without {part!r}: {self.got[-300:]!r}"

    async def is_cut(self) -> bool:
        """Whether the connection is gone, once what the kernel still holds is read."""
        return not await self.ends_well()

    async def ends_well(self) -> bool:
        """Reads what there still is, and tells whether that is a whole answer."""
        with suppress(ConnectionError):
            while not self.got.endswith(b"0\r\n\r\n") and await self.take():
                pass
        return self.got.endswith(b"0\r\n\r\n")


@contextmanager
def reader(daemon: Daemon, kind: str = "chat", *, door: str = "unix", **more: Any) -> Iterator[Reader]:
    """A client that has asked, and has read nothing yet."""
    path, body = KINDS[kind]
    with socket.socket(socket.AF_UNIX if door == "unix" else socket.AF_INET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # TCP's; else it grows to megabytes
        connection.connect(str(daemon.socket) if door == "unix" else ("127.0.0.1", daemon.port))
        connection.setblocking(False)
        connection.send(request(path, {**body, **more}))
        yield Reader(connection)


def resident_kib(daemon: Daemon) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found[1])


def descriptors(daemon: Daemon) -> int:
    """How many files vllmd has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


async def stuck(daemon: Daemon) -> None:
    """Returns when the engine makes no more tokens, because nobody takes them."""

    async def is_still() -> bool:
        made = (await daemon.engine.ask("/metrics")).body
        await asyncio.sleep(0.3)
        return made == (await daemon.engine.ask("/metrics")).body

    await until(is_still, "every buffer to be full")


async def idle(daemon: Daemon) -> None:
    await until(lambda: (daemon.model().running, daemon.model().held) == (0, 0), "vllmd to count no calls")


# ── the engine ──


async def test_a_healthy_engine_is_not_replaced_because_a_client_does_not_read(start: Start) -> None:
    supervision = {"stall_s": 1, "probe_interval_s": 0.2, "probe_timeout_s": 8, "failure_threshold": 1}
    daemon = start(**ENDLESS, supervision=supervision)
    with reader(daemon) as stopped:
        await stopped.until(b"tok9")
        with pytest.raises(AssertionError, match="in vain"):
            await until(lambda: daemon.model().generation > 1 or daemon.model().state != "ready", "a replacement", 4)
        daemon.control(fault="hang", tokens=200_000)
        await until(lambda: daemon.model().generation > 1, "an engine that does hang to be replaced")


# ── memory, and the others ──


async def crowd(daemon: Daemon, stack: ExitStack, count: int) -> list[Reader]:
    readers = [stack.enter_context(reader(daemon, kind, door=door)) for kind, door in ALL * (count // len(ALL))]
    await asyncio.gather(*(each.take(100) for each in readers))
    return readers


async def test_two_hundred_stopped_readers_cost_little_and_disturb_nobody(start: Start) -> None:
    daemon = start(**ENDLESS)
    daemon.control(tokens=2500)
    assert (await daemon.unix.ask(*KINDS["chat"])).whole
    before, open_before = resident_kib(daemon), descriptors(daemon)
    with ExitStack() as stack:
        daemon.control(tokens=200_000)
        await crowd(daemon, stack, 200)
        daemon.control(tokens=2500)
        others = [await daemon.unix.ask(*KINDS["chat"]) for _ in range(5)]
        assert all(each.whole and b"tok2499" in each.body for each in others)
        grown = resident_kib(daemon)
        print(f"200 stopped readers: {before} KiB before, {grown} KiB after")
        assert grown - before < 200 * 256, "gigabytes of answers must not be kept"
        others = await asyncio.gather(*(daemon.tcp.ask(*KINDS["chat"]) for _ in range(10)))
        assert all(each.whole and b"tok2499" in each.body for each in others)
        assert resident_kib(daemon) - grown < 8_000, "nor does it grow on"
        assert daemon.model().running == 200
    await idle(daemon)
    await until(lambda: descriptors(daemon) <= open_before, "their connections to be gone")


# ── cutting ──


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("kind", "door"), ALL)
async def test_a_reader_that_stays_stopped_is_cut_with_an_entry_in_the_log(
    start: Start, kind: str, door: str, loop: str
) -> None:
    daemon = start(**ENDLESS, loop=loop, relay={"send_stall_s": 0.5})
    daemon.forget()
    for number, what_it_reads in enumerate((b"", b"tok9"), 1):
        with reader(daemon, kind, door=door) as stopped:
            await stopped.until(what_it_reads)
            await until(lambda: daemon.log.count(CUT) == number, "it to be cut")  # noqa: B023
            await idle(daemon)
            assert await stopped.is_cut()
        await until(lambda: len(daemon.journal("end")) == number, "the engine to be told")  # noqa: B023
    assert {each["how"] for each in daemon.journal("end")} == {"cancelled"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("kind", "door"), ALL)
async def test_a_reader_that_does_not_take_the_last_kilobytes_is_cut(
    start: Start, kind: str, door: str, loop: str
) -> None:
    """More than the kernel keeps for it, and less than makes the engine wait."""
    daemon = start(**ENDLESS, loop=loop, relay={"send_stall_s": 0.3})
    daemon.forget()
    for tokens in range(100, 3000, 60) if kind == "chat" else range(500, 12000, 400):
        daemon.control(tokens=tokens)
        with reader(daemon, kind, door=door) as stopped:
            await until(lambda: daemon.journal("end"), "the engine to be done")
            await idle(daemon)
            assert await stopped.ends_well() == (CUT not in daemon.log)
        if CUT in daemon.log:
            break
        daemon.forget()
    assert CUT in daemon.log
    assert daemon.journal("end")[0]["how"] in ("stop", "length"), "the engine was not held up"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("door", ["unix", "tcp"])
async def test_a_reader_that_is_slow_but_steady_is_not_cut(start: Start, door: str, loop: str) -> None:
    daemon = start(**ENDLESS, loop=loop, relay={"send_stall_s": 1.5})
    daemon.control(tokens=800)
    with reader(daemon, door=door) as slow:
        while not slow.got.endswith(b"0\r\n\r\n"):
            await asyncio.sleep(0.05)  # its pace
            assert await slow.take(2048), "it was cut"
    assert b"tok799" in slow.got
    assert CUT not in daemon.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_stopped_readers_whose_engine_dies_leave_nothing(start: Start, loop: str) -> None:
    daemon = start(**ENDLESS, loop=loop, relay={"send_stall_s": 2}, replay={"continuation": False})
    open_before = descriptors(daemon)
    with ExitStack() as stack:
        await crowd(daemon, stack, 8)
        await stuck(daemon)
        os.kill(daemon.engine_pid, signal.SIGKILL)
        await until(lambda: daemon.model().generation == 2 and daemon.model().state == "ready", "the next engine")
        await idle(daemon)
        await until(lambda: descriptors(daemon) <= open_before, "their connections to be gone")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_whole_answer_that_is_not_read_is_cut_off(start: Start, loop: str) -> None:
    daemon = start(loop=loop, knobs={"text": "x" * 400_000}, relay={"send_stall_s": 0.5})
    daemon.forget()
    open_before = descriptors(daemon)
    with ExitStack() as stack:
        for kind, door in ALL:
            stack.enter_context(reader(daemon, kind, door=door, stream=False, max_tokens=100))
        await until(lambda: len(daemon.journal("end")) >= 4, "the engine to be done")
        await until(lambda: descriptors(daemon) <= open_before, "their connections to be gone")
    assert daemon.log.count(CUT) == 4
