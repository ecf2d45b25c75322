"""Health that means tokens: a real supervisor on the fake engine, which says 200 to /health whatever happens."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fake_vllm
import pytest
from taking import take
from waiting import processes_with_environ, until

from vllmd import __version__
from vllmd.engine.feed import Feed
from vllmd.engine.plan import Plan
from vllmd.engine.supervisor import Supervisor
from vllmd.lifecycle import Load, Policy, State
from vllmd.sections import EnvironmentSettings, Model, Paths

QUICK = Policy(
    probe_interval_s=0.3, probe_timeout_s=5.0, stall_s=1.0, backoff_initial_s=0.05, stop_timeout_s=10.0, restart_limit=3
)


class Bench:
    """A supervisor with its fake engine, loaded."""

    def __init__(self, directory: Path, policy: Policy, **knobs: object) -> None:
        self.directory = directory
        self.control_file = directory / "control"
        self.journal_file = directory / "journal"
        self.control(**knobs)
        binaries = directory / "env/bin"
        binaries.mkdir(parents=True)
        (binaries / "python").symlink_to(sys.executable)
        (binaries / "vllm").symlink_to(fake_vllm.PROGRAM)
        (directory / "env/lib/python3.11/site-packages/vllm-0.0.0.dist-info").mkdir(parents=True)
        (directory / "env/pyvenv.cfg").write_text("version = 3.11.7\n")
        paths = Paths(state=str(directory / "state"), runtime=str(directory / "run"), cache=str(directory / "cache"))
        env = {"FAKE_CONTROL": str(self.control_file), "FAKE_JOURNAL": str(self.journal_file), "FAKE_TREE": "1"}
        plan = Plan(
            "tiny", Model("models/tiny", env=env), EnvironmentSettings(path=str(directory / "env")), paths, os.environ
        )
        self.supervisor = Supervisor(plan, policy, Feed())

    def control(self, **knobs: object) -> None:
        fake_vllm.control(self.control_file, **knobs)

    def requests(self, path: str) -> list[dict[str, Any]]:
        return [each for each in fake_vllm.journal(self.journal_file) if each.get("path") == path]

    def incidents(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.directory.glob("state/incidents/*.json"))]

    def process(self, name: str) -> int:
        """The engine's process of that name."""
        family = processes_with_environ("FAKE_JOURNAL", str(self.journal_file))
        return next(pid for pid in family if Path(f"/proc/{pid}/comm").read_text().startswith(name))

    async def ask(self, **body: object) -> bytes:
        """A chat request straight to the engine, as the relay would send it."""
        self.chunks: list[bytes] = []
        client = self.supervisor.client
        assert client is not None
        text = json.dumps({"messages": [{"role": "user", "content": "x"}], **body}).encode()
        async with client.send("POST", "/v1/chat/completions", body=text, headers={}) as exchange:
            if not (await exchange.head()).is_stream:
                return await exchange.read()
            await take(client, exchange, self.chunks.append)
            return b"".join(self.chunks)


@asynccontextmanager
async def bench(policy: Policy = QUICK, **knobs: object) -> AsyncIterator[Bench]:
    with TemporaryDirectory(prefix="vh") as name:
        made = Bench(Path(name), policy, **knobs)
        running = asyncio.create_task(made.supervisor.run())
        made.supervisor.post(Load())
        await asyncio.wait_for(made.supervisor.wait_for(State.READY), 60)
        try:
            yield made
        finally:
            await asyncio.wait_for(made.supervisor.close(), 60)
            running.cancel()
            await asyncio.wait([running])
            await until(lambda: not processes_with_environ("FAKE_JOURNAL", str(made.journal_file)), "nobody to be left")


async def ignore(work: Any) -> None:
    """A request whose fate is not this test's matter."""
    await asyncio.gather(work, return_exceptions=True)


async def test_an_idle_engine_that_hangs_is_replaced() -> None:
    patient = Policy(probe_interval_s=0.2, probe_timeout_s=0.5, failure_threshold=2, backoff_initial_s=0.05)
    async with bench(patient) as it:
        os.kill(it.process("VLLM::EngineCor"), signal.SIGSTOP)
        await until(lambda: it.supervisor.engine.generation == 2, "the next generation")
        await it.supervisor.wait_for(State.READY)
        assert it.supervisor.status.cause == "hung"
        assert it.supervisor.status.restarts == 1


async def test_a_busy_engine_that_falls_silent_is_replaced_without_waiting_for_more_probes() -> None:
    async with bench(tokens=1500, tokens_per_s=50) as it:
        stream = asyncio.create_task(ignore(it.ask(stream=True, max_tokens=1500)))
        await until(lambda: it.requests("/v1/chat/completions"), "the stream to run")
        os.kill(it.process("VLLM::EngineCor"), signal.SIGSTOP)
        await until(lambda: it.supervisor.engine.generation == 2, "the next generation", 60)
        await asyncio.wait_for(stream, 30)
        (incident,) = it.incidents()
        assert incident["cause"] == "hung"
        assert "no token has come for" in incident["reason"]
        states = {each["name"]: each["state"] for each in incident["processes"]}
        assert states["VLLM::EngineCor"] == "T"  # stopped, as it was found
        assert [bool(each["stack"]) for each in incident["processes"]][:3] == [False, True, True], "all but the guard"


async def test_tokens_that_flow_are_proof_enough() -> None:
    async with bench(tokens=1500, tokens_per_s=50) as it:
        stream = asyncio.create_task(ignore(it.ask(stream=True, max_tokens=1500)))
        await until(lambda: it.requests("/v1/chat/completions"), "the stream to run")
        before, epoch = len(it.requests("/v1/completions")), it.supervisor.engine.epoch
        await until(lambda: len(it.chunks) > 100, "two seconds of tokens: several probe intervals")
        assert len(it.requests("/v1/completions")) == before
        assert it.supervisor.engine.epoch == epoch
        stream.cancel()


async def test_an_answer_in_one_piece_may_take_longer_than_the_stall() -> None:
    """No byte comes meanwhile; the engine's own counters move, and that is proof of life."""
    async with bench(tokens=80, tokens_per_s=20) as it:
        answer = json.loads(await asyncio.wait_for(it.ask(max_tokens=80), 60))
        assert answer["usage"]["completion_tokens"] == 80
        assert it.supervisor.engine.generation == 1


async def test_a_long_prompt_buys_time() -> None:
    """The first token of a long prompt takes longer than `stall_s`, and no counter moves during the prefill."""
    async with bench(prefill_s=3, tokens=2) as it:
        words = "word " * 200  # 1000 bytes: five seconds more
        answer = await asyncio.wait_for(it.ask(messages=[{"role": "user", "content": words}]), 60)
        assert json.loads(answer)["usage"]["completion_tokens"] == 2
        assert it.supervisor.engine.generation == 1


async def test_a_short_prompt_does_not() -> None:
    async with bench() as it:
        it.control(prefill_s=600)
        asking = asyncio.create_task(ignore(it.ask()))
        await until(lambda: it.supervisor.engine.generation == 2, "the next generation", 60)
        it.control()
        await asyncio.wait_for(asking, 30)


async def test_a_crash_leaves_an_incident_with_its_last_lines() -> None:
    async with bench() as it:
        os.kill(it.process("VLLM::EngineCor"), signal.SIGKILL)
        await until(lambda: it.supervisor.engine.generation == 2, "the next generation")
        (incident,) = it.incidents()
        assert incident["generation"] == 1
        assert incident["was_ready"] is True
        assert incident["lines"]
        assert incident["reason"]
        assert incident["config_digest"] == it.supervisor.plan.digest
        assert incident["versions"]["vllmd"] == __version__
        assert (incident["versions"]["vllm"], incident["versions"]["python"]) == ("0.0.0", "3.11.7")


async def test_an_end_that_was_asked_for_leaves_none() -> None:
    async with bench() as it:
        await it.supervisor.close()
        assert it.incidents() == []


async def test_the_second_start_knows_how_long_it_will_take() -> None:
    async with bench(ready_after_s=1.5) as it:
        await it.supervisor.close()
        assert it.supervisor.status.eta_s is None
        it.supervisor.post(Load())
        seen: list[str] = []

        def tells() -> bool:
            status = it.supervisor.status
            seen.append(status.sentence())
            return status.eta_s is not None

        await until(tells, "an estimate")
        assert it.supervisor.status.eta_s is not None
        assert 0 <= it.supervisor.status.eta_s <= 30
        await it.supervisor.wait_for(State.READY)


async def test_a_start_that_only_computes_is_not_silent() -> None:
    """No line for longer than the stall; the CPU time of its processes is a sign of life."""
    policy = Policy(startup_stall_s=3.5, backoff_initial_s=0.05)
    async with bench(policy, ready_after_s=8, start_log="none", start_busy=1) as it:
        assert it.supervisor.engine.generation == 1


@pytest.mark.timeout(120)
async def test_a_start_that_answers_without_a_token_is_a_failure(tmp_path: Path) -> None:
    """It writes a line for each health check, and that is no progress."""
    policy = Policy(startup_stall_s=2, backoff_initial_s=0.05)
    async with bench(policy, fault="http:500", once=str(tmp_path / "once")) as it:
        assert it.supervisor.engine.generation == 2
        assert it.incidents()[0]["cause"] == "stalled"


@pytest.mark.timeout(120)
async def test_a_start_that_does_nothing_is_a_failure(tmp_path: Path) -> None:
    policy = Policy(startup_stall_s=3.5, backoff_initial_s=0.05)
    once = tmp_path / "once"
    async with bench(policy, start_end="never", start_log="none", once=str(once)) as it:
        assert it.supervisor.engine.generation == 2
        assert it.incidents()[0]["cause"] == "stalled"
