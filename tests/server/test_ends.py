"""How streams end, and that nobody waits for it in the dark: slow clients, old clients, thinking models, lost engines.

Each of these once went wrong.
"""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from asking import events, request
from conftest import Start
from daemons import WITHOUT_UVLOOP, Daemon, running
from server import odd_engine
from struck import CHAT, PROMPT, STREAM, assert_text, by, continued
from waiting import until

from vllmd.server.passage import EARLY_BYTES

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**STREAM, "max_tokens": 200_000}),
    "text": (PROMPT, {"prompt": "x", "max_tokens": 200_000}),
}
SIZES = {"chat": range(200, 3000, 20), "text": range(500, 12_000, 300)}
"""Tokens of answers, each a little longer than the one before: less by far than what makes an engine wait."""

END = {"chat": rb"data: \[DONE\]\n\n", "text": rb"event: done\ndata: [^\n]*\n\n"}
AFTER_THE_END = rb"\r\n(0\r\n(X-Vllmd-Continued: 1\r\n)?\r\n)?"
"""The end of the last chunk, and the end of HTTP's body, unless the connection was closed."""

LONG: dict[str, Any] = {"args": {"max-model-len": 1_000_000}}

CLOSE_QUICKLY_S = 1.0
_QUICKLY = f"from vllmd.server import doors; doors.CLOSE_S = {CLOSE_QUICKLY_S}; "
CLOSES_QUICKLY = {
    "uvloop": f"{_QUICKLY} from vllmd.daemon import main; main()",
    "asyncio": f"{_QUICKLY} {WITHOUT_UVLOOP}",
}
"""vllmd with a bound that tests can wait for."""


@contextmanager
def asked(
    daemon: Daemon, kind: str, door: str = "unix", *, version: bytes = b"HTTP/1.1", **more: Any
) -> Iterator[socket.socket]:
    """A client that has asked, and reads nothing by itself; if it is of HTTP/1.0, it would like to be kept."""
    path, body = KINDS[kind]
    with socket.socket(socket.AF_UNIX if door == "unix" else socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # TCP's; else it grows to megabytes
        client.connect(str(daemon.socket) if door == "unix" else ("127.0.0.1", daemon.port))
        client.setblocking(False)
        client.send(
            request(path, {**body, **more}, headers={"connection": "keep-alive"}).replace(b"HTTP/1.1", version, 1)
        )
        yield client


async def rest(client: socket.socket) -> bytes:
    """What comes until the connection ends."""
    got = b""
    async with asyncio.timeout(30):
        while data := await asyncio.get_running_loop().sock_recv(client, 65536):
            got += data
    return got


def under_way(daemon: Daemon) -> list[dict[str, Any]]:
    """The calls that are not over yet."""
    found: list[dict[str, Any]] = daemon.fetch("/api/requests")[1]["requests"]
    return found


async def comes(condition: Callable[[], object], within_s: float) -> bool:
    """Whether a condition becomes true in time."""
    try:
        await until(condition, "it", within_s)
    except AssertionError:
        return False
    return True


async def is_held_up(daemon: Daemon) -> bool:
    """Whether calls stay under way."""
    return not await comes(lambda: not under_way(daemon), 0.4)


def cancel(daemon: Daemon) -> None:
    """Ends all calls."""
    for call in under_way(daemon):
        assert daemon.fetch(f"/api/requests/{call['id']}", "DELETE")[0] == 202


# ── an engine that says what it is told to ──


@pytest.fixture(scope="module")
def odd() -> Iterator[Daemon]:
    daemon = Daemon()
    vllm = daemon.folder / "env" / "bin" / "vllm"
    vllm.unlink()
    vllm.symlink_to(odd_engine.__file__)
    env = {"ODD_ANSWER": str(daemon.folder / "answer")}
    sse, relay = {"keepalive_s": 1}, {"drain_s": 1}
    daemon.configure({}, {"models": {"tiny": {"model": "m", "env": env}}, "sse": sse, "relay": relay})
    with running(daemon):
        yield daemon


HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(finish: str | None = None, **delta: str) -> bytes:
    table = {"id": "a", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: %b\n\n" % json.dumps(table, separators=(",", ":")).encode()


def framed(*stream: bytes) -> bytes:
    """Events in HTTP's chunks, as vLLM sends them."""
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in stream)


ANSWER = [chunk(content="A"), chunk("stop", content="B"), DONE]


# ── nothing after the end ──


async def cancelled_at_the_end(daemon: Daemon, kind: str, door: str, end: bytes, **knobs: Any) -> bytes:
    """All that a client gets whose call is cancelled while only the end of its answer is still to be read."""
    sizes = iter(SIZES[kind])
    tokens = next(sizes)
    for attempt in range(len(SIZES[kind])):
        await until(lambda: daemon.model().state == "ready", "an engine")
        daemon.forget()
        once = str(daemon.folder / f"once-{attempt}")
        daemon.control(tokens=tokens, **({**knobs, "once": once} if knobs else {}))
        with asked(daemon, kind, door) as client:
            await until(lambda: [each for each in daemon.journal("end") if each["how"] == "stop"], "the engine's end")
            if not await is_held_up(daemon):
                tokens = next(sizes)
            elif re.search(end, got := await cancelled(daemon, client)):
                return got  # else the end had not come so far, and the same again may go better
    raise AssertionError("no answer was held up at its end")


async def cancelled(daemon: Daemon, client: socket.socket) -> bytes:
    """Ends all calls, and returns what the client of one still gets."""
    cancel(daemon)
    await until(lambda: not under_way(daemon), "the call to be over")
    return await rest(client)


def assert_nothing_after_the_end(got: bytes, kind: str) -> None:
    found = re.search(END[kind], got)
    assert found, got[-1000:]
    assert re.fullmatch(AFTER_THE_END, got[found.end() :]), got[found.start() :]


@pytest.mark.parametrize("door", ["unix", "tcp"])
@pytest.mark.parametrize("kind", KINDS)
async def test_whoever_is_slow_to_read_the_end_gets_no_error_behind_it(start: Start, kind: str, door: str) -> None:
    daemon = start(**LONG)
    assert_nothing_after_the_end(await cancelled_at_the_end(daemon, kind, door, END[kind]), kind)


async def test_nor_behind_the_trailer_of_an_answer_that_was_continued(start: Start) -> None:
    daemon = start(**LONG)
    dies: dict[str, Any] = {"fault": "cut", "fault_after": 100, "fault_exit": "SIGKILL"}
    got = await cancelled_at_the_end(daemon, "chat", "unix", rb"X-Vllmd-Continued: 1", **dies)
    assert_nothing_after_the_end(got, "chat")


async def test_nor_when_so_much_waits_for_it_that_the_engine_has_to_wait(odd: Daemon) -> None:
    """The whole answer comes at once, and so its end is passed on although the client takes nothing."""
    word = chunk(content="x" * 100)
    (odd.folder / "answer").write_bytes(HEAD + framed(*[word] * (100 * 1024 // len(word)), *ANSWER) + b"0\r\n\r\n")
    for _ in range(10):
        with asked(odd, "chat") as client:
            assert await is_held_up(odd)
            got = await cancelled(odd, client)
        if re.search(END["chat"], got):
            break  # else the engine's bytes came in two parts, and the second was never read
    assert_nothing_after_the_end(got, "chat")


# ── an end for whoever does not read at all ──


def made(daemon: Daemon) -> int:
    """The tokens of the calls that are under way."""
    return sum(call["tokens"] for call in under_way(daemon))


def descriptors(daemon: Daemon) -> int:
    """How many files vllmd has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.mark.parametrize("loop", CLOSES_QUICKLY)
@pytest.mark.parametrize("how", ["the engine cuts", "the call is cancelled"])
async def test_a_stopped_reader_of_a_stream_that_failed_is_closed(start: Start, how: str, loop: str) -> None:
    """Less waits for it than makes the engine wait, and so nobody watches whether it reads."""
    # An engine that cuts shall not be replaced; of a call that might be, the tokens are counted.
    replay = {"limit": 0} if how == "the engine cuts" else {"limit": 1}
    daemon = start(**LONG, launcher=("-c", CLOSES_QUICKLY[loop]), replay=replay, relay={"send_stall_s": 1})
    assert (await daemon.unix.ask(CHAT, STREAM)).whole
    before = descriptors(daemon)
    with ExitStack() as stack:
        is_clogged = False
        for tokens in SIZES["chat"]:
            daemon.control(tokens=3000, fault="cut" if how == "the engine cuts" else "stall", fault_after=tokens)
            daemon.forget()
            stack.enter_context(asked(daemon, "chat", "tcp"))
            if how == "the engine cuts":
                await until(lambda: daemon.journal("end"), "the cut")
            else:
                is_clogged = not await comes(lambda: made(daemon) >= tokens - 10, 2)  # noqa: B023
                cancel(daemon)
            if await is_held_up(daemon) or is_clogged:
                break
        await until(lambda: descriptors(daemon) <= before, "their connections to be gone", 8 * CLOSE_QUICKLY_S)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_of_http_1_0_that_wants_to_be_kept_sees_the_end(daemon: Daemon, kind: str) -> None:
    with asked(daemon, kind, version=b"HTTP/1.0", max_tokens=100) as client:
        got = await rest(client)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert re.search(END[kind] + rb"\Z", body), body
    assert events(body)


# ── nothing from behind the engine's end ──


WORDS = [chunk(content=f"word{number} ") for number in range(10)]


@pytest.mark.parametrize("end", [b"0\r\n\r\n", odd_engine.HOLD])
async def test_nothing_is_passed_that_comes_behind_the_engine_s_end(odd: Daemon, end: bytes) -> None:
    after = [chunk(content="AFTER") for _ in range(10)]
    (odd.folder / "answer").write_bytes(HEAD + framed(*WORDS, DONE, *after) + end)
    answer = await odd.unix.ask(CHAT, STREAM)
    assert answer.whole
    assert answer.body == b"".join(WORDS) + DONE
    assert "AFTER" not in str(assert_text(await odd.unix.ask(PROMPT, {"prompt": "x"}), "".join(map(text_of, WORDS))))


def text_of(event: bytes) -> str:
    return str(json.loads(event[6:])["choices"][0]["delta"]["content"])


# ── a model that thinks ──

SECRET = "hm"
THOUGHT = chunk(reasoning_content=SECRET)


@asynccontextmanager
async def thinking(daemon: Daemon) -> AsyncIterator[asyncio.Event]:
    """Puts an engine on the engine's socket that thinks, at ten tokens a second, until it is told to answer."""
    enough = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        while not enough.is_set():
            writer.write(framed(THOUGHT))
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), 0.1)
        writer.write(framed(*ANSWER) + b"0\r\n\r\n")
        writer.close()

    place = daemon.engine_socket
    aside = place.rename(place.with_suffix(".aside"))
    async with await asyncio.start_unix_server(serve, place):
        yield enough
    place.unlink(missing_ok=True)
    aside.rename(place)


async def test_whoever_is_shown_no_thoughts_is_kept_awake_meanwhile(odd: Daemon) -> None:
    async with thinking(odd) as enough, odd.unix.stream(PROMPT, {"prompt": "x"}) as answer:
        async with asyncio.timeout(20):
            await answer.until(b": ", 3)
        assert all(each.comment for each in answer.events)
        enough.set()
        assert_text(await answer.end(), "AB")
        assert SECRET.encode() not in answer.body


def resident_kib(daemon: Daemon) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found[1])


async def test_many_thoughts_are_let_go(odd: Daemon) -> None:
    thought = chunk(reasoning_content=SECRET * 500)
    assert len(thought) * 20_000 > 300 * EARLY_BYTES
    (odd.folder / "answer").write_bytes(HEAD + framed(*WORDS) + b"0\r\n\r\n")
    await odd.unix.ask(PROMPT, {"prompt": "x"})
    before = resident_kib(odd)
    (odd.folder / "answer").write_bytes(HEAD + framed(*[thought] * 20_000, *ANSWER[:1]) + odd_engine.HOLD)
    async with odd.unix.stream(PROMPT, {"prompt": "x"}) as answer:
        await answer.until(b"data: A\n\n")
        grown_kib = resident_kib(odd) - before
    assert SECRET.encode() not in answer.body
    assert grown_kib < 5000


# ── a doubtful engine ──


async def test_comments_come_while_it_is_found_out_whether_the_engine_is_lost(start: Start) -> None:
    """Its core is dead, and its API server takes eight seconds to go."""
    knobs = {"tree": 1, "death_s": 8, "tokens": 60, "tokens_per_s": 20}
    daemon = start(knobs=knobs, sse={"keepalive_s": 1})
    async with daemon.unix.stream(CHAT, STREAM) as answer:
        await answer.until(b"tok3")
        await by(signal.SIGKILL, "VLLM::EngineCor")(daemon)
        began = last = time.monotonic()
        longest_s = 0.0
        async with asyncio.timeout(40):
            async for _ in answer.pieces():
                longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
        assert answer.whole
        assert continued(answer) == 1
        assert last - began > 8
        assert longest_s < 6, "no comments: the whole eight seconds"
