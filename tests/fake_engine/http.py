"""HTTP/1.1 as uvicorn speaks it: one connection, its requests one after the other, bodies written event by event."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import cast

from .dialects import KEEP_ALIVE

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests"}
REASONS |= {500: "Internal Server Error", 503: "Service Unavailable"}
JSON = "application/json"


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: str = ""


class Connection(asyncio.Protocol):
    """A client. Its task is cancelled as soon as it leaves, and `gone` is set before."""

    def __init__(self, answer: "Callable[[Request, Connection], Awaitable[None]]", log: Callable[[str], None]) -> None:
        self._answer = answer
        self._log = log
        self._asked = ""
        self._received = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = False
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._news.set()

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def drained(self) -> None:
        """Waits for a slow reader."""
        await self._writable.wait()

    def respond(self, status: int, body: bytes = b"", kind: str = JSON) -> None:
        """Writes a whole response."""
        typed = [f"content-type: {kind}"] if body else []
        self._head(status, [f"content-length: {len(body)}", *typed, "vary: Origin"], body)

    def begin_stream(self) -> None:
        """Writes the head of a stream of events."""
        kind = "content-type: text/event-stream; charset=utf-8"
        self._head(200, [kind, "vary: Origin", "transfer-encoding: chunked"])

    def _head(self, status: int, headers: list[str], body: bytes = b"") -> None:
        self._log(f'INFO:      - "{self._asked} HTTP/1.1" {status} {REASONS[status]}\n')
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"date: {date}", "server: uvicorn", *headers]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _leave(self) -> None:
        self.gone = True
        self.task.cancel()

    async def _serve(self) -> None:
        keep_alive_s = float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5"))
        try:
            while not self.transport.is_closing():
                async with asyncio.timeout(keep_alive_s):
                    await self._until(lambda: b"\r\n\r\n" in self._received)
                request = await self._read()
                await self._answer(request, self)
                if request.headers.get("connection", "").lower() == "close":
                    break
        except TimeoutError:
            pass
        finally:
            self.transport.close()

    async def _read(self) -> Request:
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "expect" in headers:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, _ = first.split(" ")
        self._asked = f"{method} {target}"
        chunked = "chunked" in headers.get("transfer-encoding", "")
        body = await self._chunks() if chunked else await self._take(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        return Request(method, path, headers, body, query)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            await self._until(lambda: b"\r\n" in self._received)
            size = int((await self._take(self._received.index(b"\r\n") + 2)).split(b";")[0], 16)
            body += (await self._take(size + 2))[:size]
            if not size:
                return body

    async def _take(self, count: int) -> bytes:
        await self._until(lambda: len(self._received) >= count)
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    async def _until(self, there: Callable[[], bool]) -> None:
        while not there():
            self._news.clear()
            await self._news.wait()


def frame(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Body:
    """The events of one stream on their way to a connection."""

    def __init__(self, connection: Connection, per_send: int, chop: int, number: int) -> None:
        self._connection = connection
        self._per_send = per_send
        self._random = random.Random(f"{chop} {number}") if chop else None
        self.last_write = time.monotonic()

    async def write(self, events: list[bytes]) -> None:
        """Sends events: each an HTTP chunk in a write of its own, unless knobs say otherwise."""
        send = self._connection.transport.write
        if self._random:
            frames = [frame(piece) for piece in self._chopped(b"".join(events))]
            await self._trickle(self._chopped(b"".join(frames)))
        elif self._per_send == 1:
            for event in events:
                send(b"%x\r\n%b\r\n" % (len(event), event))
        else:
            for first in range(0, len(events), self._per_send):
                send(b"".join(map(frame, events[first : first + self._per_send])))
        self.last_write = time.monotonic()
        await self._connection.drained()

    async def _trickle(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                self._connection.transport.write(piece)
                await asyncio.sleep(0)
        finally:  # even if the stream is ended meanwhile: half an event is no ending
            self._connection.transport.write(b"".join(pieces))

    async def keep_alive(self) -> None:
        await self.write([KEEP_ALIVE])

    def end(self) -> None:
        """Ends the body as HTTP has it."""
        self._connection.transport.write(b"0\r\n\r\n")

    def cut(self, event: bytes = b"") -> None:
        """Ends the connection, after half of an event if one is given."""
        half = frame(event)[: len(event) // 2] if event else b""
        self._connection.transport.write(half)
        self._connection.transport.close()

    def _chopped(self, data: bytes) -> Iterator[bytes]:
        assert self._random
        while data:
            size = self._random.randint(1, 60)
            yield data[:size]
            data = data[size:]
