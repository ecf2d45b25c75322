"""Several models, and orders, clients and configurations that come in odd moments."""

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

from daemons import running
from pairs import CHAT, Pair, pair, said
from waiting import until


def write(daemon: Pair, **tables: Mapping[str, Any]) -> None:
    """Another configuration: other keys of models that there are, and None for one that is no more."""
    models = {name: {**daemon.tables[name], **keys} for name, keys in tables.items()}
    daemon.configure({}, {**daemon.sections, "models": models})


async def busy(daemon: Pair, model: str) -> Any:
    """A stream that goes on until its client leaves."""
    daemon.control(tokens=1000, tokens_per_s=10)
    return await (await daemon.unix.open(CHAT, {**said(model), "stream": True})).until(b"tok2")


async def test_a_sleeper_whose_client_leaves_before_it_has_memory_sleeps_on() -> None:
    with pair() as daemon:
        await daemon.ask("a")
        await daemon.ask("b")
        asleep = daemon.model("a").pid
        running_stream = await busy(daemon, "b")
        waiting = await daemon.unix.open(CHAT, {**said("a"), "stream": True})
        await until(lambda: "waiting for memory" in daemon.model("a").summary, "a to wait for memory")
        await waiting.leave()
        await until(lambda: daemon.states["a"] == "asleep", "a to be wanted no more")
        await running_stream.leave()
        daemon.control()
        await daemon.ask("a")
        assert (daemon.model("a").pid, daemon.model("a").generation, daemon.model("a").restarts) == (asleep, 1, 0)
        # Made to be loaded by hand in its sleep, it is brought back by nobody else.
        await daemon.ask("b")
        write(daemon, a={"load": "manual"}, b={})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        assert daemon.states["a"] == "asleep"
        status, body = daemon.fetch(CHAT, "POST", said("a"))
        assert (status, body["error"]["hint"]) == (503, "load it:  vllmctl load a")
        assert daemon.order("load", "a", wait=True)[0] == 200


async def test_who_waits_for_a_model_that_is_taken_out_of_the_configuration_is_told() -> None:
    with pair() as daemon:
        stream = await busy(daemon, "a")
        waiting = asyncio.create_task(daemon.unix.ask(CHAT, said("b")))
        await until(lambda: "waiting for memory" in daemon.model("b").summary, "b to wait for memory")
        write(daemon, a={})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        answer = await waiting
        assert (answer.status, answer.json()["error"]["message"]) == (503, "b is not loaded")
        await stream.leave()
        assert daemon.states.keys() == {"a"}
        # And it may come back at once, though an engine of its name still answers.
        daemon.control(tokens=30, tokens_per_s=15)
        write(daemon, a={}, b={})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        long = await (await daemon.unix.open(CHAT, {**said("b"), "stream": True})).until(b"tok2")
        write(daemon, a={})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        write(daemon, a={}, b={})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        await daemon.ask("b")
        await long.end()
        await long.leave()
        assert long.body.endswith(b"data: [DONE]\n\n"), long.body[-300:]


async def test_the_default_model_comes_before_others_and_an_order_is_heard_while_one_waits() -> None:
    daemon = Pair(of_all={})
    daemon.control(ready_after_s=4)
    with running(daemon, ready=False):
        await until(lambda: daemon.states == {"a": "starting", "b": "starting"}, "both to be on their way")
        await until(lambda: daemon.model("a").pid, "a to have its memory: an order would come before it as well")
        assert daemon.order("load", "b")[0] == 202
        await until(lambda: daemon.states["b"] == "ready", "b, which was ordered")
        a, b = (daemon.log.index(f"{name}: starting → ") for name in "ab")
        assert a < b, "the default model was first"
        assert "b: has no room" not in daemon.log
        back = asyncio.create_task(daemon.ask("a"))
        await until(lambda: daemon.states["a"] == "starting", "a to come back")
        assert daemon.fetch("/ready")[0] == 200, "a swap is no outage"
        await back


async def test_vllmd_ends_whatever_its_models_are_about() -> None:
    daemon = Pair(of_all={"load": "demand", "sleep_level": 1}, relay={"drain_s": 1})
    daemon.knobs("a", sleep_s=100)
    with running(daemon, ready=False):
        await daemon.ask("a")
        waiting = asyncio.create_task(daemon.unix.ask(CHAT, said("b")))
        await until(lambda: daemon.states == {"a": "dozing", "b": "starting"}, "b to wait for a")
        daemon.signal(signal.SIGTERM)
        assert (await waiting).status == 503
        assert daemon.wait() == 0
