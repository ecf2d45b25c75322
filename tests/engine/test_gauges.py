"""An engine is asked for its load only while somebody wants to know, and never often, and nobody waits long for it."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from waiting import until

from vllmd.engine.client import EngineClient
from vllmd.engine.gauges import Gauges, Scraping

PAGE = b"vllm:num_requests_running 2.0\nvllm:num_requests_waiting 1.0\nvllm:kv_cache_usage_perc 0.5\n"


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the engine listens; short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="vg", dir="/tmp"))
    yield folder / "sock"
    shutil.rmtree(folder)


class Engine:
    """One that tells its metrics as soon as it may, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.asked += 1
                await self.may_answer.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(PAGE), PAGE))

    async def close(self) -> None:
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def scraped(path: Path) -> AsyncIterator[tuple[Engine, Scraping]]:
    engine = Engine()
    server = await asyncio.start_unix_server(engine.serve, path)
    try:
        async with EngineClient(path) as client:
            yield engine, Scraping(client)
    finally:
        server.close()
        await engine.close()


async def test_many_who_want_to_know_are_one_question(path: Path) -> None:
    async with scraped(path) as (engine, scraping):
        engine.may_answer.set()
        await until(scraping.latest, "the engine to tell")
        asked = engine.asked
        told = await asyncio.gather(*(scraping.latest() for _ in range(50)))
        assert told == [Gauges(2, 1, 0.5)] * 50
        assert engine.asked <= asked + 1


async def test_an_engine_that_does_not_answer_is_not_waited_for(path: Path) -> None:
    async with scraped(path) as (engine, scraping):
        async with asyncio.timeout(20):  # far below what the answer itself would take: for ever
            assert await scraping.latest() is None
        engine.may_answer.set()
        await until(scraping.latest, "the late answer to be there for who asks next")


async def test_an_engine_that_is_gone_says_nothing(path: Path) -> None:
    async with EngineClient(path) as client:
        assert await Scraping(client).latest() is None
