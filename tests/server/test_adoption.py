"""A vllmd that follows another goes on with its engines; and promise 2 holds whatever ends either of them."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from generations import GUARD, find, processes
from service_manager import Service, served
from waiting import alive, until, until_sync

STREAM = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
CHAT = "/v1/chat/completions"
TREE = {"tree": 1, "stray": 1, "term": "ignore"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_restart_keeps_the_engine(loop: str) -> None:
    with served(loop=loop, knobs=TREE) as service:
        daemon, engine = service.daemon, service.daemon.engine_pid
        family = processes(daemon)[1]
        for _ in range(2):
            service.restart()
            assert daemon.engine_pid == engine
            assert daemon.model().generation == 1
            assert processes(daemon)[1] == family
            answer = await daemon.unix.ask("/api/prompt", {"prompt": "x"})
            assert answer.whole
        assert len(daemon.journal("start")) == 1
        assert "goes on with engine 1" in daemon.log


def test_an_adopted_engine_is_ready_only_when_it_has_shown_a_token_again() -> None:
    with served() as service:
        daemon = service.daemon
        assert daemon.stop() == 0
        daemon.control(fault="hang")
        daemon.forget()
        said = service.manager.heard.count("READY=1")
        service.start(ready=False)
        until_sync(lambda: daemon.journal("request"), "the question for a token to have reached it")
        assert daemon.fetch("/ready")[0] == 503
        assert service.manager.heard.count("READY=1") == said
        daemon.control()
        until_sync(lambda: service.manager.heard.count("READY=1") > said, "READY=1")


def test_an_adopted_engine_that_brings_no_token_is_replaced() -> None:
    with served(supervision={"probe_timeout_s": 2, "failure_threshold": 1}) as service:
        daemon, engine = service.daemon, service.daemon.engine_pid
        assert daemon.stop() == 0
        daemon.control(fault="hang")
        service.start(ready=False)
        until_sync(lambda: "the engine hangs" in daemon.log, "the hang to be seen")
        daemon.control()
        daemon.wait_for("ready")
        assert not alive(engine)
        assert daemon.model().generation == 2


async def test_a_start_goes_on_under_the_next_vllmd() -> None:
    with served(knobs={"ready_after_s": 0}) as service:
        daemon = service.daemon
        daemon.control(ready_after_s=10)  # longer than one vllmd takes to follow another on a slow machine
        daemon.order("restart")
        await until(lambda: daemon.model().state == "starting" and daemon.model().pid, "the second engine to start")
        engine = daemon.engine_pid
        await until(lambda: sum("record" in each for each in service.manager.stored) == 1, "only it to be kept")
        assert daemon.stop() == 0
        service.start(ready=False)
        await until(lambda: daemon.socket.exists() and daemon.model().state == "starting", "it to go on")
        daemon.wait_for("ready", 60)
        assert daemon.engine_pid == engine
        assert daemon.model().generation == 2


def test_the_end_of_the_service_is_the_end_of_a_kept_engine() -> None:
    with served(knobs=TREE) as service:
        daemon = service.daemon
        assert daemon.stop() == 0
        assert processes(daemon)[1], "vllmd leaves it to systemd to let go of it"
        service.manager.drop()
        until_sync(lambda: not daemon.everybody(), "everything to be gone with the store")


def test_kill_9_of_vllmd_leaves_the_engine_to_the_next_one_and_to_nobody_else() -> None:
    with served(knobs=TREE) as service:
        daemon, engine = service.daemon, service.daemon.engine_pid
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        assert alive(engine)
        service.start()
        assert daemon.engine_pid == engine
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        service.manager.drop()
        until_sync(lambda: not daemon.everybody(), "everything to be gone with the store")


def test_an_adopted_engine_dies_like_any_other() -> None:
    with served(knobs=TREE) as service:
        daemon = service.daemon
        service.restart()
        first = daemon.engine_pid
        daemon.order("restart", wait=True)
        until_sync(lambda: 1 not in processes(daemon), "every process of the first engine to be gone")
        before = time.monotonic()
        service.restart()
        lived_s = time.monotonic() - before
        assert daemon.model().generation == 2
        os.kill(daemon.engine_pid, signal.SIGKILL)
        until_sync(lambda: daemon.model().generation == 3, "it to be replaced")
        daemon.wait_for("ready")
        assert "SIGKILL" in daemon.log
        (incident,) = daemon.fetch("/api/incidents")[1]["incidents"]
        assert incident["lived_s"] > lived_s, "its life began under another vllmd"
        service.restart()
        guard = find(daemon, 3, GUARD)
        assert guard
        os.kill(guard, signal.SIGKILL)
        until_sync(lambda: daemon.model().generation == 4, "it to be replaced")
        daemon.wait_for("ready")
        until_sync(lambda: set(processes(daemon)) == {4}, "those who lost their guard to be gone")
        assert not alive(first)
        assert {each.split(".")[2] for each in service.manager.stored} == {"4"}, "only what lives is kept"


def test_what_cannot_be_adopted_ends_before_its_successor_starts() -> None:
    """Each time another reason; the log says which."""
    with served(knobs=TREE) as service:
        assert_replaced(service, "its model, arguments, variables or environment have changed", change_arguments)
        assert_replaced(service, "written by another version, or is damaged", spoil_record)
        assert_replaced(service, "a part of what held it is missing", lose_log)
        assert_replaced(service, "it has ended meanwhile", kill_leader)
        assert_replaced(service, "it has ended meanwhile", kill_guard)
        assert_replaced(service, "its model is not configured any more", change_model)
        assert len(list(service.daemon.folder.glob("r/*.*"))) == 1


def assert_replaced(service: Service, reason: str, spoil: Callable[[Service, dict[str, int]], None]) -> None:
    daemon = service.daemon
    before = {"leader": daemon.status().models[0].pid or 0, "guard": find(daemon, max(processes(daemon)), GUARD) or 0}
    family = {pid for pids in processes(daemon).values() for pid in pids}
    assert daemon.stop() == 0
    told = daemon.log.count(f"cannot be adopted and ends: {reason}")
    spoil(service, before)
    service.start()
    assert daemon.log.count(reason) > told
    assert not family & daemon.everybody(), "the old engine is gone when the new one is ready"
    until_sync(lambda: len(service.manager.stored) == 4, "nothing to be kept of the old one")


def change_arguments(service: Service, before: dict[str, int]) -> None:
    service.daemon.configure({"max-model-len": 99}, {})


def change_model(service: Service, before: dict[str, int]) -> None:
    service.daemon.configure({}, {"models": {"other": service.daemon.tiny()}})


def spoil_record(service: Service, before: dict[str, int]) -> None:
    os.pwrite(next(fd for name, fd in service.manager.stored.items() if name.endswith(".record")), b"[0", 0)


def lose_log(service: Service, before: dict[str, int]) -> None:
    name = next(name for name in service.manager.stored if name.endswith(".log"))
    os.close(service.manager.stored.pop(name))


def kill_leader(service: Service, before: dict[str, int]) -> None:
    os.kill(before["leader"], signal.SIGKILL)
    until_sync(lambda: not alive(before["guard"]), "the guard to have ended")


def kill_guard(service: Service, before: dict[str, int]) -> None:
    os.kill(before["guard"], signal.SIGKILL)
    until_sync(lambda: not alive(before["guard"]), "the guard to have ended")


async def test_what_the_engine_printed_meanwhile_is_not_lost() -> None:
    with served() as service:
        daemon = service.daemon
        assert daemon.stop() == 0
        assert (await daemon.engine.ask("/v1/models")).status == 200
        service.start()
        lines = [each["line"] for each in daemon.fetch("/api/logs")[1]["lines"]]
        assert any("GET /v1/models" in line for line in lines), lines


def test_without_a_store_the_engine_ends_with_vllmd() -> None:
    with served(knobs={"tree": 1}, environ={"FDSTORE": "0"}) as service:
        daemon = service.daemon
        assert daemon.stop() == 0
        assert not daemon.everybody()
        assert not service.manager.stored


async def test_a_running_stream_is_seen_to_its_end_and_its_engine_goes_on() -> None:
    with served(knobs={"tokens": 40, "tokens_per_s": 20}) as service:
        daemon, engine = service.daemon, service.daemon.engine_pid
        stream = await daemon.unix.open(CHAT, STREAM)
        await stream.until(b"tok1")
        daemon.signal(signal.SIGTERM)
        await stream.end()
        await stream.leave()
        assert stream.whole
        assert daemon.wait() == 0
        service.start()
        assert daemon.engine_pid == engine
