"""Two real models in a memory that may have one: who asks for the other gets it, and nobody's answer is cut."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from asking import Exchange
from ctl.shell import Shell
from daemons import Daemon
from system.real import STARTS_WITHIN_S, parrot, real_daemon

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

LENGTH = 100
"""Tokens of an answer that still runs when the other model is asked, however fast the machine is."""


def test_a_request_brings_its_model_in_and_the_other_goes_when_its_answer_is_complete(tmp_path: Path) -> None:
    on_demand: dict[str, Any] = {"load": "demand"}
    models = {
        "tiny": {**on_demand, "default": True},
        "parrot": {**on_demand, "model": str(parrot(tmp_path / "parrot"))},
    }
    with real_daemon(models=models, ready=False, memory={"max_models": 1}, queue={"wait_s": STARTS_WITHIN_S}) as daemon:
        assert states(daemon) == {"tiny": "stopped", "parrot": "stopped"}, "nobody has asked"
        asyncio.run(swap(daemon))
        assert states(daemon) == {"tiny": "stopped", "parrot": "ready"}
        shell = Shell({"VLLMD_HOST": f"unix://{daemon.socket}"})
        listed = shell.run("models")
        assert listed.status == 0, listed.stderr
        tiny, other = (next(line for line in listed.stdout.splitlines() if name in line) for name in models)
        assert "a request loads it" in tiny
        assert "ready" in other


async def swap(daemon: Daemon) -> None:
    """Asks the first model, and the second while the first one answers still."""
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    first = await whole(await daemon.unix.open("/v1/chat/completions", {**question, "model": "tiny", "stream": True}))
    assert words(first) == "The capital of France is Paris."
    assert "starting up" in comments(first)
    count = {"model": "tiny", "prompt": "One, two,", "max_tokens": LENGTH, "ignore_eos": True}
    busy = await daemon.unix.open(
        "/v1/completions", {**count, "stream": True, "stream_options": {"include_usage": True}}
    )
    await busy.until(b"text")
    echo = {"model": "parrot", "prompt": "one two two", "max_tokens": 3, "temperature": 0, "stream": True}
    held = await daemon.unix.open("/v1/completions", echo)
    _, answer = await asyncio.gather(whole(busy), whole(held))
    *_, usage, done = [each for each in busy.events if each.data]
    assert (usage.json()["usage"]["completion_tokens"], done.data) == (LENGTH, "[DONE]")
    assert words(answer) == " two two two"
    assert "waiting for memory" in comments(answer)
    assert "starting up" in comments(answer)


async def whole(exchange: Exchange) -> Exchange:
    """Reads an answer to its end, however long it takes."""
    async for _ in exchange.pieces():
        pass
    await exchange.leave()
    assert (exchange.status, exchange.whole) == (200, True), exchange.body
    return exchange


def words(exchange: Exchange) -> str:
    choices = [each.json()["choices"] for each in exchange.events if each.data and each.data != "[DONE]"]
    return "".join(each.get("text") or each.get("delta", {}).get("content") or "" for some in choices for each in some)


def comments(exchange: Exchange) -> str:
    return "\n".join(each.comment for each in exchange.events if each.comment)


def states(daemon: Daemon) -> dict[str, str]:
    """As clients of the API see them."""
    return {each["id"]: each["status"] for each in daemon.fetch("/v1/models")[1]["data"]}
