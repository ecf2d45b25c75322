"""Engines that are struck in mid-answer, in every way, and what a client makes of the stream that it sees meanwhile."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from asking import Door, Event, Exchange
from continuing import Client
from daemons import Daemon
from generations import GUARD, find
from waiting import until

from vllmd.sse import events_in

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
TOKENS = 40
TEXT = " ".join(f"tok{number}" for number in range(TOKENS))
PACED: dict[str, Any] = {"tree": 1, "tokens": TOKENS, "tokens_per_s": 40}
"""Each whole answer takes a second."""

STALLED: dict[str, Any] = {**PACED, "fault": "stall", "fault_request": 2}
"""Every engine passes its first health check, and then says nothing more to anybody."""

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you there"}]}
STREAM: dict[str, Any] = {**HELLO, "stream": True}
COUNTED: dict[str, Any] = {**STREAM, "stream_options": {"include_usage": True}}

Strike = Callable[[Daemon], Awaitable[None]]


def by(number: signal.Signals, name: str = "") -> Strike:
    """A signal to a process of the living generation; without a name to its leader."""

    async def strike(daemon: Daemon) -> None:
        now = daemon.model()
        pid = find(daemon, now.generation, name) if name else now.pid
        assert pid, f"there is no {name or 'leader'}"
        os.kill(pid, number)

    return strike


async def hang(daemon: Daemon) -> None:
    """The engine makes no more tokens, and says it is well; only supervision finds out."""
    daemon.control(**PACED, fault="hang", once=str(daemon.folder / "hangs"))


async def restart(daemon: Daemon) -> None:
    """An operator's order."""
    assert (await daemon.unix.ask("/api/models/tiny/restart", b"")).status == 202


kill = by(signal.SIGKILL)
STRIKES: dict[str, Strike] = {
    "kill -9 of the API server": kill,
    "kill -9 of EngineCore": by(signal.SIGKILL, "VLLM::EngineCor"),
    "kill -9 of a Worker": by(signal.SIGKILL, "VLLM::Worker"),
    "kill -9 of the guard": by(signal.SIGKILL, GUARD),
    "SIGTERM to the API server": by(signal.SIGTERM),
    "SIGSTOP of EngineCore": by(signal.SIGSTOP, "VLLM::EngineCor"),
    "hang": hang,
    "vllmctl restart": restart,
}


@asynccontextmanager
async def begun(door: Door, path: str, body: dict[str, Any], after: bytes = b"tok5") -> AsyncIterator[Exchange]:
    """A stream in mid-answer."""
    async with door.stream(path, body) as stream:
        yield await stream.until(after)


async def outlived(
    daemon: Daemon, strike: Strike, path: str, body: dict[str, Any], *, door: Door | None = None
) -> Exchange:
    """A stream that was struck in mid-answer, at its end."""
    async with begun(door or daemon.unix, path, body) as stream:
        await strike(daemon)
        return await stream.end()


async def replaced(daemon: Daemon, generation: int = 2) -> None:
    """Waits until that generation serves."""
    await until(
        lambda: (now := daemon.model()).state == "ready" and now.generation >= generation, f"generation {generation}"
    )


# ── what the client sees ──


def client_of(answer: Exchange) -> Client:
    """What a client of `/v1` makes of an answer."""
    return Client([event for event in events_in(answer.body) if not event.startswith(b":")])


def assert_whole(answer: Exchange, text: str = TEXT, finish: str = "stop") -> Client:
    """One whole answer, as if nothing had happened."""
    assert answer.whole, answer.body
    client = client_of(answer)
    client.check()
    assert client.text == text
    assert [each["finish_reason"] for each in client.choices if each["finish_reason"]] == [finish]
    return client


def assert_text(answer: Exchange, text: str = TEXT) -> dict[str, Any]:
    """One whole answer of the simple door; returns what `done` says."""
    assert answer.whole, answer.body
    *events, done = [each for each in answer.events if each.comment is None]
    assert done.name == "done", answer.body
    assert {each.name for each in events} == {"message"}
    assert "".join(each.data or "" for each in events) == text
    outcome: dict[str, Any] = done.json()
    return outcome


def the_error(answer: Exchange) -> dict[str, Any]:
    """The one error event of a stream that broke; nothing that looks like a good end came before it."""
    assert answer.cut, answer.body
    told = [each for each in answer.events if each.comment is None]
    assert [number for number, each in enumerate(told) if _is_error(each)] == [len(told) - 1]
    assert b"[DONE]" not in answer.body
    assert b'"finish_reason":"' not in answer.body
    table: dict[str, Any] = told[-1].json()
    error: dict[str, Any] = table.get("error", table)
    return error


def _is_error(event: Event) -> bool:
    return event.name == "error" or (event.data or "").startswith('{"error"')


def continued(answer: Exchange) -> int:
    """How often the trailer says that it was continued; 0 without one."""
    found = [value for name, value in answer.trailers if name == "x-vllmd-continued"]
    assert len(found) <= 1
    return int(found[0]) if found else 0
