"""The real vLLM dies in mid-answer, and its clients leave: the same text, one stream, and no work for nobody.

`pytest -s tests/system/test_continuation_real.py` prints how long the pauses were, and how soon an engine was idle.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asking import Exchange
from daemons import Daemon
from struck import CHAT, PROMPT, STRIKES, client_of, continued
from system.real import STARTS_WITHIN_S, engine_counts, real_daemon, until_engine_works_on
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

IDLE_WITHIN_S = 1.0
"""Promise 5. A machine that does other things at the same time gets more."""

GRACE_S = 4.0

QUESTIONS = {
    "prose": "Explain in three paragraphs why the sky is blue.",
    "code": "Write a Python function that sorts a list by insertion. Explain each line in a comment.",
    "accents": "Write the names of ten French dishes, each with its accents and an emoji, one in each line.",
}
BLOWS = ("kill -9 of the API server", "kill -9 of EngineCore")
TOKENS = 160


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with real_daemon({"max-num-batched-tokens": 256}, queue={"status_after_s": 1}) as daemon:
        yield daemon


def asked(name: str) -> dict[str, Any]:
    """A chat whose answer is always the same.

    It may end by itself: with `ignore_eos` it would go on behind tokens that end a turn, which the text does not show.
    """
    return {
        "messages": [{"role": "user", "content": QUESTIONS[name]}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def whole(exchange: Exchange) -> Exchange:
    """Reads to the end, however long the next engine takes to start."""
    async with asyncio.timeout(STARTS_WITHIN_S):
        async for _ in exchange.pieces():
            pass
    assert exchange.whole, exchange.body[-1000:]
    return exchange


async def undisturbed(daemon: Daemon, name: str) -> Exchange:
    async with daemon.unix.stream(CHAT, asked(name)) as exchange:
        return await whole(exchange)


@pytest.mark.parametrize("blow", BLOWS)
@pytest.mark.parametrize("name", QUESTIONS)
async def test_the_text_is_that_of_an_undisturbed_run(daemon: Daemon, name: str, blow: str) -> None:
    before, expected = daemon.model().generation, client_of(await undisturbed(daemon, name))
    tokens = expected.usages[0]["completion_tokens"]
    at = tokens * (1 + [*QUESTIONS].index(name)) // 4
    async with daemon.tcp.stream(CHAT, asked(name)) as exchange:
        await exchange.until(b'"content"', at)
        await STRIKES[blow](daemon)
        pause_s = await longest_pause(exchange)
    struck = client_of(exchange)
    struck.check()
    print(f"\n{name}, {blow} after {at} of {tokens} tokens: the same text, a pause of {pause_s:.1f} s")
    assert struck.text == expected.text
    assert struck.usages == expected.usages
    assert continued(exchange) == 1
    assert daemon.model().generation == before + 1


async def longest_pause(exchange: Exchange) -> float:
    """Reads to the end; returns the longest time without a token."""
    last_at, longest_s = time.monotonic(), 0.0
    async with asyncio.timeout(STARTS_WITHIN_S):
        async for piece in exchange.pieces():
            if b'"content"' in piece:
                longest_s, last_at = max(longest_s, time.monotonic() - last_at), time.monotonic()
    assert exchange.whole, exchange.body[-1000:]
    return longest_s


async def test_three_streams_go_on_together(daemon: Daemon) -> None:
    """Computed together or alone, before the seam or behind it, the numbers differ in their last digits only."""
    expected = [client_of(await undisturbed(daemon, name)).text for name in QUESTIONS]
    exchanges = [await daemon.unix.open(CHAT, asked(name)) for name in QUESTIONS]
    await asyncio.gather(*(each.until(b'"content"', 15) for each in exchanges))
    await STRIKES[BLOWS[1]](daemon)
    for exchange, text in zip(exchanges, expected, strict=True):
        client = client_of(await whole(exchange))
        client.check()
        assert client.text == text
        await exchange.leave()


# ── clients that leave ──


LONG = " ".join(f"The number {number} is followed by {number + 1}." for number in range(130))
LEAVING: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "a chat in mid-answer": (CHAT, {**asked("prose"), "max_tokens": 1500}, b'"content":" '),
    "text in mid-answer": (PROMPT, {"prompt": "Count to one thousand.", "max_tokens": 1500}, b"data:"),
    "an answer in one piece": (
        CHAT,
        {**asked("prose"), "max_tokens": 1500, "stream": False, "stream_options": None},
        b"",
    ),
    "text in one piece": (PROMPT, {"prompt": "Count to one thousand.", "max_tokens": 1500, "stream": False}, b""),
    "a chat in its prefill": (CHAT, {"messages": [{"role": "user", "content": LONG}], "stream": True}, b""),
    "text in its prefill": (PROMPT, {"prompt": LONG, "max_tokens": 200}, b""),
}


@pytest.mark.parametrize("what", LEAVING)
async def test_the_engine_is_idle_soon_after_its_client_has_left(daemon: Daemon, what: str) -> None:
    path, body, after = LEAVING[what]
    await until_engine_works_on(daemon, 0)
    async with daemon.unix.stream(path, body) as exchange:
        if after:
            await exchange.until(after, 5)
        await until_engine_works_on(daemon, 1)
        assert after or not exchange.body
    left_at = time.monotonic()
    await until_engine_works_on(daemon, 0, GRACE_S)
    idle_s = time.monotonic() - left_at
    print(f"\n{what}: the engine was idle after {idle_s:.2f} s{' (late)' if idle_s > IDLE_WITHIN_S else ''}")


async def test_who_leaves_while_it_waits_is_never_asked_for(daemon: Daemon) -> None:
    before = daemon.model().generation
    async with daemon.unix.stream(CHAT, asked("prose")) as broken:
        await broken.until(b'"content"', 10)
        await STRIKES[BLOWS[0]](daemon)
        held = [await daemon.unix.open(*LEAVING[what][:2]) for what in LEAVING]
        await until(lambda: daemon.model().held == len(held) + 1, "all to wait for the next engine")
        for each in held:
            await each.leave()
    left_at = time.monotonic()
    await until(lambda: daemon.model().held == 0, "vllmd to forget them", GRACE_S)
    print(f"\nheld: forgotten after {time.monotonic() - left_at:.2f} s")
    await until(lambda: daemon.model().generation > before, "the next engine")
    daemon.wait_for("ready", STARTS_WITHIN_S)
    assert await engine_counts(daemon) == await engine_counts(daemon, "num_requests_waiting") == 0
    assert await engine_counts(daemon, "request_success_total") <= 1, "the health check alone"
