"""For tests: starts a fake engine and ends all it left behind; a client that sees every byte of an answer."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_vllm
from waiting import processes_with_environ, until


@dataclass
class Answer:
    """A response: `chunks` are its HTTP chunks; `whole` says whether HTTP was ended in good order."""

    head: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    rest: bytes = b""
    whole: bool = False

    @property
    def status(self) -> int:
        return int(self.head[0].split()[1])

    @property
    def content(self) -> str:
        return b"".join(self.chunks).decode()

    @property
    def events(self) -> list[str]:
        return self.content.split("\n\n")[:-1]

    @property
    def text(self) -> str:
        """What a chat stream said."""
        found = [json.loads(event.removeprefix("data: ")) for event in self.events if "delta" in event]
        return "".join(event["choices"][0]["delta"]["content"] for event in found)


@dataclass
class Fake:
    """A running fake engine."""

    process: subprocess.Popen[bytes]
    uds: Path
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_bytes().decode(errors="replace")

    def journal(self, event: str = "") -> list[dict[str, Any]]:
        """Its own entries, not those of the generation before."""
        entries = fake_vllm.journal(self.folder / "journal", event)
        return [entry for entry in entries if entry["pid"] == self.process.pid]

    def control(self, **knobs: object) -> None:
        fake_vllm.control(self.folder / "control", **knobs)

    async def open(self, path: str, body: Any = None, **headers: str) -> "Open":
        """Sends a request, with a body by POST; reads nothing yet."""
        reader, writer = await asyncio.open_unix_connection(str(self.uds))
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: x", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        return Open(reader, writer)

    async def call(self, path: str, body: Any = None, **headers: str) -> Answer:
        """A whole exchange."""
        return await (await self.open(path, body, **headers)).answer()

    async def metric(self, name: str) -> float:
        page = (await self.call("/metrics")).content
        found = re.search(rf"^vllm:{name}{{.*}} (\S+)$", page, re.MULTILINE)
        assert found
        return float(found[1])

    async def exit_status(self) -> int:
        await until(lambda: self.process.poll() is not None, "the fake to exit")
        return int(self.process.returncode)


@dataclass
class Open:
    """A response on its way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    so_far: Answer = field(default_factory=Answer)

    async def answer(self) -> Answer:
        """All of it, until it ends by itself or is cut; then hangs up."""
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):
            await self.read()
        await self.leave()
        return self.so_far

    async def read(self, chunks: int = 10**9) -> None:
        """The head, and then so many HTTP chunks; or the body."""
        if not self.so_far.head:
            self.so_far.head = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
        length = re.search(r"content-length: (\d+)", "\n".join(self.so_far.head))
        if length:
            self.so_far.chunks = [await self.reader.readexactly(int(length[1]))]
            self.so_far.whole = True
        while not self.so_far.whole and chunks:
            await self._chunk()
            chunks -= 1

    async def _chunk(self) -> None:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        try:
            data = await self.reader.readexactly(size + 2)
        except asyncio.IncompleteReadError as cut:
            self.so_far.rest = cut.partial
            raise
        self.so_far.chunks += [data[:-2]] if size else []
        self.so_far.whole = not size

    async def leave(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def spawn(folder: Path, *flags: str, **knobs: object) -> Fake:
    """Starts a fake whose files are in `folder`; its environment tells it and all its children from others."""
    with (folder / "log").open("ab") as log:
        environ = fake_vllm.environ(journal=folder / "journal", control=folder / "control", **knobs)
        command = fake_vllm.command(folder / "uds", *flags, name="smollm2")
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    return Fake(process, folder / "uds", folder)


def clean_up(fake: Fake) -> None:
    """Ends the fake and whatever it left behind."""
    for pid in processes_with_environ("FAKE_JOURNAL", str(fake.folder / "journal")):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    fake.process.wait()


@asynccontextmanager
async def running(folder: Path, *flags: str, **knobs: object) -> AsyncIterator[Fake]:
    """A fake that is ready."""
    fake = spawn(folder, *flags, **knobs)
    try:
        await until(lambda: fake.journal("ready") or fake.process.poll() is not None, "the fake to be ready")
        assert fake.process.poll() is None, fake.log
        yield fake
    finally:
        clean_up(fake)
