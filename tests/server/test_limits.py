"""What one client may take: connections, time, places, tokens and answers. Whatever it does, another one is served."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import DEADLINE_S, Exchange, request
from conftest import Start
from daemons import Daemon, running
from waiting import until

CHAT, PROMPT, COMPLETIONS = "/v1/chat/completions", "/api/prompt", "/v1/completions"
STREAM: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
HANGS: dict[str, Any] = {"fault": "hang"}
FRUGAL = {"running": 1, "held": 1, "connections": 6, "tokens_per_minute": 1000, "priority": 7}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Daemon]:
    """Whoever comes in by TCP may do little; the user of the Unix socket may do more."""
    limits = {"head_s": 1, "body_s": 1, "body_bytes": 1024 * 1024, "answers": 8, "max_tokens": 50}
    narrow = Daemon(
        args={"scheduling-policy": "priority"}, limits={**limits, "identities": {"127.0.0.1": FRUGAL, "uid:0": {}}}
    )
    with running(narrow):
        yield narrow


@pytest.fixture(autouse=True)
async def others_are_served(narrow: Daemon) -> AsyncIterator[None]:
    """Whatever a test did: the next client gets its answer."""
    narrow.control()
    narrow.forget()
    yield
    assert (await narrow.unix.ask(PROMPT, {"prompt": "x"})).whole
    narrow.control()
    await until(lambda: narrow.model().running == narrow.model().held == 0, "all to be over")


def assert_too_many(answer: Exchange, *words: str) -> None:
    assert (answer.status, answer.error["code"], answer.error["source"]) == (429, "too_many_requests", "vllmd")
    assert int(answer.header("retry-after")) >= 1
    for word in words:
        assert word in answer.error["message"]


# ── places ──


async def test_one_runs_one_waits_and_one_more_is_told_when_to_come_again(narrow: Daemon) -> None:
    narrow.control(**HANGS)
    first = asyncio.create_task(narrow.tcp.ask(CHAT, STREAM))
    await until(lambda: narrow.model().running == 1, "one to run")
    second = asyncio.create_task(narrow.tcp.ask(CHAT, STREAM))
    await until(lambda: narrow.model().held == 1, "one to wait")
    assert_too_many(await narrow.tcp.ask(CHAT, STREAM), "127.0.0.1", "waiting")
    assert_too_many(await narrow.tcp.ask(CHAT, STREAM, headers={"x-vllmd-wait": "0"}), "127.0.0.1", "running")
    other = asyncio.create_task(narrow.unix.ask(CHAT, STREAM))
    await until(lambda: narrow.model().running == 2, "another identity to have its place at once")
    usage = {each.who: each for each in narrow.status().usage}["127.0.0.1"]
    assert (usage.running, usage.held) == (1, 1)
    assert usage.refused >= 2
    narrow.control()
    assert [(await each).whole for each in (first, second, other)] == [True] * 3


# ── tokens ──


async def test_tokens_are_counted_in_streams_and_in_whole_answers_and_end(start: Start) -> None:
    daemon = start(limits={"tokens_per_minute": 30}, knobs={"tokens": 20})
    for body, tokens in ((STREAM, 20), ({**STREAM, "stream": False}, 40)):
        assert (await daemon.unix.ask(CHAT, body)).status == 200
        (usage,) = daemon.status().usage
        assert tokens <= usage.tokens <= tokens + 4
    for path, body in ((CHAT, STREAM), (PROMPT, {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
        assert_too_many(await daemon.unix.ask(path, body), "30 tokens a minute")
    assert (await daemon.tcp.ask(CHAT, STREAM)).status == 200, "each identity has its own"
    assert (await daemon.unix.ask("/api/status")).status == 200


# ── connections ──


async def test_connections_are_counted_and_one_more_is_told_so(narrow: Daemon) -> None:
    streams: list[Exchange] = []

    async def has_six() -> bool:
        stream = await narrow.tcp.open("/api/events")
        if (await stream.head()).status == 200:  # else one of an earlier test is not closed yet
            streams.append(stream)
        return len(streams) == 6

    await until(has_six, "six connections")
    told = narrow.log.count("more are turned away")
    for _ in range(5):
        extra = await narrow.tcp.ask("/health")
        assert_too_many(extra, "127.0.0.1", "6 connections")
        assert extra.header("connection") == "close"
    assert narrow.log.count("more are turned away") <= told + 1, "one line, however many they are"
    assert "127.0.0.1 has 6 connections" in narrow.log
    assert (await narrow.unix.ask("/health")).status == 200
    await streams.pop().leave()

    async def is_let_in() -> bool:
        return (await narrow.tcp.ask("/health")).status == 200

    await until(is_let_in, "a place to be free again")
    for each in streams:
        await each.leave()


# ── time ──


@pytest.mark.parametrize("part", [b"", b"G", b"POST /api/prompt HTTP/1.1\r\nhost: localhost\r\nx: y"])
async def test_a_head_that_does_not_come_is_not_waited_for(narrow: Daemon, part: bytes) -> None:
    reader, writer = await narrow.tcp.connect()
    writer.write(part)
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b"", "the connection is closed"
    writer.close()


async def test_a_head_that_comes_drop_by_drop_is_not_waited_for_either(narrow: Daemon) -> None:
    reader, writer = await narrow.tcp.connect()
    writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")

    async def drip() -> None:
        while not writer.is_closing():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.2)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    dripping.cancel()
    writer.close()


async def test_a_connection_may_not_idle_after_an_answer(narrow: Daemon) -> None:
    reader, writer = await narrow.tcp.connect()
    writer.write(request("/health"))
    async with asyncio.timeout(DEADLINE_S):
        assert b"alive" in await reader.read(), "and then nothing more comes"
    writer.close()


@pytest.mark.parametrize(("path", "part"), [(PROMPT, b""), (PROMPT, b'{"pro'), (CHAT, b'{"mes')])
async def test_a_body_that_does_not_come_is_not_waited_for(narrow: Daemon, path: str, part: bytes) -> None:
    for head in (b"content-length: 100\r\n\r\n" + part, b"transfer-encoding: chunked\r\n\r\n" + b"5\r\n" + part):
        reader, writer = await narrow.tcp.connect()
        writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b" % (path.encode(), head))
        answer = await Exchange(reader, writer).end()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        writer.close()


async def test_a_body_that_comes_steadily_has_its_time(narrow: Daemon) -> None:
    """1 second for any body, and 1 for each 64 KiB: this one takes longer than the first, and comes whole."""
    body = b'{"prompt": "' + b"x" * 400_000 + b'"}'
    reader, writer = await narrow.tcp.connect()
    writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (PROMPT.encode(), len(body)))
    for at in range(0, len(body), 100_000):
        writer.write(body[at : at + 100_000])
        await asyncio.sleep(0.35)
    answer = await Exchange(reader, writer).end()
    assert answer.status == 200, answer.body
    writer.close()


# ── what one request asks for ──


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"n": 9}, "n"),
        (CHAT, {"best_of": 10**9}, "best_of"),
        (COMPLETIONS, {"prompt": ["x"] * 9}, "prompt"),
        (COMPLETIONS, {"prompt": ["x"] * 3, "n": 3}, "n"),
        (CHAT, {"max_tokens": 51}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 10**18}, "max_completion_tokens"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 51}, "max_output_tokens"),
        ("/v1/messages", {"max_tokens": 51}, "max_tokens"),
    ],
)
async def test_too_much_is_refused_before_the_engine_hears_of_it(
    narrow: Daemon, path: str, more: dict[str, Any], param: str
) -> None:
    answer = await narrow.unix.ask(path, {**STREAM, "prompt": "x", **more})
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert not narrow.requests()


async def test_the_simple_door_has_the_same_limits(narrow: Daemon) -> None:
    answer = await narrow.unix.ask(PROMPT, {"prompt": "x", "max_tokens": 51})
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")


async def test_whoever_says_no_length_gets_the_longest(narrow: Daemon) -> None:
    for body in (STREAM, {**STREAM, "max_tokens": 5}, {**STREAM, "max_completion_tokens": 6}):
        assert (await narrow.unix.ask(CHAT, body)).status == 200
    told = [(each["body"].get("max_tokens"), each["body"].get("max_completion_tokens")) for each in narrow.requests()]
    assert told == [(None, 50), (5, None), (None, 6)]


async def test_priorities_are_the_identity_s_and_no_client_s(narrow: Daemon) -> None:
    for door in (narrow.unix, narrow.tcp):
        for body in (STREAM, {**STREAM, "priority": -100}, {**STREAM, "priority": 100}):
            assert (await door.ask(CHAT, body)).status == 200
        assert (await door.ask(PROMPT, {"prompt": "x"})).status == 200
    assert [each["body"]["priority"] for each in narrow.requests()] == [0, 0, 100, 0, 7, 7, 100, 7]


async def test_a_scheduler_that_minds_no_priorities_is_told_none(daemon: Daemon) -> None:
    raw = json.dumps(STREAM).encode()
    assert (await daemon.unix.ask(CHAT, raw)).status == 200
    assert (await daemon.unix.ask(PROMPT, {"prompt": "x"})).status == 200
    assert all("priority" not in each["body"] for each in daemon.requests())


# ── numbers ──


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1e-999", b"9" * 4000])
async def test_odd_numbers_come_to_the_engine_as_they_are_or_not_at_all(narrow: Daemon, number: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "seed": %b, "n": 1}' % number
    answer = await narrow.unix.ask(CHAT, body)
    assert answer.status in (200, 400)
    assert b"vllmd made a mistake" not in answer.body


# ── compression ──


def squeezed(content: bytes) -> dict[str, bytes]:
    return {"gzip": gzip.compress(content, 9), "deflate": zlib.compress(content, 9)}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_body_is_read_and_what_it_grows_to_is_bounded(narrow: Daemon, coding: str) -> None:
    small, huge = (squeezed(b'{"prompt": "%b"}' % (b"x" * size))[coding] for size in (100, 50_000_000))
    headers = {"content-encoding": coding}
    assert (await narrow.unix.ask(PROMPT, small, headers=headers)).status == 200
    answer = await narrow.unix.ask(PROMPT, huge, headers=headers)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    for wrong in (b"x" + small, b"{}", small[:20]):
        answer = await narrow.unix.ask(PROMPT, wrong, headers=headers)
        assert answer.status == 400, (wrong, answer.body)
        assert b"Traceback" not in answer.body


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "identity", "x-nonsense", "GZIP", ""])
async def test_what_is_not_known_as_a_coding_is_read_as_it_is_or_refused(narrow: Daemon, coding: str) -> None:
    answer = await narrow.unix.ask(PROMPT, b'{"prompt": "x"}', headers={"content-encoding": coding})
    assert answer.status in (200, 400), answer.body
    assert answer.status != 500


async def test_an_answer_is_never_a_place_for_half_a_bomb(narrow: Daemon) -> None:
    """Many at once take no more memory than their limit allows."""
    bomb = squeezed(b'{"prompt": "%b"}' % (b"x" * 50_000_000))["gzip"]
    answers = await asyncio.gather(
        *(narrow.unix.ask(PROMPT, bomb, headers={"content-encoding": "gzip"}) for _ in range(20))
    )
    assert {each.status for each in answers} == {413}
    status = Path(f"/proc/{narrow.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 400_000, peak
