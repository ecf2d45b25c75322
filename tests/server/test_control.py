"""Watching and steering: health, readiness, status, events; load, unload, restart, and who may."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon
from waiting import until

import vllmd

EVENTS = "/api/events"
STATES = {"stopped", "starting", "ready", "unhealthy", "stopping", "backoff", "failed"}
NOBODY = 65534


def states(exchange: Exchange) -> list[str]:
    """The states that the events tell, each once where it is told repeatedly with new phases."""
    told = [each.json()["state"] for each in exchange.events if each.name == "model"]
    return [state for at, state in enumerate(told) if at == 0 or told[at - 1] != state]


# ── to look at ──


async def test_health_and_readiness(daemon: Daemon) -> None:
    for door in (daemon.unix, daemon.tcp):
        assert (await door.ask("/health")).json() == {"status": "alive"}
        assert (await door.ask("/ready")).json() == {"status": "ready", "model": "tiny"}
        head = await door.open("/health", method="HEAD")
        assert (await head.head()).status == 200
        await head.leave()


async def test_the_status_tells_everything_at_a_glance(daemon: Daemon) -> None:
    status = (await daemon.tcp.ask("/api/status")).json()
    assert status["version"] == vllmd.__version__
    assert (status["state"], status["model"]) == ("ready", "tiny")
    assert set(status["addresses"]) == {f"unix://{daemon.socket}", daemon.url}
    (model,) = status["models"]
    assert model["name"] == "tiny"
    assert model["model"] == "models/tiny"
    assert (model["state"], model["phase"], model["percent"]) == ("ready", None, None)
    assert (model["default"], model["generation"], model["restarts"]) == (True, 1, 0)
    assert (model["running"], model["held"]) == (0, 0)
    assert (model["cause"], model["reason"], model["hint"]) == ("", "", "")
    assert status["since"] <= model["since"]
    os.kill(model["pid"], 0)
    assert model["pid"] != daemon.pid


async def test_the_status_tells_how_long_each_phase_of_the_start_took(daemon: Daemon) -> None:
    phases = daemon.model().phases
    assert [each.phase for each in phases][:2] == ["starting up", "loading weights"]
    assert all(each.took_s is not None for each in phases), "the start is over"
    ends = [each.begun_s + (each.took_s or 0) for each in phases]
    assert ends[:-1] == pytest.approx([each.begun_s for each in phases[1:]], abs=0.01)


async def test_the_status_tells_what_the_engine_says_of_its_load(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=5, tokens=1000)
    async with daemon.unix.stream("/api/prompt", {"prompt": "x", "max_tokens": 1000}) as one:
        await one.until(b"tok1")
        await until(lambda: daemon.model().engine_running == 1, "the engine to say that it computes one")
        model = daemon.model()
        assert (model.places, model.engine_waiting) == (256, 0)
        assert model.kv_cache_usage == pytest.approx(1 / 256)
    await until(lambda: daemon.model().engine_running == 0, "the engine to say that it is idle")
    lines = [each["line"] for each in daemon.fetch("/api/logs")[1]["lines"]]
    assert any("/v1/chat/completions" in line for line in lines)
    assert not any("/metrics" in line for line in lines), "what vllmd asks for itself is no news"


async def test_the_status_tells_who_asks_and_what_they_may_do(daemon: Daemon) -> None:
    ours = (await daemon.unix.ask("/api/status")).json()
    assert (ours["asker"], ours["denied"], ours["queue_limit"]) == (f"uid:{os.getuid()}", "", 256)
    anybodys = (await daemon.tcp.ask("/api/status")).json()
    assert (anybodys["asker"], "Unix socket" in anybodys["denied"]) == ("127.0.0.1", True)


async def test_what_runs_is_counted(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=5, tokens=1000)
    hello = {"messages": [{"role": "user", "content": "x"}]}
    async with daemon.unix.stream("/v1/chat/completions", {**hello, "stream": True}) as one:
        async with daemon.tcp.stream("/v1/chat/completions", hello):
            await one.until(b"tok1")
            await until(lambda: daemon.model().running == 2, "two to run")
        await until(lambda: daemon.model().running == 1, "one to run")
    await until(lambda: daemon.model().running == 0, "none to run")


# ── events ──


async def test_the_present_comes_first_and_then_every_change(start: Start) -> None:
    daemon = start()
    async with daemon.unix.stream(EVENTS) as exchange:
        await exchange.until(b"\n\n")
        assert exchange.header("content-type") == "text/event-stream"
        assert states(exchange) == ["ready"]
        daemon.order("unload", wait=True)
        daemon.order("load", wait=True)
        await exchange.until(b'"state": "ready"', 2)
    assert states(exchange) == ["ready", "stopping", "stopped", "starting", "ready"]
    phases = [each.json()["phase"] for each in exchange.events if each.json()["state"] == "starting"]
    assert "loading weights" in phases
    numbers = [int(each.id or 0) for each in exchange.events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_last_event_id_continues_where_one_left(start: Start) -> None:
    daemon = start()
    async with daemon.unix.stream(EVENTS) as exchange:
        await exchange.until(b"\n\n")
    last = exchange.events[-1].id or ""
    daemon.order("restart", wait=True)
    async with daemon.unix.stream(EVENTS, headers={"Last-Event-ID": last}) as missed:
        await missed.until(b'"state": "ready"')
    assert states(missed) == ["stopping", "starting", "ready"]
    assert int(missed.events[0].id or 0) == int(last) + 1
    async with daemon.unix.stream(EVENTS, headers={"Last-Event-ID": "0"}) as everything:
        await everything.until(b'"state": "ready"', 2)
    assert states(everything) == ["starting", "ready", "stopping", "starting", "ready"]


async def test_who_is_up_to_date_gets_nothing_until_something_happens(start: Start) -> None:
    daemon = start(sse={"keepalive_s": 0.1})
    async with daemon.unix.stream(EVENTS) as exchange:
        await exchange.until(b"\n\n")
    async with daemon.unix.stream(EVENTS, headers={"Last-Event-ID": exchange.events[-1].id or ""}) as current:
        await current.until(b": ping")
        assert not [each for each in current.events if each.data]
        daemon.order("unload")
        await current.until(b'"state": "stopped"')


async def test_a_number_of_another_life_gets_the_present(daemon: Daemon) -> None:
    async with daemon.unix.stream(EVENTS, headers={"Last-Event-ID": "999999"}) as exchange:
        await exchange.until(b'"state": "ready"')
    assert states(exchange) == ["ready"]


def talkative_log(folder: Path) -> Path:
    """The log of a start with three hundred changes."""
    bars = ("Fetching 9 files", "Loading safetensors checkpoint shards", "Capturing CUDA graphs (FULL)")
    path = folder / "talkative.log"
    path.write_text("\n".join(f"{bar}: {percent}%" for bar in bars for percent in range(101)))
    return path


async def test_who_comes_too_late_is_told_how_much_was_missed(start: Start) -> None:
    daemon = start()
    async with daemon.unix.stream(EVENTS) as before:
        await before.until(b"\n\n")
    first = int(before.events[-1].id or 0)
    daemon.control(start_log=str(talkative_log(daemon.folder)))
    for _ in range(4):
        daemon.order("restart", wait=True)
    async with daemon.unix.stream(EVENTS, headers={"Last-Event-ID": str(first)}) as late:
        await late.until(b'"state": "ready"', 4)
    missed, *rest = late.events
    assert missed.name == "missed"
    assert missed.json()["missed"] > 0
    assert int(rest[0].id or 0) == first + missed.json()["missed"] + 1


async def test_many_followers_see_the_same(start: Start) -> None:
    daemon = start()
    exchanges = [await daemon.unix.open(EVENTS) for _ in range(30)]
    for exchange in exchanges:
        await exchange.until(b"\n\n")
    daemon.order("restart", wait=True)
    for exchange in exchanges:
        await exchange.until(b'"state": "ready"', 2)
        await exchange.leave()
    bodies = {exchange.body for exchange in exchanges}
    assert len({body[: body.rfind(b"\n\n")] for body in bodies}) == 1


# ── orders ──


async def test_load_unload_restart(start: Start) -> None:
    daemon = start()
    first = daemon.engine_pid
    assert daemon.order("load") == (202, {"model": "tiny", "watch": EVENTS})
    assert daemon.order("load", wait=True)[1]["state"] == "ready"
    assert daemon.engine_pid == first, "to load what is loaded changes nothing"

    status, model = daemon.order("restart", wait=True)
    assert (status, model["state"], model["generation"], model["restarts"]) == (200, "ready", 2, 0)
    assert daemon.engine_pid != first

    status, model = daemon.order("unload", wait=True)
    assert (status, model["state"], model["pid"]) == (200, "stopped", None)
    assert daemon.order("unload", wait=True)[1]["state"] == "stopped"
    assert daemon.order("restart", wait=True)[1]["state"] == "ready"
    assert daemon.model().generation == 3


async def test_waiting_for_an_order_tells_of_its_failure(start: Start) -> None:
    daemon = start(supervision={"restart_limit": 0})
    daemon.control(start_end="exit:1", start_last="ValueError: out of luck")
    status, body = daemon.order("restart", wait=True)
    assert (status, body["error"]["code"]) == (503, "engine_failed")
    assert "out of luck" in body["error"]["message"]
    status, body = daemon.order("load", wait=True)
    assert (status, body["error"]["code"]) == (503, "engine_failed")
    daemon.control()
    assert daemon.order("load", wait=True)[0] == 200


async def test_orders_that_contradict_each_other_all_get_an_answer(start: Start) -> None:
    daemon = start()
    daemon.control(ready_after_s=0.2)
    verbs = ["unload", "load", "restart", "unload", "restart", "load", "unload", "load"]
    asked = [daemon.unix.ask(f"/api/models/tiny/{verb}?wait=1", b"") for verb in verbs]
    answers = await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert {answer.status for answer in answers} <= {200, 503}
    daemon.wait_for("ready")


async def test_load_and_unload_in_one_breath(start: Start) -> None:
    daemon = start(supervision={"stop_timeout_s": 600})
    daemon.order("unload", wait=True)
    for _ in range(5):
        # All are in the supervisor's queue before it has begun to do what the first one asks for.
        verbs = ["load", "unload"] * 4
        exchanges = [await daemon.unix.open(f"/api/models/tiny/{verb}", b"") for verb in verbs]
        for exchange in exchanges:
            assert (await exchange.end()).status == 202
            await exchange.leave()
        assert daemon.order("unload", wait=True)[1]["state"] == "stopped"
    assert daemon.order("load", wait=True)[0] == 200


async def test_two_orders_before_the_first_engine_exists(start: Start) -> None:
    daemon = start(ready=False, knobs={"start_end": "never"})
    assert daemon.order("unload", wait=True)[1]["state"] == "stopped"


# ── who may ──


@pytest.mark.parametrize("verb", ["load", "unload", "restart"])
async def test_over_tcp_nobody_administers(daemon: Daemon, verb: str) -> None:
    before = daemon.model()
    answer = await daemon.tcp.ask(f"/api/models/tiny/{verb}?wait=1", b"")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (403, "denied", "permission_error")
    assert "Unix socket" in answer.error["hint"]
    after = daemon.model()
    assert (after.generation, after.pid, after.state) == (before.generation, before.pid, "ready")


ASK = """
import json, os, socket, sys
if int(sys.argv[3]) >= 0:
    os.setgroups([int(each) for each in sys.argv[4].split(",") if each])
    os.setgid(65534)
    os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    peer.sendall(b"POST %b HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\ncontent-length: 17\\r\\n\\r\\n"
                 b'{"prompt": "abc"}' % sys.argv[2].encode())
    answer = b"".join(iter(lambda: peer.recv(65536), b""))
print(answer.split()[1].decode())
"""


def ask_as(uid: int, daemon: Daemon, path: str) -> str:
    """The status of a POST by another user."""
    argv = [sys.executable, "-I", "-S", "-c", ASK, str(daemon.socket), path, str(uid), ""]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_another_user_may_ask_and_not_administer(start: Start, loop: str) -> None:
    daemon = start(loop=loop, listen={"unix_mode": "0666"})
    assert ask_as(NOBODY, daemon, "/api/prompt") == "200"
    for verb in ("load", "unload", "restart"):
        assert ask_as(NOBODY, daemon, f"/api/models/tiny/{verb}") == "403"
    assert ask_as(0, daemon, "/api/models/tiny/load") == "202"
    assert daemon.model().generation == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_members_of_the_admin_group_administer(start: Start) -> None:
    daemon = start(listen={"unix_mode": "0666"}, access={"admin_group": "nogroup"})
    assert ask_as(NOBODY, daemon, "/api/models/tiny/load") == "202"
    assert ask_as(1, daemon, "/api/models/tiny/load") == "403"
    assert ask_as(54321, daemon, "/api/models/tiny/load") == "403", "a user whom nobody knows"
    unknown = start(listen={"unix_mode": "0666"}, access={"admin_group": "no-such-group"})
    assert ask_as(NOBODY, unknown, "/api/models/tiny/load") == "403"
    assert ask_as(0, unknown, "/api/models/tiny/load") == "202"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_whom_the_mode_shuts_out_is_shut_out(start: Start) -> None:
    daemon = start()
    with pytest.raises(subprocess.CalledProcessError):
        ask_as(NOBODY, daemon, "/api/prompt")


async def test_health_answers_while_everything_else_is_wrong(start: Start) -> None:
    daemon = start(ready=False, knobs={"start_end": "exit:1"}, supervision={"restart_limit": 0})
    daemon.wait_for("failed")
    for path in ("/health", "/api/status", "/v1/models"):
        assert (await daemon.tcp.ask(path)).status == 200
    answer = await daemon.tcp.ask("/ready")
    assert (answer.status, answer.error["code"]) == (503, "engine_failed")
    assert (await daemon.tcp.ask("/v1/models")).json()["data"][0]["status"] == "failed"


async def test_the_status_names_the_last_verdict_even_when_all_is_well_again(start: Start) -> None:
    daemon = start()
    os.kill(daemon.engine_pid, signal.SIGKILL)
    await until(lambda: daemon.model().generation == 2, "a new engine")
    daemon.wait_for("ready")
    model = daemon.model()
    assert model.restarts == 1
    assert model.reason
    assert json.dumps(model.cause)
