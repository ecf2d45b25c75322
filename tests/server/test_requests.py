"""`/api/requests`: what is under way, who gets to see it, and ending it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from asking import Door, Exchange
from conftest import Start
from daemons import Daemon
from waiting import until, until_sync

REQUESTS, CHAT, PROMPT = "/api/requests", "/v1/chat/completions", "/api/prompt"
SLOW = {"tokens": 1000, "tokens_per_s": 50}
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
NOBODY = 65534


async def requests(door: Door) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await door.ask(REQUESTS)).json()["requests"]
    return found


def named(name: str) -> Mapping[str, str]:
    return {"x-request-id": name}


async def cancel(door: Door, name: str) -> Exchange:
    return await door.ask(f"{REQUESTS}/{name}", method="DELETE")


# ── what is told ──


async def test_nothing_is_under_way_at_first(daemon: Daemon) -> None:
    assert await requests(daemon.unix) == []


async def test_a_stream_is_described(daemon: Daemon) -> None:
    daemon.control(**SLOW)
    async with daemon.unix.stream(CHAT, STREAM, headers=named("one")) as exchange:
        await exchange.until(b"tok9")
        (one,) = await requests(daemon.unix)
        assert (one["id"], one["who"], one["model"], one["path"]) == ("one", f"uid:{os.getuid()}", "tiny", CHAT)
        assert (one["state"], one["stream"], one["replays"], one["continuations"]) == ("running", True, 0, 0)
        assert 10 <= one["tokens"] <= 40
        assert 0 < one["age_s"] < 30
        assert 1 < one["tokens_per_s"] <= 60
        assert one["since"] > daemon.status().since
        await until(lambda: (daemon.model().tokens_per_s or 0) > 1, "the status to tell the rate")
    await until(lambda: not daemon.fetch(REQUESTS)[1]["requests"], "it to be gone")
    assert daemon.model().tokens_per_s is None


@pytest.mark.parametrize("body", [STREAM, {**STREAM, "n": 2}, {**STREAM, "tools": []}, {**STREAM, "logprobs": True}])
async def test_tokens_are_counted_whatever_the_events_are_like(daemon: Daemon, body: dict[str, Any]) -> None:
    daemon.control(**SLOW)
    async with daemon.unix.stream(CHAT, body) as exchange:
        await exchange.until(b"tok19")
        (one,) = await requests(daemon.unix)
        assert 15 <= one["tokens"] <= 100


async def test_an_answer_in_one_piece_has_no_count(daemon: Daemon) -> None:
    daemon.control(tokens=1000, tokens_per_s=100)
    async with daemon.unix.stream(PROMPT, {"prompt": "hi", "stream": False}):
        await until(lambda: daemon.model().running, "it to run")
        (one,) = await requests(daemon.unix)
    assert (one["path"], one["stream"], one["tokens"], one["tokens_per_s"]) == (CHAT, False, None, None)


async def test_the_oldest_comes_first(daemon: Daemon) -> None:
    daemon.control(**SLOW)
    async with daemon.unix.stream(CHAT, STREAM, headers=named("a")) as one:
        await one.until(b"tok0")
        async with daemon.unix.stream(PROMPT, {"prompt": "hi"}, headers=named("b")) as other:
            await other.until(b"tok0")
            assert [each["id"] for each in await requests(daemon.unix)] == ["a", "b"]


async def test_one_that_waits_is_held(start: Start) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 600})
    async with daemon.unix.stream(CHAT, STREAM, headers=named("waits")) as exchange:
        await until(lambda: daemon.model().held, "it to be held")
        (one,) = await requests(daemon.unix)
        assert (one["state"], one["tokens"], one["tokens_per_s"]) == ("held", 0, None)
        assert (await cancel(daemon.unix, "waits")).status == 202
        await exchange.end()
    assert (exchange.status, exchange.error["code"]) == (499, "cancelled")
    assert daemon.model().held == 0


async def test_an_answer_that_went_on_elsewhere_tells_so(start: Start) -> None:
    daemon = start(knobs={"tokens": 400, "tokens_per_s": 40})
    async with daemon.unix.stream(CHAT, STREAM) as exchange:
        await exchange.until(b'tok9"')
        os.kill(daemon.engine_pid, 9)
        await exchange.until(b'tok20"')
        (one,) = await requests(daemon.unix)
    assert (one["continuations"], one["state"]) == (1, "running")
    assert 20 <= one["tokens"] <= 60


# ── ending one ──


@pytest.mark.parametrize(("path", "body"), [(CHAT, STREAM), (PROMPT, {"prompt": "hi"})])
async def test_a_stream_that_is_cancelled_ends_with_an_error(daemon: Daemon, path: str, body: dict[str, Any]) -> None:
    daemon.control(**SLOW)
    async with daemon.unix.stream(path, body, headers=named("long/one:1")) as exchange:
        await exchange.until(b"tok5")
        answer = await cancel(daemon.unix, "long/one:1")
        assert (answer.status, answer.json()) == (202, {"id": "long/one:1", "cancelled": 1})
        await exchange.end()
    error = exchange.events[-1].json()["error"]
    assert (error["code"], error["source"]) == ("cancelled", "vllmd")
    assert error["message"] == f"the request was cancelled by uid:{os.getuid()}"
    assert exchange.cut
    assert b"[DONE]" not in exchange.body
    await until(lambda: daemon.journal("end"), "the engine to end")
    (end,) = daemon.journal("end")
    assert end["how"] == "cancelled"
    assert end["tokens"] < 1000


async def test_an_answer_in_one_piece_becomes_an_error(daemon: Daemon) -> None:
    daemon.control(tokens=1000, tokens_per_s=50)
    async with daemon.unix.stream(CHAT, {**STREAM, "stream": False}, headers=named("x")) as exchange:
        await until(lambda: daemon.journal("request"), "the engine to have it")
        assert (await cancel(daemon.unix, "x")).status == 202
        await exchange.end()
    assert (exchange.status, exchange.error["code"]) == (499, "cancelled")
    await until(lambda: daemon.journal("end"), "the engine to end")
    assert daemon.journal("end")[0]["how"] == "cancelled"


async def test_what_is_not_there_is_not_found(daemon: Daemon) -> None:
    answer = await cancel(daemon.unix, "nothing")
    assert (answer.status, answer.error["code"]) == (404, "request_not_found")
    assert (await daemon.unix.ask(f"{REQUESTS}/x", b"")).status == 405


async def test_an_id_that_was_used_twice_ends_both(daemon: Daemon) -> None:
    daemon.control(**SLOW)
    twins = [await daemon.unix.open(CHAT, STREAM, headers=named("twin")) for _ in range(2)]
    for each in twins:
        await each.until(b"tok0")
    assert (await cancel(daemon.unix, "twin")).json() == {"id": "twin", "cancelled": 2}
    for each in twins:
        assert (await each.end()).events[-1].json()["error"]["code"] == "cancelled"
        await each.leave()


async def test_cancelling_again_changes_nothing(daemon: Daemon) -> None:
    daemon.control(**SLOW)
    async with daemon.unix.stream(CHAT, STREAM, headers=named("x")) as exchange:
        await exchange.until(b"tok0")
        assert {(await cancel(daemon.unix, "x")).status for _ in range(3)} <= {202, 404}
        await exchange.end()
    assert exchange.body.count(b'"cancelled"') == 1


# ── whose ──


async def test_over_tcp_only_what_came_from_the_same_address(daemon: Daemon) -> None:
    daemon.control(**SLOW)
    async with (
        daemon.unix.stream(CHAT, STREAM, headers=named("local")) as local,
        daemon.tcp.stream(CHAT, STREAM, headers=named("far")) as far,
    ):
        await local.until(b"tok0")
        await far.until(b"tok0")
        (seen,) = await requests(daemon.tcp)
        assert (seen["id"], seen["who"]) == ("far", "127.0.0.1")
        assert {each["id"] for each in await requests(daemon.unix)} == {"local", "far"}
        answer = await cancel(daemon.tcp, "local")
        assert (answer.status, answer.error["code"]) == (403, "denied")
        assert (await cancel(daemon.tcp, "far")).status == 202
        await far.end()
        await local.until(b"tok9")


AS_ANOTHER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    peer.sendall(sys.argv[2].encode())
    while piece := peer.recv(65536):
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
"""


@contextmanager
def as_nobody(daemon: Daemon, line: str, body: object = None, *headers: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A request by the user nobody; its answer comes on stdout."""
    content = "" if body is None else json.dumps(body)
    fields = ["host: x", "connection: close", f"content-length: {len(content)}", *headers]
    text = "\r\n".join([f"{line} HTTP/1.1", *fields, "", content])
    argv = [sys.executable, "-I", "-S", "-c", AS_ANOTHER, str(daemon.socket), text]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def answer_to_nobody(daemon: Daemon, line: str) -> tuple[int, Any]:
    with as_nobody(daemon, line) as process:
        out, _ = process.communicate(timeout=60)
    head, _, body = out.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_on_the_unix_socket_only_what_is_of_the_same_user(start: Start) -> None:
    daemon = start(listen={"unix_mode": "0666"}, knobs=SLOW)
    with (
        as_nobody(daemon, f"POST {CHAT}", STREAM, "x-request-id: theirs"),
        as_nobody(daemon, f"POST {CHAT}", STREAM, "x-request-id: theirs-too"),
    ):
        until_sync(lambda: len(daemon.fetch(REQUESTS)[1]["requests"]) == 2, "both to be under way")
        with Root(daemon) as ours:
            status, seen = answer_to_nobody(daemon, f"GET {REQUESTS}")
            assert status == 200
            assert {(each["id"], each["who"]) for each in seen["requests"]} == {
                ("theirs", f"uid:{NOBODY}"),
                ("theirs-too", f"uid:{NOBODY}"),
            }
            assert len(daemon.fetch(REQUESTS)[1]["requests"]) == 3
            assert answer_to_nobody(daemon, f"DELETE {REQUESTS}/{ours}")[0] == 403
            assert answer_to_nobody(daemon, f"DELETE {REQUESTS}/theirs")[0] == 202
            assert daemon.fetch(f"{REQUESTS}/theirs-too", "DELETE")[0] == 202, "administrators cancel any"
            until_sync(lambda: len(daemon.fetch(REQUESTS)[1]["requests"]) == 1, "one to be left")


class Root:
    """A stream of the daemon's own user; a context manager that tells its id."""

    def __init__(self, daemon: Daemon) -> None:
        body = json.dumps(STREAM)
        text = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-request-id: ours\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        self._daemon, self._text = daemon, text

    def __enter__(self) -> str:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self._daemon.socket))
        self._socket.sendall(self._text.encode())
        assert self._socket.recv(1), "the answer has begun"
        return "ours"

    def __exit__(self, *_: object) -> None:
        self._socket.close()
