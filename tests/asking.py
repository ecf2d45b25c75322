"""An HTTP client for tests that sees every byte: what came, in which order, and whether it ended as HTTP has it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
"""Nothing that is waited for here takes this long."""


@dataclass(frozen=True)
class Event:
    """One server-sent event, read without vllmd's own decoder."""

    name: str = "message"
    data: str | None = None
    comment: str | None = None
    id: str | None = None

    def json(self) -> Any:
        """Its data as JSON."""
        assert self.data is not None, self
        return json.loads(self.data)


def events(stream: bytes) -> list[Event]:
    """The events of a stream that separates them by LF LF, as vLLM and vllmd do; nothing may follow the last one."""
    *blocks, rest = stream.decode().split("\n\n")
    assert not rest, f"an event that never ended: {rest!r}"
    return [_event(block) for block in blocks]


def _event(block: str) -> Event:
    found: dict[str, list[str]] = {}
    for line in block.split("\n"):
        name, colon, value = line.partition(":")
        assert colon, f"no field: {line!r}"
        found.setdefault(name, []).append(value.removeprefix(" "))
    assert found.keys() <= {"data", "event", "id", ""}, block
    return Event(
        name=found.get("event", ["message"])[0],
        data="\n".join(found["data"]) if "data" in found else None,
        comment="\n".join(found[""]) if "" in found else None,
        id=found["id"][0] if "id" in found else None,
    )


class Exchange:
    """One request and its answer, as far as it has come.

    Attributes:
        status: of HTTP; 0 until the head is there.
        headers: in their order, names in lower case.
        trailers: what came behind the last chunk, likewise.
        body: its bytes so far, without HTTP's chunking.
        whole: whether the body has ended as HTTP has it: the last chunk, or all of content-length.
        cut: whether the connection ended before.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.trailers: list[tuple[str, str]] = []
        self.body = b""
        self.whole = False
        self.cut = False

    def header(self, name: str) -> str:
        """A header that must be there exactly once; empty where it is not."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else ""

    def json(self) -> Any:
        """The body as JSON."""
        assert self.whole, "the answer is not complete"
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error object of a body that is nothing else."""
        body = self.json()
        assert body.keys() == {"error"}, body
        return body["error"]

    @property
    def events(self) -> list[Event]:
        """The whole events that came so far."""
        return events(self.body[: self.body.rfind(b"\n\n") + 2] if b"\n\n" in self.body else b"")

    async def head(self) -> "Exchange":
        """Reads the head, unless that has happened."""
        if not self.status:
            async with asyncio.timeout(DEADLINE_S):
                await self._read_head()
        return self

    async def _read_head(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = [*map(_field, lines)]

    async def until(self, part: bytes, times: int = 1) -> "Exchange":
        """Reads on until the body holds `part`, so many times."""
        await self.head()
        async with asyncio.timeout(DEADLINE_S):
            while self.body.count(part) < times:
                assert not self.whole, f"the answer ended without {part!r}: {self.body!r}"
                assert not self.cut, f"the answer was cut before {part!r}: {self.body!r}"
                await self._more()
        return self

    async def end(self) -> "Exchange":
        """Reads on until nothing more comes."""
        async with asyncio.timeout(DEADLINE_S):
            async for _ in self.pieces():
                pass
        return self

    async def pieces(self) -> AsyncIterator[bytes]:
        """What comes from now on, as it comes, until nothing more does; without a deadline."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if not self.status:
                await self._read_head()
            while not self.whole and not self.cut:
                had = len(self.body)
                await self._more()
                yield self.body[had:]
        self.cut = not self.whole

    async def leave(self) -> None:
        """Hangs up."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _more(self) -> None:
        try:
            if self.header("transfer-encoding") == "chunked":
                await self._chunk()
            elif length := self.header("content-length"):
                self.body += await self._reader.readexactly(int(length))
                self.whole = True
            else:
                await self._to_end_of_file()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut = True

    async def _chunk(self) -> None:
        if size := int(await self._reader.readuntil(b"\r\n"), 16):
            self.body += (await self._reader.readexactly(size + 2))[:-2]
            return
        while line := (await self._reader.readuntil(b"\r\n")).decode("latin-1").rstrip():
            self.trailers.append(_field(line))
        self.whole = True

    async def _to_end_of_file(self) -> None:
        piece = await self._reader.read(2**16)
        self.body += piece
        self.cut = not piece


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


@dataclass(frozen=True)
class Door:
    """Somewhere to send requests to: a Unix socket, or a TCP port of this machine."""

    place: Path | int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which nothing was said yet."""
        if isinstance(self.place, Path):
            return await asyncio.open_unix_connection(str(self.place))
        return await asyncio.open_connection("127.0.0.1", self.place)

    async def open(
        self, path: str, body: Any = None, *, method: str = "", headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """Sends a request and reads nothing yet.

        Args:
            body: bytes as they are, or a value for JSON; None makes it a GET.
            method: another one than GET without and POST with a body.
            headers: beside host and content-length, or in their place.
        """
        reader, writer = await self.connect()
        writer.write(request(path, body, method=method, headers=headers))
        return Exchange(reader, writer)

    async def ask(
        self, path: str, body: Any = None, *, method: str = "", headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """A whole exchange."""
        exchange = await self.open(path, body, method=method, headers=headers)
        try:
            return await exchange.end()
        finally:
            await exchange.leave()

    @asynccontextmanager
    async def stream(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Exchange]:
        """An exchange that is hung up at the end of the block."""
        exchange = await self.open(path, body, headers=headers)
        try:
            yield exchange
        finally:
            await exchange.leave()


def request(path: str, body: Any = None, *, method: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    verb = method or ("GET" if body is None else "POST")
    fields = {"host": "localhost", "content-length": str(len(content)), **(headers or {})}
    lines = [f"{verb} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content
