"""vllmd.socket: who comes starts the service, is held while it loads, and is never refused while it restarts."""

import asyncio
import random

import pytest
from asking import Door
from steady_load import CHAT, SIMPLE, question, steady
from system.service import SOCKET, Service
from waiting import until, until_sync

pytestmark = pytest.mark.timeout(1800)

TOKENS = 12
TEXT = " ".join(f"tok{number}" for number in range(TOKENS))
PACED = {"tokens": TOKENS, "tokens_per_s": 30}
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_the_first_connection_starts_vllmd_and_is_answered_when_the_model_has_loaded(
    service: Service, kind: str
) -> None:
    service.stop()
    service.control(ready_after_s=2)
    door: Door = getattr(service, kind)
    assert service.show("ActiveState") == "inactive"
    answer = await door.ask(CHAT, HELLO)
    assert (answer.status, answer.json()["choices"][0]["finish_reason"]) == (200, "stop")
    assert service.show("ActiveState") == "active"


async def test_ten_restarts_under_load_refuse_nothing_and_break_nothing(service: Service) -> None:
    service.control(**PACED)
    service.machine("systemctl", "restart", "vllmd")
    clients = [
        [question(door, path, stream=stream, text=TEXT, finish="stop", max_tokens=512)]
        for door, path, stream in (
            (service.unix, CHAT, True),
            (service.unix, SIMPLE, False),
            (service.unix, CHAT, False),
            (service.tcp, CHAT, True),
            (service.tcp, SIMPLE, True),
        )
    ]
    (engine,) = {service.model().pid}
    async with steady(clients, random.Random(5), 60.0) as load:
        for number in range(10):
            seen = load.saw["complete"]
            await asyncio.to_thread(service.restart)
            await until(lambda: load.saw["complete"] > seen + len(clients), f"answers after {number}", 60)  # noqa: B023
        await load.pause()
    assert load.wrong == []
    assert set(load.saw) == {"complete"}
    assert service.model().pid == engine, "and it is the same engine all the time"


async def test_a_stream_that_is_longer_than_the_drain_limit_ends_with_an_error(service: Service) -> None:
    service.configure(relay={"drain_s": 1})
    service.restart()
    service.control(tokens=400, tokens_per_s=20)
    async with service.unix.stream(CHAT, {**HELLO, "stream": True}) as stream:
        await stream.until(b"tok1")
        restarted = asyncio.create_task(asyncio.to_thread(service.restart))
        await stream.end()
        await restarted
    error = stream.events[-1].json()["error"]
    assert error["source"] == "vllmd"
    assert b"[DONE]" not in stream.body


async def test_a_service_that_nobody_needs_ends_and_the_next_request_brings_it_back(service: Service) -> None:
    service.configure(listen={"exit_idle_s": 2})
    service.restart()
    service.wait_for("ActiveState", "inactive")
    assert service.show("Result") == "success"
    assert not service.engine()
    answer = await service.tcp.ask(CHAT, HELLO)
    assert answer.status == 200
    service.configure()
    service.restart()


def test_who_is_not_in_the_group_gets_eacces(service: Service) -> None:
    service.machine("sh", "-c", "id mallory || useradd mallory; id alice || useradd --groups vllmd alice")
    attempt = f"import socket; socket.socket(socket.AF_UNIX).connect('{SOCKET}')"
    refused = service.machine.run("python3", "-c", attempt, user="mallory")
    assert "PermissionError: [Errno 13]" in refused.stderr
    service.machine("python3", "-c", attempt, user="alice")
    found = service.machine.path(SOCKET).stat()
    group = int(service.machine("id", "--group", "vllmd"))
    assert (found.st_uid, found.st_gid, oct(found.st_mode)[-3:]) == (0, group, "660")


def test_stopping_the_socket_stops_the_service_and_takes_the_socket_away(service: Service) -> None:
    service.machine("systemctl", "stop", "vllmd.socket")
    assert service.show("ActiveState") == "inactive"
    assert not service.machine.path(SOCKET).exists()
    assert not service.engine()


# ── vllmd-ready.target ──


def test_units_may_wait_until_the_model_answers(service: Service) -> None:
    service.stop()
    service.control(fault="hang")
    service.machine("systemctl", "start", "--no-block", "vllmd-ready.target")
    until_sync(lambda: "Application startup complete" in service.log(), "vLLM to call itself ready")
    assert service.machine.show("vllmd-ready.target", "ActiveState") == "inactive"
    service.control()

    def is_reached() -> bool:
        return service.machine.show("vllmd-ready.target", "ActiveState") == "active"

    until_sync(is_reached, "the target to be reached")
    assert service.show("ActiveState") == "active"
    service.stop()
    until_sync(lambda: not is_reached(), "it to be gone with the service")
