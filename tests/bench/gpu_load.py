"""Clients that cost little: chat streams over raw sockets, played and timed by a few processes of their own."""

import asyncio
import json
import multiprocessing
import random
import re
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, cast

PROCESSES = 4
MANY = 64
"""Streams from which on all processes play; one plays fewer by itself."""

ROUND_TIMEOUT_S = 180.0
PROMPT_WORDS = 40  # with the chat template around them about 64 of Qwen's tokens
WORDS = "time year people way day man thing woman life child world school state family student group country problem"

EVENT = b"data: {"
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
TAIL_BYTES = 2048


@dataclass
class Seen:
    """What one stream saw; times are seconds of the machine's monotonic clock, which all processes share."""

    asked_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    events: int = 0
    tokens: int = 0
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    failure: str = ""


class Stream(asyncio.Protocol):
    """One client on a connection of its own. vLLM's first event has no token; the first token is the second event."""

    def __init__(self, request: bytes) -> None:
        self.seen = Seen()
        self._request = request
        self._tail = self._carry = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own class is none by inheritance

    def ask(self) -> None:
        """Sends the request; its answer's times count from here."""
        self.seen.asked_at = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        joined = self._carry + data
        self._carry = joined[1 - len(EVENT) :]  # an event's mark may be cut in two
        if new := joined.count(EVENT):
            self._count(new, now)

    def _count(self, new: int, now: float) -> None:
        seen = self.seen
        seen.events += new
        if seen.first_at:
            seen.gaps.append(now - seen.last_at)
        elif seen.events > 1:
            seen.first_at = now
        seen.last_at = now

    def connection_lost(self, error: Exception | None) -> None:
        usage = USAGE.findall(self._tail)
        if b"data: [DONE]" in self._tail and usage:
            self.seen.tokens = int(usage[-1])
        else:
            self.seen.failure = f"{error or 'ended early'}: {self._tail[-300:]!r}"
        self.ended.set_result(None)


@dataclass(frozen=True)
class Share:
    """What one process has to play: so many requests at `unix:PATH` or `tcp:PORT`."""

    address: str
    requests: Sequence[bytes]


@dataclass(frozen=True)
class Played:
    """What came of a share, and the CPU time that its process used."""

    seen: list[Seen]
    cpu_s: float


class Clients:
    """The processes. They wait between rounds."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for _ in range(PROCESSES):
            ours, theirs = context.Pipe()
            context.Process(target=_work, args=(theirs,), daemon=True).start()
            theirs.close()
            self._pipes.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
            pipe.close()

    def play(self, address: str, requests: Sequence[bytes]) -> list[Played]:
        """All requests at once, on connections that are open already; returns when the last stream has ended."""
        pipes = self._pipes[: PROCESSES if len(requests) >= MANY else 1]
        for number, pipe in enumerate(pipes):
            pipe.send(Share(address, requests[number :: len(pipes)]))
        _all(pipes)  # are connected
        for pipe in pipes:
            pipe.send("go")
        return _all(pipes)


def _all(pipes: Sequence[Connection]) -> list[Any]:
    """What every process says next."""
    for pipe in pipes:
        if not pipe.poll(ROUND_TIMEOUT_S):
            raise SystemExit(f"a round did not end in {ROUND_TIMEOUT_S:g} s")
    return [pipe.recv() for pipe in pipes]


def request(number: int, tokens: int, model: str) -> bytes:
    """A chat request whose prompt nobody asked before; always the same one for the same number."""
    body = json.dumps(question(number, tokens, model)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def question(number: int, tokens: int, model: str) -> dict[str, object]:
    """What is asked in that request."""
    words = random.Random(number).choices(WORDS.split(), k=PROMPT_WORDS)
    return chat(f"{number}: {' '.join(words)}", tokens, model)


def chat(prompt: str, tokens: int, model: str) -> dict[str, object]:
    """A chat stream of exactly so many tokens, each the likeliest one."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _work(pipe: Connection) -> None:
    """The main function of a process: plays one share after the other until there is none."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner, suppress(EOFError, KeyboardInterrupt):
        while isinstance(share := pipe.recv(), Share):
            runner.run(_play(share, pipe))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is there."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _play(share: Share, pipe: Connection) -> None:
    try:
        streams = [await _connect(share.address, request) for request in share.requests]
    except OSError as error:
        streams, failure = [], f"cannot connect: {error}"
    pipe.send("connected")
    pipe.recv()
    began_s = time.process_time()
    for stream in streams:
        stream.ask()
    for stream in streams:
        await stream.ended
    seen = [stream.seen for stream in streams] or [Seen(failure=failure)]
    pipe.send(Played(seen, time.process_time() - began_s))


async def _connect(address: str, request: bytes) -> Stream:
    loop, (kind, _, where) = asyncio.get_running_loop(), address.partition(":")
    if kind == "unix":
        return (await loop.create_unix_connection(lambda: Stream(request), where))[1]
    return (await loop.create_connection(lambda: Stream(request), "127.0.0.1", int(where)))[1]
