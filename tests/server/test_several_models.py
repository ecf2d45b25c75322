"""Several models in a memory that has room for one: who waits gets it, in turns, and nobody is cut off."""

import asyncio
import os
import signal

import pytest
from daemons import running
from pairs import CHAT, GPU, RESIDUE, Pair, pair, said
from service_manager import Manager, Service
from waiting import until, until_sync

# ── sleep ──


async def test_a_swap_is_a_sleep_and_a_wake() -> None:
    with pair() as daemon:
        assert daemon.states == {"a": "stopped", "b": "stopped"}, "nobody has asked"
        assert daemon.fetch("/ready")[0] == 200, "whoever asks is served"
        await daemon.ask("a")
        engine = daemon.model("a").pid
        await daemon.ask("b")
        assert daemon.states == {"a": "asleep", "b": "ready"}
        assert daemon.held == int(0.6 * GPU) + RESIDUE
        _, models = daemon.fetch("/v1/models")
        assert [each["status"] for each in models["data"]] == ["asleep", "ready"]
        assert daemon.model("b").claim_bytes == pytest.approx(0.6 * GPU, abs=1)
        assert daemon.model("a").used_at is not None
        await daemon.ask("a")
        assert daemon.states == {"a": "ready", "b": "asleep"}
        assert (daemon.model("a").pid, daemon.model("a").generation) == (engine, 1), "the same engine woke up"
        assert [each["level"] for each in daemon.journal("sleep")] == [1, 1]
        assert len(daemon.journal("wake")) == 1


async def test_weights_that_were_dropped_are_read_again() -> None:
    with pair(of_all={"load": "demand", "sleep_level": 2}) as daemon:
        for name in "aba":
            await daemon.ask(name)
        assert len(daemon.journal("start")) == 2
        assert len(daemon.journal("reload")) == 1


@pytest.mark.parametrize(
    ("sleep", "log"),
    [
        ("lies", "says that it sleeps, and 0.00 GiB became free"),
        ("refuses", "/sleep"),
        ("dies", "b: starting"),
        ("hangs", "b: starting"),
    ],
)
async def test_an_engine_that_does_not_sleep_is_unloaded(sleep: str, log: str) -> None:
    daemon = Pair(of_all={"load": "demand", "sleep_level": 1}, supervision={"startup_stall_s": 8})
    daemon.knobs("a", sleep=sleep)
    with running(daemon, ready=False):
        await daemon.ask("a")
        await daemon.ask("b")
        assert daemon.states == {"a": "stopped", "b": "ready"}
        assert daemon.held == int(0.6 * GPU)
        assert log in daemon.log
        await daemon.ask("a")
        assert daemon.model("a").generation == 2


@pytest.mark.parametrize("wake", ["refuses", "dies", "mute", "hangs"])
async def test_an_engine_that_does_not_wake_is_replaced_and_its_request_answered(wake: str) -> None:
    quick = {"startup_stall_s": 6, "probe_timeout_s": 2}
    daemon = Pair(of_all={"load": "demand", "sleep_level": 1}, supervision=quick)
    daemon.knobs("a", wake=wake)
    with running(daemon, ready=False):
        for name in "aba":
            await daemon.ask(name)
        assert daemon.states == {"a": "ready", "b": "asleep"}
        assert daemon.model("a").generation == 2


async def test_an_engine_that_dies_in_its_sleep_is_started_when_somebody_asks() -> None:
    with pair() as daemon:
        await daemon.ask("a")
        await daemon.ask("b")
        asleep = daemon.model("a").pid
        assert asleep is not None
        os.kill(asleep, signal.SIGKILL)
        await until(lambda: daemon.states["a"] == "stopped", "its end to be seen")
        assert "a request loads it" in daemon.model("a").summary
        await daemon.ask("a")
        assert daemon.model("a").generation == 2


def test_the_next_vllmd_goes_on_with_an_engine_that_sleeps() -> None:
    with Manager().reading() as manager:
        service = Service(manager, Pair, of_all={"load": "demand", "sleep_level": 1})
        daemon = service.daemon
        assert isinstance(daemon, Pair)
        try:
            service.start()
            for name in "ab":
                assert daemon.fetch(CHAT, "POST", said(name))[0] == 200
            service.restart()
            until_sync(lambda: daemon.states == {"a": "asleep", "b": "ready"}, "both to be as they were")
            assert daemon.fetch(CHAT, "POST", said("a"))[0] == 200
            assert len(daemon.journal("start")) == 2, "it woke"
        finally:
            service.see_to_its_end()


# ── turns ──


async def test_requests_that_alternate_come_in_batches() -> None:
    with pair() as daemon:
        asked = [asyncio.create_task(daemon.ask("ab"[number % 2])) for number in range(40)]
        await asyncio.gather(*asked)
        assert len(daemon.journal("sleep")) <= 2, "one swap, and maybe one more for who came last"


async def test_a_model_that_is_never_idle_lets_another_in_and_cuts_nobody_off() -> None:
    with pair(memory={"turn_s": 2}) as daemon:
        daemon.control(tokens=8, tokens_per_s=16)
        going = True

        async def hog() -> int:
            count = 0
            while going:
                await daemon.ask("a", daemon.tcp)
                count += 1
            return count

        hogs = [asyncio.create_task(hog()) for _ in range(4)]
        await until(lambda: daemon.model("a").running == 4, "a to be busy")
        await daemon.ask("b")
        assert daemon.model("a").restarts == daemon.model("b").restarts == 0
        going = False
        assert min([await each for each in hogs]) >= 1
        assert "unforeseen" not in daemon.log


async def test_a_client_that_leaves_moves_nobody() -> None:
    with pair() as daemon:
        daemon.control(tokens=1000, tokens_per_s=10)
        busy = await (await daemon.unix.open(CHAT, {**said("a"), "stream": True})).until(b"tok2")
        waiting = await daemon.unix.open(CHAT, {**said("b"), "stream": True})
        await until(lambda: "waiting for memory" in daemon.model("b").summary, "b to wait for memory")
        await waiting.leave()
        await until(lambda: daemon.states["b"] == "stopped", "b to be wanted no more")
        assert daemon.states["a"] == "ready"
        await busy.leave()
        assert daemon.journal("sleep") == []


# ── who comes, who stays ──


async def test_what_does_not_fit_at_the_start_is_loaded_when_somebody_asks() -> None:
    with pair(of_all={}) as daemon:
        await until(lambda: sorted(daemon.states.values()) == ["ready", "stopped"], "one of them to be loaded")
        away = next(name for name, state in daemon.states.items() if state == "stopped")
        assert daemon.model(away).on_demand
        assert f"{away}: has no room beside the others" in daemon.log
        await daemon.ask(away)
        assert daemon.states[away] == "ready"


async def test_what_an_administrator_unloads_stays_away_and_what_is_ordered_comes() -> None:
    with pair(of_all={}) as daemon:
        await until(lambda: sorted(daemon.states.values()) == ["ready", "stopped"], "one of them to be loaded")
        assert daemon.order("load", "a", wait=True)[0] == 200
        assert daemon.order("load", "b", wait=True)[0] == 200
        assert daemon.states == {"a": "stopped", "b": "ready"}
        assert daemon.order("unload", "a", wait=True)[0] == 200
        status, body = daemon.fetch(CHAT, "POST", said("a"))
        assert (status, body["error"]["message"]) == (503, "a is not loaded")


async def test_what_is_loaded_by_hand_is_taken_out_by_hand() -> None:
    by_hand = {"a": {"load": "manual"}}
    with pair(by_hand, of_all={"load": "demand"}) as daemon:
        status, body = daemon.fetch(CHAT, "POST", said("a"))
        assert (status, body["error"]["hint"]) == (503, "load it:  vllmctl load a")
        assert daemon.order("load", "a", wait=True)[0] == 200
        waiting = asyncio.create_task(daemon.unix.ask(CHAT, said("b")))
        await until(lambda: "memory is waited for" in daemon.log, "b to wait")
        assert daemon.order("unload", "a", wait=True)[0] == 200
        assert (await waiting).status == 200


async def test_nobody_keeps_memory_that_nobody_uses() -> None:
    with pair(of_all={"load": "demand", "idle_unload_s": 1}) as daemon:
        await daemon.ask("a")
        await until(lambda: daemon.states["a"] == "stopped", "a to go")
        assert daemon.held == 0
        await daemon.ask("a")


async def test_no_more_models_than_may_be() -> None:
    with pair(of_all={"load": "demand", "fit": "off"}, memory={"max_models": 1}) as daemon:
        for name in "aba":
            await daemon.ask(name)
        assert daemon.states == {"a": "ready", "b": "stopped"}
