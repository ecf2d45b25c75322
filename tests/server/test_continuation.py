"""An engine dies in mid-answer, and the client sees a pause and then the rest: nothing twice, nothing lost."""

import asyncio
from typing import Any

import pytest
from conftest import Start
from daemons import Daemon, running
from struck import (
    CHAT,
    COUNTED,
    PACED,
    PROMPT,
    STALLED,
    STREAM,
    STRIKES,
    TEXT,
    TOKENS,
    assert_text,
    assert_whole,
    begun,
    continued,
    kill,
    outlived,
    replaced,
    the_error,
)
from waiting import until

from vllmd.server.loss import LOOK_S, LOOKS

SOON = {"stall_s": 1, "probe_interval_s": 0.5, "failure_threshold": 1}
"""Supervision that finds a hang; a busy engine is looked at after five silent seconds."""

PROMPT_TOKENS = 3
"""The fake engine counts the words of a prompt."""


@pytest.mark.parametrize("blow", STRIKES)
async def test_a_chat_outlives_its_engine(start: Start, blow: str) -> None:
    daemon = start(knobs=PACED, supervision=SOON, loop="asyncio" if "kill" in blow else "uvloop")
    bodies = {CHAT: COUNTED, PROMPT: {"prompt": "hello you there"}}
    async with (
        begun(daemon.unix, CHAT, STREAM) as plain,
        begun(daemon.tcp, CHAT, bodies[CHAT]) as counted,
        begun(daemon.unix, PROMPT, bodies[PROMPT]) as text,
    ):
        await STRIKES[blow](daemon)
        await asyncio.gather(plain.end(), counted.end(), text.end())
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + TOKENS, "completion_tokens": TOKENS}
    assert not assert_whole(plain).usages
    assert assert_whole(counted).usages == [usage]
    done = assert_text(text)
    assert (done["finish_reason"], done["usage"], done["continuations"]) == ("stop", usage, 1)
    assert continued(plain) == continued(counted) == 1
    assert daemon.model().generation == 2


@pytest.mark.parametrize("path", [CHAT, PROMPT])
async def test_an_engine_may_take_long_to_die(start: Start, path: str) -> None:
    """A large one does: its exit is told only when all its processes, and its memory on the GPU, are gone."""
    daemon = start(knobs={**PACED, "death_s": 4 * LOOKS * LOOK_S})
    body = STREAM if path == CHAT else {"prompt": "x"}
    answer = await outlived(daemon, STRIKES["kill -9 of EngineCore"], path, body)
    assert_whole(answer) if path == CHAT else assert_text(answer)


async def test_the_next_engine_is_asked_for_the_rest_alone(start: Start) -> None:
    daemon = start(knobs=PACED)
    assert_whole(await outlived(daemon, kill, CHAT, {**STREAM, "max_tokens": 2 * TOKENS}))
    first, second = (request["body"] for request in daemon.requests())
    *asked, partial = second["messages"]
    assert asked == first["messages"]
    assert TEXT.startswith(partial["content"])
    assert partial["role"] == "assistant"
    assert second["max_tokens"] == 2 * TOKENS - len(partial["content"].split())
    assert first.keys() | {"continue_final_message", "add_generation_prompt"} == second.keys()


async def test_several_deaths_in_one_answer(start: Start) -> None:
    daemon = start(knobs=PACED, replay={"limit": 3}, supervision={"restart_limit": 9})
    async with begun(daemon.unix, CHAT, COUNTED) as stream:
        for number, word in enumerate((b"tok10", b"tok20", b"tok30"), 2):
            await stream.until(word)
            await kill(daemon)
            await replaced(daemon, number)
        await stream.end()
    client = assert_whole(stream)
    assert client.usages[0]["completion_tokens"] == TOKENS
    assert continued(stream) == 3


@pytest.mark.parametrize("path", [CHAT, PROMPT])
async def test_one_death_too_many_is_an_error(start: Start, path: str) -> None:
    daemon = start(knobs=PACED, replay={"limit": 1}, supervision={"restart_limit": 9})
    async with begun(daemon.unix, path, STREAM if path == CHAT else {"prompt": "x"}) as stream:
        await kill(daemon)
        await stream.until(b"tok15")
        await kill(daemon)
        await stream.end()
    assert the_error(stream)["source"] == "engine"
    assert stream.body.count(b"tok15") == 1


@pytest.mark.parametrize("body", [STREAM, COUNTED], ids=["plain", "counted"])
async def test_a_death_after_the_role_alone(start: Start, body: dict[str, Any]) -> None:
    daemon = start(knobs=PACED)
    daemon.control(**PACED | {"tokens_per_s": 0.01})
    async with begun(daemon.unix, CHAT, body, after=b'"role"') as stream:
        await kill(daemon)
        daemon.control(**PACED)
        await stream.end()
    client = assert_whole(stream)
    assert [usage["completion_tokens"] for usage in client.usages] == [TOKENS] * len(client.usages)
    assert continued(stream) == 1


async def test_a_death_before_the_first_word_of_the_simple_door(start: Start) -> None:
    daemon = start(knobs=PACED)
    daemon.control(**PACED | {"tokens_per_s": 0.01})
    async with daemon.unix.stream(PROMPT, {"prompt": "x"}) as stream:
        await until(daemon.requests, "the request to be there")
        await kill(daemon)
        daemon.control(**PACED)
        await stream.end()
    done = assert_text(stream)
    assert (done["replays"], done.get("continuations")) == (1, None)


async def test_a_death_while_the_continuation_prefills(start: Start) -> None:
    daemon = start(knobs=PACED)
    async with begun(daemon.unix, CHAT, COUNTED) as stream:
        await kill(daemon)
        daemon.control(**STALLED)
        await until(lambda: len(daemon.requests()) == 2, "the continuation to have begun")
        await kill(daemon)
        daemon.control(**PACED)
        await stream.end()
    assert assert_whole(stream).usages[0]["completion_tokens"] == TOKENS
    assert len(daemon.requests()) == 3


@pytest.mark.parametrize("most", [20, TOKENS, 100])
@pytest.mark.parametrize("eos", [0, 1])
async def test_the_limit_of_tokens_holds_over_the_seam(start: Start, most: int, eos: int) -> None:
    daemon = start(knobs={**PACED, "eos": eos})
    told = await outlived(daemon, kill, CHAT, {**COUNTED, "max_tokens": most})
    is_cut = most < TOKENS or (most == TOKENS and eos)
    client = assert_whole(told, " ".join(TEXT.split()[:most]), "length" if most <= TOKENS else "stop")
    assert client.usages[0]["completion_tokens"] == min(most, TOKENS + (0 if is_cut else eos))


async def test_fifty_streams_go_on_together(start: Start) -> None:
    daemon = start(knobs={**PACED, "tokens_per_s": 20})
    bodies = [(CHAT, COUNTED), (PROMPT, {"prompt": "hello you there"})] * 25
    doors = [daemon.unix, daemon.tcp]
    streams = [await doors[at // 2 % 2].open(path, body) for at, (path, body) in enumerate(bodies)]
    await asyncio.gather(*(stream.until(b"tok5") for stream in streams))
    await kill(daemon)
    await asyncio.gather(*(stream.end() for stream in streams))
    for (path, _), stream in zip(bodies, streams, strict=True):
        assert_whole(stream) if path == CHAT else assert_text(stream)
        await stream.leave()
    assert len(daemon.requests()) == 100


# ── the seam, wherever it lies ──

TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unicode": ("Zürich 🏔️ naïve – 東京 👩‍👩‍👧 \u0301e \u200b ﷽ ok", {"split": "bytes"}),
    "escapes": ('say "\\n" and \\u00e9,\ttab\n"é" \x7f <b>\u2028 ok', {"split": "chars"}),
    "whitespace": ("if a:\n\n\tb  =  1\n\n\n    c\r\n - d  \n\n ok", {"split": "chars"}),
    "whitespace, kept": ("\n\n one  two\n\n  three \n", {"split": "chars", "template": "keep"}),
    "words in one write": ("a bb\n\nccc  dddd \u00e9\u00e9 fin", {"events_per_send": 3, "eos": 1}),
    "words chopped": ("a bb\n\nccc  dddd \u00e9\u00e9 fin", {"chop": 7}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_lost_wherever_the_engine_dies(name: str) -> None:
    text, knobs = TEXTS[name]
    made = Daemon(knobs={"text": text, **knobs}, replay={"limit": 1}, supervision={"restart_limit": 1000})
    with running(made) as daemon:
        asyncio.run(_die_at_each_token(daemon, text, knobs))


async def _die_at_each_token(daemon: Daemon, text: str, knobs: dict[str, Any]) -> None:
    bare = (await daemon.unix.ask(CHAT, COUNTED)).body
    tokens = bare.count(b"data: ") - 3  # the role, the usage and [DONE] are none
    for after in range(1, tokens, 1 + tokens // 25):
        once = str(daemon.folder / f"once{after}")
        fault = "cut-inside" if after % 2 else "cut"
        daemon.control(text=text, **knobs, fault=fault, fault_after=after, fault_exit="SIGKILL", once=once)
        path, body = (CHAT, COUNTED) if after % 3 else (CHAT, STREAM)
        answer = await daemon.unix.ask(path, body)
        assert_whole(answer, text)
        assert continued(answer) == 1, after
