"""The health check: a token has to come out, from the probe itself or for somebody else."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_engine.running import Fake, running
from taking import take
from waiting import until

from vllmd.engine.client import EngineClient
from vllmd.engine.probe import FRESH_S, probe
from vllmd.errors import CertainFailure, EngineRefused, EngineUnreachable, ProbeFailed, StreamBroken
from vllmd.lifecycle import Policy

MODEL = "smollm2"
PATIENCE_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="vp", dir="/tmp"))
    yield path
    shutil.rmtree(path)


async def check(client: EngineClient, patience_s: float) -> None:
    """One health check that is as patient with a busy engine as with an idle one."""
    await probe(client, MODEL, Policy(probe_timeout_s=patience_s, stall_s=patience_s))


@asynccontextmanager
async def engine(folder: Path, *flags: str, **knobs: object) -> AsyncIterator[tuple[Fake, EngineClient]]:
    async with running(folder, *flags, **knobs) as fake, EngineClient(fake.uds) as client:
        yield fake, client


async def complete(client: EngineClient, content: bytes) -> None:
    """Asks for a completion, and takes it to its end. Raises what ends it early."""
    async with client.send("POST", "/v1/completions", body=content) as exchange:
        await take(client, exchange)


def body(**more: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1000, **more}).encode()


async def test_one_token_is_enough(folder: Path) -> None:
    async with engine(folder) as (fake, client):
        await check(client, PATIENCE_S)
        (asked,) = fake.journal("request")
        assert asked["body"]["max_tokens"] == 1
        assert asked["path"] == "/v1/completions"


@pytest.mark.parametrize("knobs", [{"tokens": 0}, {"eos": 1, "tokens": 0}, {"text": "é", "split": "bytes"}])
async def test_a_token_without_text_is_a_token(folder: Path, knobs: dict[str, Any]) -> None:
    async with engine(folder, **knobs) as (_, client):
        await check(client, PATIENCE_S)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"fault": "http:500"}, "500"),
        ({"fault": "http:503"}, "503"),
        ({"fault": "cut"}, "closed the connection"),
        ({"fault": "error:500"}, "500"),
    ],
)
async def test_no_token_is_a_failure_with_its_reason(folder: Path, knobs: dict[str, Any], reason: str) -> None:
    async with engine(folder, **knobs) as (_, client):
        with pytest.raises(ProbeFailed, match=reason):
            await check(client, PATIENCE_S)


@pytest.mark.parametrize("fault", ["hang", "stall"])
async def test_silence_is_a_failure(folder: Path, fault: str) -> None:
    async with engine(folder) as (fake, client):
        fake.control(fault=fault)
        with pytest.raises(ProbeFailed, match=r"no token within 0\.3 s"):
            await check(client, 0.3)
        await until(lambda: fake.journal("end"), "the probe to be called off in the engine")
        fake.control()
        await check(client, PATIENCE_S)


async def test_an_unknown_model_is_a_failure(folder: Path) -> None:
    async with engine(folder) as (_, client):
        with pytest.raises(ProbeFailed, match="404"):
            await probe(client, "other", Policy())


async def test_nobody_there_is_a_failure(folder: Path) -> None:
    async with EngineClient(folder / "nobody") as client:
        with pytest.raises(ProbeFailed, match="takes no connections"):
            await check(client, PATIENCE_S)


async def test_a_client_that_is_closed_takes_no_more_requests(folder: Path) -> None:
    async with engine(folder) as (_, client):
        pass
    with pytest.raises(EngineRefused):
        async with client.send("GET", "/health"):
            pass


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_tokens_for_others_are_a_proof_where_the_engine_is_full(folder: Path, stream: bool) -> None:
    async with engine(folder, "--max-num-seqs=1", tokens=1000, tokens_per_s=50) as (fake, client):
        reader = asyncio.create_task(complete(client, body(stream=stream)))
        await until(lambda: fake.journal("request"), "the engine to be full")
        await check(client, 0.4)
        fake.control(fault="hang")
        now = asyncio.get_running_loop().time
        await until(lambda: now() - client.proved_at > 2 * FRESH_S, "the last token to be no proof for now")
        with pytest.raises(CertainFailure, match="no token has come for"):
            await check(client, 0.4)
        reader.cancel()


async def test_what_came_before_the_probe_proves_nothing(folder: Path) -> None:
    async with engine(folder) as (fake, client):
        await complete(client, body(stream=True))
        fake.control(fault="hang")
        with pytest.raises(ProbeFailed):
            await check(client, 0.3)


async def test_how_an_answer_is_cut_is_told(folder: Path) -> None:
    async with engine(folder) as (fake, client):
        fake.control(fault="cut-inside", fault_after=3, tokens_per_s=100)
        with pytest.raises(StreamBroken):
            await complete(client, body(stream=True))
        async with client.send("POST", "/v1/completions", body=body(stream=False)) as exchange:
            with pytest.raises(EngineUnreachable):
                await exchange.read()
