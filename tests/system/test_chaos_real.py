"""Faults of a real vLLM under a running stream: what the client sees, what stays alive, how long until the next token.

`pytest -s tests/system/test_chaos_real.py` prints the table that stands in ARCHITECTURE.md. One vllmd for all, since
each start of the engine takes a minute; so the tests build on each other only in that each leaves a ready engine.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from asking import Exchange
from daemons import Daemon
from generations import GONE_WITHIN_S, find, processes, watched
from steady_load import CHAT, COMPLETE, CONTINUED, Clients, Question, question
from system.real import STARTS_WITHIN_S, real_daemon
from waiting import until

from vllmd.statuses import ModelStatus

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

STALL_S = 8.0
SUPERVISION = {"stall_s": STALL_S, "probe_interval_s": 5, "probe_timeout_s": 60, "stop_timeout_s": 20}

LEADER = "leader"
FAULTS = {
    "kill -9 of the API server": (LEADER, signal.SIGKILL),
    "kill -9 of EngineCore": ("VLLM::EngineCor", signal.SIGKILL),
    "kill -9 of a Worker": ("VLLM::Worker", signal.SIGKILL),
    "SIGSTOP of EngineCore": ("VLLM::EngineCor", signal.SIGSTOP),
}

Row = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """What the tests measured; printed at the end."""
    rows: list[Row] = [
        (
            "fault, with a stream running",
            "what the stream saw",
            "all processes gone after",
            "next token after",
        ),
        ("---", "---", "---", "---"),
    ]
    yield rows
    print("\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with real_daemon(supervision=SUPERVISION) as daemon:
        yield daemon


@dataclass(frozen=True)
class Texts:
    """What an undisturbed engine answers: a few tokens, and many more than come before any fault."""

    short: str
    long: str


SHORT, LONG, ENDLESS = 5, 300, 1900
"""Lengths of answers, in tokens."""

TELL: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Explain in three paragraphs why the sky is blue."}],
    "temperature": 0,
}
"""Its answer ends by itself, after some 100 tokens. Past that end tokens follow which the text does not show."""


def telling(daemon: Daemon, text: str) -> Question:
    """A question that is answered at length, and always with the same text."""
    return question(daemon.unix, CHAT, stream=True, max_tokens=LONG, text=text, finish="stop", **TELL)


def counting(daemon: Daemon, max_tokens: int, text: str = "", *, stream: bool = True) -> Question:
    """A question that is answered with so many tokens, and always the same ones."""
    more = {"temperature": 0, "ignore_eos": True}
    return question(daemon.unix, CHAT, stream=stream, max_tokens=max_tokens, text=text, finish="length", **more)


def counted(daemon: Daemon, max_tokens: int) -> str:
    """The text of an answer of so many tokens, in one piece."""
    answer = whole_answer(daemon, counting(daemon, max_tokens, stream=False).body)
    assert answer["usage"]["completion_tokens"] == max_tokens
    return str(answer["choices"][0]["message"]["content"])


def whole_answer(daemon: Daemon, body: dict[str, Any]) -> Any:
    """An answer in one piece."""

    async def ask() -> Exchange:
        async with daemon.unix.stream(CHAT, body) as answer:
            async for _ in answer.pieces():
                pass
        return answer

    return asyncio.run(ask()).json()


@pytest.fixture(scope="module")
def texts(daemon: Daemon) -> Texts:
    answer = whole_answer(daemon, {**TELL, "max_tokens": LONG})
    return Texts(counted(daemon, SHORT), str(answer["choices"][0]["message"]["content"]))


async def until_text(clients: Clients, pieces: int) -> None:
    await until(lambda: len(clients.tokens_at) >= pieces or clients.wrong, "a stream that flows", 300)
    assert not clients.wrong


def test_a_long_answer_in_one_piece_is_not_taken_for_a_hang(daemon: Daemon) -> None:
    before, took_s, tokens = daemon.model(), 0.0, LONG
    while took_s <= STALL_S and tokens <= ENDLESS:  # on a fast machine a longer one
        began_at = time.monotonic()
        counted(daemon, tokens)
        took_s, tokens = time.monotonic() - began_at, tokens * 2
    assert took_s > STALL_S, "no answer takes longer here than an engine may be silent: lower STALL_S"
    assert (daemon.model().generation, daemon.model().state) == (before.generation, "ready")


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_mended_and_the_answer_goes_on(
    daemon: Daemon, texts: Texts, rows: list[Row], fault: str
) -> None:
    clients, before = Clients(STARTS_WITHIN_S), daemon.model()
    async with watched(daemon) as witness:
        stream = asyncio.create_task(clients.ask(telling(daemon, texts.long)))
        await until_text(clients, 10)
        struck_at = strike(daemon, before, *FAULTS[fault])
        await stream
        assert (+clients.saw, clients.wrong) == ({COMPLETE: 1, CONTINUED: 1}, [])
    assert not witness.wrong
    after = daemon.model()
    assert (after.generation, after.restarts) == (before.generation + 1, before.restarts + 1)
    assert set(processes(daemon)) == {after.generation}
    pause_s = clients.silence_s(struck_at)
    rows.append((fault, "a pause, then the rest", f"{witness.slowest_s:.1f} s", f"{pause_s:.0f} s"))


def strike(daemon: Daemon, engine: ModelStatus, name: str, number: signal.Signals) -> float:
    """Sends a signal to one of the engine's processes; returns when."""
    pid = engine.pid if name == LEADER else find(daemon, engine.generation, name)
    assert pid, f"there is no {name}"
    os.kill(pid, number)
    return time.monotonic()


async def ask_again(daemon: Daemon, clients: Clients, texts: Texts) -> float:
    """A question that is held until the next engine is ready; returns when its first token came."""
    clients.forget()
    await clients.ask(counting(daemon, SHORT, texts.short))
    assert (+clients.saw, clients.wrong) == ({COMPLETE: 1}, [])
    return clients.tokens_at[0]


async def test_kill_9_of_vllmd_ends_everything(daemon: Daemon, texts: Texts, rows: list[Row]) -> None:
    asked = counting(daemon, ENDLESS)
    async with asked.door.stream(asked.path, asked.body) as stream:
        await stream.until(b'"content"', 10)
        struck_at = time.monotonic()
        daemon.signal(signal.SIGKILL)
        await stream.end()
    assert stream.cut, "a dead vllmd cannot say a word, but HTTP shows that the answer is not complete"
    await until(lambda: not daemon.everybody(), "everything to be gone with vllmd", GONE_WITHIN_S)
    gone_s = time.monotonic() - struck_at
    daemon.wait()
    daemon.launch()
    daemon.wait_for("")
    token_s = await ask_again(daemon, Clients(STARTS_WITHIN_S), texts) - struck_at
    rows.append(("kill -9 of vllmd, started anew", "the connection cut", f"{gone_s:.1f} s", f"{token_s:.0f} s"))
