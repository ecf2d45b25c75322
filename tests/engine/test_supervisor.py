"""One engine through thick and thin: the supervisor on real processes of the fake engine."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
from taking import take
from waiting import alive, descendants, processes_with_environ, until

from vllmd.engine.feed import Entry, Feed
from vllmd.engine.generation import LAST_LINES
from vllmd.engine.plan import Plan
from vllmd.engine.supervisor import Supervisor
from vllmd.lifecycle import Load, Policy, Restart, State, Unload
from vllmd.sections import EnvironmentSettings, Model, Paths
from vllmd.statuses import ModelStatus

QUICK = Policy(
    probe_interval_s=3600,
    probe_timeout_s=20,
    failure_threshold=2,
    startup_stall_s=30,
    stop_timeout_s=20,
    stable_after_s=3600,
    restart_limit=2,
    backoff_initial_s=0.05,
    backoff_max_s=0.1,
)
WATCHFUL = replace(QUICK, probe_interval_s=0.1, probe_timeout_s=0.4)
MARK = "VLLMD_TEST"
ANSWER = {"model": "tiny", "prompt": "long", "max_tokens": 1000}


def statuses(entries: Iterable[Entry]) -> list[ModelStatus]:
    """What the entries tell of models."""
    return [each.news for each in entries if isinstance(each.news, ModelStatus)]


def printed(supervisor: Supervisor) -> list[str]:
    """The last lines of the current generation, as its incident would show them."""
    assert supervisor._generation is not None
    return list(supervisor._generation.lines)


class Bench:
    """A supervisor, its engine's knobs, and what it told the feed."""

    def __init__(self, folder: Path, policy: Policy, args: dict[str, Any]) -> None:
        self.folder = folder
        self.feed = Feed()
        self.signs_of_life = 0
        knobs = {"CONTROL": "control", "JOURNAL": "journal"}
        env = {f"FAKE_{name}": str(folder / file) for name, file in knobs.items()}
        plan = Plan(
            name="tiny",
            model=Model("models/tiny", args=args, env={**env, "FAKE_LIFE_S": "120"}),
            environment=EnvironmentSettings(path=str(folder / "env")),
            paths=Paths(state=str(folder / "s"), runtime=str(folder / "r"), cache=str(folder / "c")),
            environ={**os.environ, MARK: str(folder)},
        )
        self.supervisor = Supervisor(plan, policy, self.feed, self._sign_of_life)

    def _sign_of_life(self) -> None:
        self.signs_of_life += 1

    def control(self, **knobs: object) -> None:
        fake_vllm.control(self.folder / "control", **knobs)

    def journal(self, event: str = "") -> list[dict[str, Any]]:
        return fake_vllm.journal(self.folder / "journal", event)

    @property
    def engine(self) -> Any:
        return self.supervisor.engine

    @property
    def pid(self) -> int:
        pid = self.supervisor.status.pid
        assert pid is not None
        return pid

    def processes(self) -> set[int]:
        return processes_with_environ(MARK, str(self.folder))

    async def states(self) -> list[str]:
        """All states so far, in order."""
        entries, _ = await self.feed.after(0)
        told = [each.state for each in statuses(entries)]
        return [state for at, state in enumerate(told) if at == 0 or told[at - 1] != state]

    async def reaches(self, *states: State, deadline_s: float = 30) -> None:
        async with asyncio.timeout(deadline_s):
            await self.supervisor.wait_for(*states)

    async def loads(self) -> None:
        self.supervisor.post(Load())
        await self.reaches(State.READY)

    async def until(self, condition: Any, what: str) -> None:
        await until(condition, f"{what}; so far: {await self.states()}")

    async def stream(self, tokens: int = 3) -> "asyncio.Task[None]":
        """A client with a stream of which so many tokens have come."""
        client = self.supervisor.client
        assert client
        enough = asyncio.Event()

        async def read() -> None:
            body, seen = json.dumps({**ANSWER, "stream": True}).encode(), bytearray()

            def see(data: bytes) -> None:
                seen.extend(data)
                if seen.count(b"tok") >= tokens:
                    enough.set()

            async with client.send("POST", "/v1/completions", body=body) as exchange:
                await take(client, exchange, see)

        task = asyncio.create_task(read())
        await enough.wait()
        return task


@asynccontextmanager
async def bench(policy: Policy = QUICK, args: dict[str, Any] | None = None, **knobs: object) -> AsyncIterator[Bench]:
    """A supervisor that runs, on an engine with those knobs; afterwards nothing of it is alive or left."""
    folder = Path(tempfile.mkdtemp(prefix="vs", dir="/tmp"))
    binaries = folder / "env" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "vllm").symlink_to(fake_vllm.PROGRAM)
    made = Bench(folder, policy, args or {})
    made.control(**knobs)
    running = asyncio.create_task(made.supervisor.run())
    try:
        yield made
        assert not running.done(), "the supervisor's loop has ended"
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        try:
            assert not made.processes(), "a process outlived its supervisor"
            assert not list(folder.glob("r/*")), "a directory of an engine is left"
        finally:
            for pid in made.processes():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder)


# ── a good life ──


async def test_load_and_unload() -> None:
    async with bench() as it:
        assert it.supervisor.client is None
        await it.loads()
        assert await it.states() == ["starting", "ready"]
        assert it.supervisor.client
        assert alive(it.pid)
        assert (it.engine.generation, it.engine.restarts, it.engine.crashes) == (1, 0, 0)
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPED)
        assert await it.states() == ["starting", "ready", "stopping", "stopped"]
        assert not it.processes()
        assert it.supervisor.status.pid is None
        assert it.supervisor.client is None
        assert [each["name"] for each in it.journal("signal")] == ["SIGTERM"], "it was asked to end, not killed"


async def test_every_generation_has_a_number_and_a_directory_of_its_own() -> None:
    async with bench() as it:
        sockets: list[Path] = []
        for number in (1, 2, 3):
            await it.loads()
            assert it.engine.generation == number
            sockets += it.folder.glob("r/*/api.sock")
            it.supervisor.post(Unload())
            await it.reaches(State.STOPPED)
            assert not list(it.folder.glob("r/*"))
        assert len(set(sockets)) == 3


async def test_a_start_is_told_phase_by_phase() -> None:
    async with bench(ready_after_s=0.2) as it:
        await it.loads()
        entries, _ = await it.feed.after(0)
        phases = [each.phase for each in statuses(entries)]
        wanted = ["starting up", "loading weights", "compiling", "capturing graphs", "warming up"]
        assert [each for at, each in enumerate(phases) if each and each not in phases[:at]] == wanted
        assert (statuses(entries)[-1].state, phases[-1]) == ("ready", None)
        assert it.signs_of_life >= 1


# ── crashes ──


async def test_a_crash_is_followed_by_a_pause_and_a_restart() -> None:
    async def crash(number: signal.Signals) -> None:
        async with bench() as it:
            await it.loads()
            os.kill(it.pid, number)
            await it.reaches(State.BACKOFF)
            assert it.supervisor.client is None
            assert not it.processes()
            await it.reaches(State.READY)
            assert await it.states() == ["starting", "ready", "backoff", "starting", "ready"]
            assert (it.engine.generation, it.engine.restarts, it.engine.crashes) == (2, 1, 1)
            assert it.supervisor.status.reason

    await asyncio.gather(*map(crash, (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT)))


async def test_exit_0_when_enginecore_dies_is_a_failure() -> None:
    async with bench(tree=1) as it:
        await it.loads()
        core = next(p for p in descendants(it.pid) if Path(f"/proc/{p}/comm").read_text() == "VLLM::EngineCor\n")
        os.kill(core, signal.SIGKILL)
        await it.reaches(State.BACKOFF)
        assert it.journal("exit")[0]["status"] == 0
        assert it.supervisor.status.cause
        await it.reaches(State.READY)
        assert it.engine.restarts == 1


async def test_exit_0_during_the_start_is_a_failure() -> None:
    async with bench(start_end="exit:0") as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert it.engine.generation == QUICK.restart_limit + 1


async def test_a_crash_loop_ends_in_failed_with_a_reason_and_can_be_left() -> None:
    async with bench(start_end="exit:1", start_at=0.1, start_last="ValueError: out of luck") as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert await it.states() == ["starting", "backoff"] * QUICK.restart_limit + ["starting", "failed"]
        assert it.engine.restarts == QUICK.restart_limit
        status = it.supervisor.status
        assert "out of luck" in status.reason
        assert status.cause
        assert status.hint
        assert "out of luck" in "\n".join(printed(it.supervisor))
        assert not it.processes()
        it.control()
        await it.loads()
        assert it.engine.crashes == 0


async def test_a_permanent_failure_is_not_tried_again() -> None:
    async with bench(unknown_flags="--frobnicate", args={"frobnicate": True}) as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert await it.states() == ["starting", "failed"]
        assert it.engine.generation == 1
        assert "frobnicate" in it.supervisor.status.reason


async def test_a_program_that_cannot_be_started_is_a_failure_like_another() -> None:
    async with bench() as it:
        (it.folder / "env" / "bin" / "python").unlink()
        (it.folder / "env" / "bin" / "python").write_text("no program")
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert "cannot start" in it.supervisor.status.reason
        assert it.supervisor.status.hint


async def test_an_engine_that_dies_of_its_first_request_does_not_restart_for_ever() -> None:
    # The second request of each process, here the second health check, kills it.
    async with bench(WATCHFUL, fault="cut", fault_request=2, fault_exit="SIGKILL") as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert (await it.states()).count("ready") == WATCHFUL.restart_limit + 1


async def test_a_crash_is_forgiven_once_ready_has_lasted() -> None:
    patient = replace(WATCHFUL, stable_after_s=0.0)
    async with bench(patient, fault="cut", fault_request=2, fault_exit="SIGKILL") as it:
        it.supervisor.post(Load())
        await it.until(lambda: it.engine.restarts > WATCHFUL.restart_limit + 1, "more restarts than a row allows")
        it.control()
        await it.reaches(State.READY)


# ── silence ──


async def test_a_silent_start_is_a_stall() -> None:
    policy = replace(QUICK, startup_stall_s=0.5, restart_limit=0)
    async with bench(policy, start_end="never", start_log="none", start_term="ignore", tree=1) as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert await it.states() == ["starting", "stopping", "failed"]
        assert it.supervisor.status.cause == "stalled"
        assert "0.5 s" in it.supervisor.status.reason


async def test_a_start_that_says_something_now_and_then_may_take_its_time() -> None:
    policy = replace(QUICK, startup_stall_s=2.5, restart_limit=0)
    async with bench(policy, ready_after_s=4) as it:
        await it.loads()
        assert it.engine.generation == 1


async def test_a_start_that_stops_half_way_is_a_stall() -> None:
    policy = replace(QUICK, startup_stall_s=0.6, restart_limit=0)
    async with bench(policy, ready_after_s=1, start_at=0.5, start_end="never") as it:
        it.supervisor.post(Load())
        await it.reaches(State.FAILED)
        assert it.supervisor.status.cause == "stalled"


# ── health ──


async def test_a_hang_while_idle_is_seen_though_health_says_200() -> None:
    async with bench(WATCHFUL) as it:
        await it.loads()
        first = it.pid
        it.control(fault="hang")
        await it.reaches(State.UNHEALTHY)
        assert it.supervisor.client is None, "who asks now is held"
        client = it.supervisor._client
        assert client
        async with client.send("GET", "/health") as health:
            assert (await health.head()).status == 200
        await it.until(lambda: it.engine.generation == 2, "the engine to be replaced")
        it.control()
        await it.reaches(State.READY)
        assert await it.states() == ["starting", "ready", "unhealthy", "stopping", "backoff", "starting", "ready"]
        assert not alive(first)
        assert it.supervisor.status.cause == "hung"
        assert it.engine.restarts == 1


async def test_a_stopped_process_is_seen_and_replaced() -> None:
    async def stop(victim: str) -> None:
        async with bench(WATCHFUL, tree=1) as it:
            await it.loads()
            below = descendants(it.pid)
            core = next(p for p in below if Path(f"/proc/{p}/comm").read_text() == "VLLM::EngineCor\n")
            os.kill(it.pid if victim == "leader" else core, signal.SIGSTOP)
            await it.until(lambda: it.engine.generation == 2, "the engine to be replaced")
            await it.reaches(State.READY)
            assert not any(alive(pid) for pid in below)

    await asyncio.gather(stop("leader"), stop("core"))


async def test_a_short_weakness_is_survived() -> None:
    policy = replace(WATCHFUL, failure_threshold=1000)
    async with bench(policy) as it:
        await it.loads()
        for _ in range(2):
            it.control(fault="hang")
            await it.reaches(State.UNHEALTHY)
            it.control()
            await it.reaches(State.READY)
        assert (it.engine.generation, it.engine.probe_failures) == (1, 0)


async def test_an_engine_that_answers_errors_is_replaced() -> None:
    async with bench(WATCHFUL) as it:
        await it.loads()
        it.control(fault="http:500")
        await it.until(lambda: it.engine.generation == 2, "the engine to be replaced")
        assert "500" in it.supervisor.status.reason
        it.control()
        await it.reaches(State.READY)


async def count_probes(it: Bench, count: int) -> None:
    """Waits until so many health checks more have come to their end, well or not."""
    ends = len(it.journal("end"))
    await it.until(lambda: len(it.journal("end")) >= ends + count, f"{count} health checks")


# ── orders at the wrong moment ──


async def test_load_and_unload_before_anything_has_begun() -> None:
    async with bench() as it:
        it.supervisor.post(Load())
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPING)
        await it.reaches(State.STOPPED, deadline_s=10)
        it.supervisor.post(Load())
        it.supervisor.post(Restart())
        it.supervisor.post(Unload())
        it.supervisor.post(Load())
        await it.reaches(State.READY)


async def test_an_order_meets_the_new_engine_and_not_the_one_before() -> None:
    async with bench(replace(QUICK, stop_timeout_s=600)) as it:
        await it.loads()
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPED)
        it.supervisor.post(Load())
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPING)
        await it.reaches(State.STOPPED, deadline_s=10)


async def test_unload_during_the_start() -> None:
    async def unload(manner: str) -> None:
        policy = replace(QUICK, stop_timeout_s=600)
        async with bench(policy, start_end="never", start_term=manner, tree=1, stray=1) as it:
            it.supervisor.post(Load())
            await it.until(lambda: len(it.processes()) >= 5, "the whole tree to be there")
            it.supervisor.post(Unload())
            await it.reaches(State.STOPPED, deadline_s=10)
            assert not it.processes()
            assert it.engine.verdict is None, "to be stopped is no failure"

    await asyncio.gather(*map(unload, ("die", "ignore", "hang")))


async def test_load_during_the_stop() -> None:
    async with bench(replace(QUICK, stop_timeout_s=0.5), term="ignore") as it:
        await it.loads()
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPING)
        it.supervisor.post(Load())
        await it.reaches(State.READY)
        assert await it.states() == ["starting", "ready", "stopping", "starting", "ready"]
        assert (it.engine.generation, it.engine.restarts) == (2, 0)


@pytest.mark.parametrize("manner", ["ignore", "hang"])
async def test_an_engine_that_does_not_go_is_killed(manner: str) -> None:
    async with bench(replace(QUICK, stop_timeout_s=0.3), term=manner, tree=1, stray=1) as it:
        await it.loads()
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPED, deadline_s=10)
        assert not it.processes()
        assert it.engine.verdict is None


async def test_a_restart_is_no_crash() -> None:
    async with bench() as it:
        await it.loads()
        for generation in (2, 3):
            it.supervisor.post(Restart())
            await it.reaches(State.STOPPING)
            await it.reaches(State.READY)
            assert (it.engine.generation, it.engine.crashes, it.engine.restarts) == (generation, 0, 0)


@pytest.mark.parametrize("order", [Load, Restart, Unload])
async def test_orders_while_it_backs_off(order: Any) -> None:
    async with bench(replace(QUICK, backoff_initial_s=600, backoff_max_s=600), start_end="exit:1") as it:
        it.supervisor.post(Load())
        await it.reaches(State.BACKOFF)
        it.control()
        it.supervisor.post(order())
        await it.reaches(State.STOPPED if order is Unload else State.READY)


async def test_a_stream_of_contradicting_orders_ends_where_the_last_one_says() -> None:
    async with bench(ready_after_s=0.05) as it:
        for step in range(40):
            it.supervisor.post((Load, Unload, Restart)[step % 3]())
            await asyncio.sleep(0.01 * (step % 5))
        it.supervisor.post(Unload())
        await asyncio.sleep(0)
        await it.reaches(State.STOPPED)
        assert not it.processes()
        it.supervisor.post(Load())
        await asyncio.sleep(0)
        await it.reaches(State.READY)


@asynccontextmanager
async def bench_in(state: State) -> AsyncIterator[Bench]:
    """A supervisor whose engine is in that state and stays there."""
    policy = replace(WATCHFUL, failure_threshold=1000) if state is State.UNHEALTHY else QUICK
    policy = replace(policy, backoff_initial_s=600, backoff_max_s=600)
    knobs: dict[str, Any] = {"tree": 1, "term": "ignore"}
    if state in (State.STARTING, State.BACKOFF):
        knobs["start_end"] = "never" if state is State.STARTING else "exit:1"
    async with bench(policy, **knobs) as it:
        it.supervisor.post(Load())
        if state in (State.STOPPING, State.UNHEALTHY):
            await it.reaches(State.READY)
            it.control(fault="hang", **knobs)
            if state is State.STOPPING:
                it.supervisor.post(Unload())
        await it.reaches(state)
        yield it


async def test_to_cancel_the_supervisor_in_any_state_leaves_nothing_alive() -> None:
    async def cancel(state: State) -> None:
        async with bench_in(state) as it:
            assert it.engine.state is state

    # Sleep needs a GPU: that nothing of a sleeper is left either, tests/server/test_several_models.py sees each time.
    elsewhere = {State.STOPPED, State.FAILED, State.DOZING, State.ASLEEP}
    await asyncio.gather(*map(cancel, set(State) - elsewhere))


# ── noise ──


async def test_garbage_and_floods_in_the_log_disturb_nothing() -> None:
    async with bench(garbage=1, flood=20_000) as it:
        await it.loads()
        assert len(printed(it.supervisor)) <= LAST_LINES
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPED)


async def test_a_late_line_says_nothing_of_an_engine_that_no_longer_starts() -> None:
    async with bench(ready_after_s=2, start_term="ignore") as it:
        it.supervisor.post(Load())
        await it.until(lambda: it.supervisor.status.phase == "loading weights", "it to load")
        it.supervisor.post(Unload())
        await it.reaches(State.STOPPED)
        entries, _ = await it.feed.after(0)
        phases = {each.phase for each in statuses(entries) if each.state != "starting"}
        assert phases == {None}


async def test_a_name_may_be_as_odd_as_it_likes() -> None:
    async with bench() as it:
        plan = replace(it.supervisor.plan, name="../../Ünï/ Modell: ✓" * 3)
        plan.check()
        directory = plan.directory(1)
        assert directory.parent == it.folder / "r"
        assert re.fullmatch(r"[A-Za-z0-9-]*\.1", directory.name)
