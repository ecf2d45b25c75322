"""Answers that no other engine can honestly go on with: their clients are told at once, and why."""

import time
from typing import Any

import pytest
from conftest import Start
from daemons import Daemon
from struck import CHAT, PACED, PROMPT, STREAM, assert_whole, begun, kill, outlived, the_error

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
OBSTACLES: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"tools": [TOOL]}, "tools were offered"),
    "logprobs": ({"logprobs": True}, "logprobs were asked for"),
    "n": ({"n": 2}, "several answers were asked for"),
    "response_format": ({"response_format": {"type": "json_object"}}, "a form was prescribed"),
    "structured_outputs": ({"structured_outputs": {"regex": "a+"}}, "a form was prescribed"),
    "seed": ({"seed": 7, "temperature": 1}, "a seed was set, which stands for one certain answer"),
    "audio": ({"audio": {"voice": "a"}}, "more than text was asked for"),
}
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "stream": True},
    "/v1/responses": {"input": "x", "stream": True},
    "/v1/messages": {"messages": STREAM["messages"], "max_tokens": 64, "stream": True},
}


LONG_S = 30.0
"""Whoever waits for another engine, which never comes here, waits for `queue.wait_s`: minutes."""


async def cut_off(daemon: Daemon, path: str, body: dict[str, Any], **knobs: Any) -> tuple[dict[str, Any], float]:
    """The error of a stream that an engine breaks off without dying, and how long it took to come."""
    async with begun(daemon.unix, path, body, after=b"tok2") as stream:
        daemon.control(**PACED, fault="cut", fault_after=0, **knobs)
        began_at = time.monotonic()
        await stream.end()
    return the_error(stream), time.monotonic() - began_at


@pytest.mark.parametrize("name", OBSTACLES)
async def test_the_error_names_what_stands_in_the_way(daemon: Daemon, name: str) -> None:
    more, why = OBSTACLES[name]
    daemon.control(**PACED)
    error, took_s = await cut_off(daemon, CHAT, {**STREAM, **more})
    assert error["message"].endswith(f"; it could not be continued: {why}")
    assert error["hint"]
    assert (error["code"], error["source"]) == ("engine_error", "engine")
    assert took_s < LONG_S, "nobody waits for an engine that could not go on anyway"
    assert len(daemon.requests()) == 1


async def test_the_simple_door_says_it_too(daemon: Daemon) -> None:
    daemon.control(**PACED)
    error, _ = await cut_off(daemon, PROMPT, {"prompt": "x", "seed": 1})
    assert error["message"].endswith("it could not be continued: a seed was set, which stands for one certain answer")


@pytest.mark.parametrize("path", DIALECTS)
async def test_other_dialects_end_in_their_own_error_at_once(daemon: Daemon, path: str) -> None:
    daemon.control(**PACED)
    error, took_s = await cut_off(daemon, path, DIALECTS[path])
    assert "the engine closed the connection" in error["message"]
    assert took_s < LONG_S
    assert len(daemon.requests()) == 1


@pytest.mark.parametrize("path", [CHAT, PROMPT])
async def test_an_engine_that_lives_is_not_asked_to_go_on(daemon: Daemon, path: str) -> None:
    daemon.control(**PACED)
    before = daemon.model().generation
    error, _ = await cut_off(daemon, path, STREAM if path == CHAT else {"prompt": "x"})
    assert "the engine closed the connection" in error["message"]
    assert len(daemon.requests()) == 1
    assert daemon.model().generation == before


@pytest.mark.parametrize("path", [CHAT, PROMPT])
async def test_the_off_switch(start: Start, path: str) -> None:
    daemon = start(knobs=PACED, replay={"continuation": False})
    answer = await outlived(daemon, kill, path, STREAM if path == CHAT else {"prompt": "x"})
    assert "could not be continued" not in the_error(answer)["message"]
    daemon.wait_for("ready")
    assert len(daemon.requests()) == 1


@pytest.mark.parametrize(("most", "is_whole"), [(10, False), (100_000, True)])
async def test_over_the_bound_nobody_goes_on(start: Start, most: int, is_whole: bool) -> None:
    daemon = start(knobs=PACED, replay={"continuation_bytes": most})
    answer = await outlived(daemon, kill, CHAT, STREAM)
    if is_whole:
        assert_whole(answer)
    else:
        assert the_error(answer)["message"].endswith(f"more than {most} bytes were said")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("think", "the chat template changes an answer that is sent back"),
        ("refuse", "the chat template takes no partial answer"),
    ],
)
async def test_a_chat_template_that_does_otherwise(start: Start, template: str, why: str) -> None:
    daemon = start(knobs={**PACED, "template": template})
    answer = await outlived(daemon, kill, CHAT, STREAM)
    assert the_error(answer)["message"].endswith(why)
    assert len(daemon.requests()) == 1
