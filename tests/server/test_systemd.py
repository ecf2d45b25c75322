"""What systemd is told, by a daemon that is asked to notify: READY=1 means that a token came out (promise 1)."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, running
from generations import GUARD, find
from service_manager import Manager
from waiting import descendants, until, until_sync

FAST_WATCHDOG_USEC = 200_000


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager().reading() as manager:
        yield manager


def daemon_for(manager: Manager, **how: Any) -> Daemon:
    environ = {"NOTIFY_SOCKET": manager.address, **how.pop("environ", {})}
    return Daemon(environ=environ, **how)


def test_ready_is_said_with_the_first_token_and_not_before(manager: Manager) -> None:
    # The engine listens and says that it is healthy, and no token comes out of it.
    with running(daemon_for(manager, knobs={"fault": "hang"}), ready=False) as daemon:
        until_sync(lambda: "Application startup complete" in daemon.log, "the engine to call itself ready")
        until_sync(lambda: daemon.journal("request"), "the health check to have reached it")
        assert "READY=1" not in manager.heard
        assert daemon.model().state == "starting"
        assert daemon.fetch("/ready")[0] == 503
        daemon.control()
        until_sync(lambda: "READY=1" in manager.heard, "READY=1")
        assert daemon.fetch("/ready")[0] == 200


def test_the_status_shows_how_far_the_start_has_come(manager: Manager) -> None:
    with running(daemon_for(manager, knobs={"ready_after_s": 0.5})):
        until_sync(lambda: "tiny: ready" in manager.values("STATUS"), "the status to be ready")
        said = manager.values("STATUS")
        phases = [text.rpartition(", ")[0] for text in said[: said.index("tiny: ready")]]  # each with its age
        assert "tiny: starting, loading weights 43 %" in phases
        assert "tiny: starting, compiling" in phases
        assert "tiny: starting, capturing graphs 43 %" in phases


def test_a_long_start_asks_for_more_time(manager: Manager) -> None:
    knobs = {"ready_after_s": 2.5}
    with running(daemon_for(manager, knobs=knobs, supervision={"startup_stall_s": 7})):
        asked = manager.values("EXTEND_TIMEOUT_USEC")
        assert len(asked) >= 2, "more than once, as long as something moves"
        assert set(asked) == {"7000000"}
        lines = manager.heard
        assert lines.index("EXTEND_TIMEOUT_USEC=7000000") < lines.index("READY=1")


def test_the_watchdog_is_fed(manager: Manager) -> None:
    with running(daemon_for(manager, environ={"WATCHDOG_USEC": "200000"})):
        until_sync(lambda: manager.values("WATCHDOG").count("1") >= 5, "the watchdog to be fed")


def test_a_vllmd_whose_loop_stands_still_does_not_feed_the_watchdog(manager: Manager) -> None:
    with running(daemon_for(manager, environ={"WATCHDOG_USEC": str(FAST_WATCHDOG_USEC)})) as daemon:
        until_sync(lambda: manager.values("WATCHDOG"), "the watchdog to be fed")
        daemon.signal(signal.SIGSTOP)
        until_sync(lambda: state_of(daemon.pid) == "T", "vllmd to stand still")
        fed = len(manager.values("WATCHDOG"))
        with pytest.raises(AssertionError, match="in vain"):  # one may still have been on its way
            until_sync(lambda: len(manager.values("WATCHDOG")) > fed + 1, "food", 5 * FAST_WATCHDOG_USEC / 1e6)
        daemon.signal(signal.SIGCONT)
        until_sync(lambda: len(manager.values("WATCHDOG")) > fed + 1, "the watchdog to be fed again")


def first(lines: list[str], beginning: str) -> int:
    """The place of the first line that begins so; 0 if there is none, as nothing that is asked for comes first."""
    return next((place for place, line in enumerate(lines) if line.startswith(beginning)), 0)


def state_of(pid: int) -> str:
    """R, S, T: see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_manager_that_does_not_read_does_not_stop_vllmd(manager: Manager) -> None:
    with running(daemon_for(manager, environ={"WATCHDOG_USEC": str(FAST_WATCHDOG_USEC)})) as daemon:
        with manager.deaf():
            for _ in range(3):  # its queue holds ten words (net.unix.max_dgram_qlen), or a few hundred
                assert daemon.order("restart", wait=True)[0] == 200
        until_sync(lambda: manager.values("STATUS").count("tiny: ready") == 4, "what it was told meanwhile")


def test_a_hanging_engine_does_not_keep_vllmd_from_feeding_the_watchdog(manager: Manager) -> None:
    environ = {"WATCHDOG_USEC": str(FAST_WATCHDOG_USEC)}
    supervision = {"probe_interval_s": 0.2, "probe_timeout_s": 3, "failure_threshold": 1}
    with running(daemon_for(manager, environ=environ, knobs={"tree": 1}, supervision=supervision)) as daemon:
        core = find(daemon, 1, "VLLM::EngineCor")
        assert core
        fed = len(manager.values("WATCHDOG"))
        os.kill(core, signal.SIGSTOP)
        until_sync(lambda: first(manager.heard, "STATUS=tiny: stopping"), "the hang to be seen")
        times = [
            line for line in manager.heard[: first(manager.heard, "STATUS=tiny: stopping")] if line == "WATCHDOG=1"
        ]
        assert len(times) - fed >= 10, "twice in each of the 15 intervals of a hang of three seconds"
        until_sync(lambda: manager.values("STATUS").count("tiny: ready") == 2, "the engine to be replaced")


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_without_a_watchdog_nobody_feeds_it(manager: Manager, environ: dict[str, str]) -> None:
    with running(daemon_for(manager, environ=environ)):
        assert not manager.values("WATCHDOG")


def test_stopping_is_said_before_anything_is_stopped(manager: Manager) -> None:
    with running(daemon_for(manager)) as daemon:
        daemon.stop()
        lines = manager.heard
        assert lines.count("STOPPING=1") == 1
        assert lines.index("STOPPING=1") < first(lines, "STATUS=tiny: stopping")
        assert "READY=1" not in lines[lines.index("STOPPING=1") :]


def test_a_failure_is_in_the_status_and_the_daemon_stays_up(manager: Manager) -> None:
    knobs = {"start_end": "exit:1", "start_last": "ValueError: out of luck"}
    with running(daemon_for(manager, knobs=knobs, supervision={"restart_limit": 0}), ready=False) as daemon:
        daemon.wait_for("failed")
        until_sync(lambda: any("out of luck" in each for each in manager.values("STATUS")), "the reason")
        assert "READY=1" not in manager.heard
        assert daemon.alive


def test_a_crash_is_in_the_status(manager: Manager) -> None:
    with running(daemon_for(manager)) as daemon:
        os.kill(daemon.engine_pid, signal.SIGKILL)
        until_sync(lambda: manager.values("STATUS").count("tiny: ready") >= 2, "the engine to be replaced")
        assert first(manager.heard, "STATUS=tiny: backoff")


def test_the_engine_cannot_answer_in_vllmd_s_name(manager: Manager) -> None:
    environ = {"WATCHDOG_USEC": "60000000", "CREDENTIALS_DIRECTORY": "/nowhere", "PYTHONPATH": "/nowhere"}
    with running(daemon_for(manager, environ=environ, knobs={"tree": 1})) as daemon:
        engine = {daemon.engine_pid, *descendants(daemon.engine_pid)}
        assert len(engine) == 3
        for pid in engine:
            names = {each.partition(b"=")[0] for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
            assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID", b"CREDENTIALS_DIRECTORY"}
            assert b"PYTHONPATH" not in names


def test_a_manager_that_does_not_listen_disturbs_nothing() -> None:
    with running(Daemon(environ={"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "200000"})) as daemon:
        assert daemon.fetch("/ready")[0] == 200


# ── promise 2: nothing outlives vllmd ──


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("state", ["starting", "ready"])
async def test_kill_9_of_vllmd_leaves_no_process(state: str, loop: str) -> None:
    knobs = {"tree": 1, "stray": 1, "term": "ignore", "start_term": "ignore"}
    knobs |= {"start_end": "never"} if state == "starting" else {}
    daemon = Daemon(loop=loop, knobs=knobs)
    try:
        daemon.start(ready=state == "ready")
        await until(lambda: len(daemon.everybody()) == 6, "vllmd, guard, vLLM, core, worker and the stray to be there")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        await until(lambda: not daemon.everybody(), "everything to be gone with vllmd")
    finally:
        daemon.see_to_its_end()


async def test_the_next_vllmd_ends_what_a_killed_one_and_its_killed_guard_left() -> None:
    daemon = Daemon(knobs={"tree": 1, "stray": 1, "term": "ignore"})
    try:
        daemon.start()
        await until(lambda: len(daemon.everybody()) == 6, "vllmd, guard, vLLM, core, worker and the stray to be there")
        leader = daemon.engine_pid
        left = {leader, *descendants(leader), find(daemon, 1, "VLLM::Stray")}
        guard = find(daemon, 1, GUARD)
        assert guard
        os.kill(daemon.pid, signal.SIGSTOP)  # so that it does not see the guard's end
        os.kill(guard, signal.SIGKILL)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        await until(lambda: daemon.everybody() == left, "only those to be left who have lost both their keepers")
        daemon.start()
        assert not daemon.everybody() & left
        assert (started := daemon.journal("start")[-1]["pid"]) == daemon.engine_pid
        assert started != leader
        assert len(list(daemon.folder.glob("r/*.*"))) == 1
    finally:
        daemon.see_to_its_end()


async def test_vllmd_starts_again_after_kill_9_of_itself() -> None:
    daemon = Daemon()
    try:
        for _ in range(3):
            daemon.start()
            answer = await daemon.unix.ask("/api/prompt", {"prompt": "x"})
            assert answer.whole
            daemon.signal(signal.SIGKILL)
            daemon.wait()
        daemon.start()
        left = [path.name for path in daemon.folder.glob("r/*.*")]
        assert len(left) == 1, left
        assert re.match("tiny", left[0])
    finally:
        daemon.see_to_its_end()
