"""Restart and reload under a real systemd: the engine goes on, unless it must not."""

import asyncio
from pathlib import Path

import pytest
from steady_load import CHAT
from system.service import Service, model_table
from waiting import until, until_sync

pytestmark = pytest.mark.timeout(1800)

HELLO = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize("end", ["restart", "crash", "re-exec"])
def test_the_next_vllmd_adopts_the_engine(service: Service, end: str) -> None:
    engine, main = service.model().pid, service.pid
    service.control(ready_after_s=60)  # a new one would be seen
    if end == "crash":
        service.machine.kill(main, "KILL")
        until_sync(lambda: service.pid not in (0, main), "another vllmd")
        service.wait_for("ActiveState", "active", 30)
    else:
        if end == "re-exec":
            service.machine("systemctl", "daemon-reexec")
        service.restart()
    assert service.pid != main
    assert (service.model().pid, service.model().state) == (engine, "ready")


def test_an_adopted_engine_can_still_write_where_it_could(service: Service) -> None:
    service.restart()
    for pid in service.engine():
        Path(f"/proc/{pid}/root/tmp/scratch").write_text("x")


def test_another_engine_is_started_for_other_arguments_and_the_log_says_why(service: Service) -> None:
    engine = service.model().pid
    service.configure(models={"tiny": model_table(max_model_len=1024)})
    service.restart()
    assert service.model().pid != engine
    assert "cannot be adopted" in service.log()


def test_stop_ends_everything_before_it_returns(service: Service) -> None:
    service.control(tree=1, stray=1)
    service.stop()
    service.start()
    until_sync(lambda: len(service.engine()) == 5, "the whole tree to be there")
    service.stop()
    assert not service.engine()


def test_a_restart_with_a_broken_configuration_leaves_no_engine(service: Service) -> None:
    service.configure(queue={"limt": 3})
    assert service.machine.run("systemctl", "restart", "vllmd").returncode != 0
    until_sync(lambda: not service.engine(), "the engine to be gone with the failed start")


def test_a_broken_configuration_is_not_reloaded_and_the_administrator_is_told(service: Service) -> None:
    engine = service.model().pid
    service.configure(queue={"limt": 3})
    assert service.machine.run("systemctl", "reload", "vllmd").returncode != 0
    assert "queue.limt" in service.log()
    assert service.show("ActiveState") == "active"
    assert (service.model().pid, service.model().state) == (engine, "ready")


async def test_a_reload_changes_what_can_be_changed_and_keeps_the_engine(service: Service) -> None:
    engine, main = service.model().pid, service.pid
    service.configure(defaults={"max_tokens": 3})
    service.machine("systemctl", "reload", "vllmd")
    answer = await service.unix.ask("/api/prompt", {"prompt": "hello", "stream": False})
    assert answer.json()["text"] == "tok0 tok1 tok2"
    assert (service.pid, service.model().pid) == (main, engine)


async def test_a_reload_replaces_the_engine_where_it_must_after_its_streams(service: Service) -> None:
    engine = service.model().pid
    service.control(tokens=30, tokens_per_s=15)
    async with service.unix.stream(CHAT, HELLO) as stream:
        await stream.until(b"tok1")
        service.configure(models={"tiny": model_table(max_model_len=1024)})
        await asyncio.to_thread(service.machine, "systemctl", "reload", "vllmd")
        await stream.end()
    assert b"tok29" in stream.body
    assert stream.events[-1].data == "[DONE]"
    await until(lambda: service.model().state == "ready" and service.model().pid != engine, "the new engine")
