"""Clients that ask all the time, and judge every answer: one ending, nothing after it, the right text (promise 4)."""

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asking import Door, Event, Exchange
from waiting import until

CHAT = "/v1/chat/completions"
SIMPLE = "/api/prompt"

THINKS_S = 0.05
"""Seconds between an answer and the next question, so that refusals are not asked for in a hot loop."""

CLEAR_REFUSALS = (502, 503)
"""What a request gets of which no byte is out, when there is no engine for it (promises 5 and 6)."""

COMPLETE, BROKEN, CONTINUED = "complete", "error", "continued"
"""What a client saw. Who saw a complete answer may have seen one that another engine went on with, and counts twice."""

_HAS_TEXT = {CHAT: re.compile(rb'"content": ?"[^"]'), SIMPLE: re.compile(rb"(?:\A|\n\n)data:")}


@dataclass(frozen=True)
class Question:
    """What a client asks, and what may come back.

    Args:
        door: through which it comes.
        path, body: the request.
        text: the whole answer, which is the same each time.
        finish: `stop` or `length`.
    """

    door: Door
    path: str
    body: dict[str, Any]
    text: str
    finish: str

    @property
    def is_stream(self) -> bool:
        return bool(self.body["stream"])


def question(door: Door, path: str, *, stream: bool, text: str, finish: str, max_tokens: int, **more: Any) -> Question:
    """A question in the words of its route."""
    words = {"messages": [{"role": "user", "content": "hello"}]} if path == CHAT else {"prompt": "hello"}
    return Question(door, path, {**words, "stream": stream, "max_tokens": max_tokens, **more}, text, finish)


# ── what an answer amounts to ──


def judge(asked: Question, answer: Exchange) -> str:
    """What the client saw: `complete`, `error`, or a refusal's status. Raises AssertionError."""
    if answer.status != 200:
        return _refusal(answer)
    if not asked.is_stream:
        return _whole(asked, answer)
    assert answer.body.endswith(b"\n\n") or not answer.body, "an event was cut"
    events = [each for each in answer.events if each.comment is None]
    text = "".join(_text(asked.path, each) for each in events)
    if answer.whole:
        return _finished(asked, events, text)
    return _broken(asked, events, text)


def was_continued(answer: Exchange) -> bool:
    """Whether vllmd says that another engine went on with it: in a trailer, or at the end of a stream of text."""
    last = answer.events[-1] if answer.status == 200 and answer.body.startswith((b"data:", b":")) else Event()
    told = bool(last.name == "done" and last.json().get("continuations"))
    return told or any(name == "x-vllmd-continued" for name, _ in answer.trailers)


def _refusal(answer: Exchange) -> str:
    assert answer.status in CLEAR_REFUSALS, f"status {answer.status}"
    assert answer.error["message"], "a refusal without a reason"
    assert answer.error["source"] in ("engine", "vllmd"), "a refusal that does not say whose it is"
    return str(answer.status)


def _whole(asked: Question, answer: Exchange) -> str:
    table = answer.json()
    choice = table["choices"][0] if asked.path == CHAT else table
    text = choice["message"]["content"] if asked.path == CHAT else table["text"]
    assert text == asked.text, "another text"
    assert choice["finish_reason"] == asked.finish
    return COMPLETE


def _finished(asked: Question, events: list[Event], text: str) -> str:
    assert text == asked.text, "another text"
    assert not any(map(_is_error, events)), "an error in a stream that ends well"
    assert [number for number, each in enumerate(events) if _is_last(each)] == [len(events) - 1], "not one last event"
    assert _finishes(events) == [asked.finish], "not one finish"
    assert asked.path != CHAT or _is_one_answer(events), "not one id, or not one role"
    return COMPLETE


def _is_one_answer(events: list[Event]) -> bool:
    chunks = [each.json() for each in events if not _is_last(each)]
    roles = [choice for chunk in chunks for choice in chunk["choices"] if "role" in choice["delta"]]
    return len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == len(roles) == 1


def _broken(asked: Question, events: list[Event], text: str) -> str:
    assert asked.text.startswith(text), "the text that came is no part of the answer"
    assert [number for number, each in enumerate(events) if _is_error(each)] == [len(events) - 1], "not one error"
    assert not any(map(_is_last, events)), "a good end in a stream that broke"
    assert not _finishes(events), "a finish in a stream that broke"
    error = events[-1].json()["error"]
    assert error["message"], "an error without a reason"
    assert error["source"] in ("engine", "vllmd"), "an error that does not say whose it is"
    return BROKEN


def _is_error(event: Event) -> bool:
    return event.name == "error" or (event.data or "").startswith('{"error"')


def _is_last(event: Event) -> bool:
    return event.data == "[DONE]" or event.name == "done"


def _choices(event: Event) -> list[dict[str, Any]]:
    is_table = event.name == "message" and (event.data or "").startswith('{"') and not _is_error(event)
    found: list[dict[str, Any]] = event.json().get("choices", []) if is_table else []
    return found


def _text(path: str, event: Event) -> str:
    if path == CHAT:
        return "".join(choice["delta"].get("content") or "" for choice in _choices(event))
    return (event.data or "") if event.name == "message" else ""


def _finishes(events: list[Event]) -> list[str]:
    done = [each.json()["finish_reason"] for each in events if each.name == "done"]
    return done + [found for each in events for choice in _choices(each) if (found := choice.get("finish_reason"))]


# ── the clients ──


@dataclass
class Clients:
    """All clients, and what they saw.

    Attributes:
        bound_s: seconds within which every answer has to end.
        saw: outcomes of `judge`, counted.
        wrong: promises that were broken, each a sentence with the answer.
        tokens_at: when text came to a client (time.monotonic()).
    """

    bound_s: float
    saw: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens_at: list[float] = field(default_factory=list)
    _go: asyncio.Event = field(default_factory=asyncio.Event)
    _asking: int = 0

    async def ask(self, asked: Question) -> None:
        """One question to its end."""
        self._asking += 1
        began_at, answer = time.monotonic(), None
        try:
            async with asyncio.timeout(self.bound_s):
                answer = await asked.door.open(asked.path, asked.body)
                await self._read(asked, answer)
            self.saw[judge(asked, answer)] += 1
            self.saw.update([CONTINUED] if was_continued(answer) else [])
        except (AssertionError, TimeoutError, OSError, ValueError, LookupError) as error:
            self.wrong.append(_complaint(asked, answer, error, time.monotonic() - began_at))
        finally:
            self._asking -= 1
            if answer:
                await answer.leave()

    async def client(self, questions: Sequence[Question], chance: random.Random) -> None:
        """Asks for ever, unless the load is paused."""
        while True:
            await self._go.wait()
            await self.ask(chance.choice(questions))
            await asyncio.sleep(THINKS_S)

    async def pause(self) -> None:
        """Returns when nobody asks."""
        self._go.clear()
        await until(lambda: not self._asking, "every client to have its answer", self.bound_s + 5)

    def go_on(self) -> None:
        """Everybody asks again."""
        self._go.set()

    @property
    def heard_at(self) -> float:
        """When text last came to a client; 0 if none did."""
        return self.tokens_at[-1] if self.tokens_at else 0.0

    def silence_s(self, since: float) -> float:
        """The longest time, since then (time.monotonic()), in which no client got any text."""
        moments = [since, *(at for at in self.tokens_at if at > since)]
        return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)

    def forget(self) -> None:
        """Begins to count anew."""
        self.saw.clear()
        self.tokens_at.clear()

    async def _read(self, asked: Question, answer: Exchange) -> None:
        has_text = _HAS_TEXT[asked.path]
        async for piece in answer.pieces():
            if asked.is_stream and has_text.search(piece):
                self.tokens_at.append(time.monotonic())


def _complaint(asked: Question, answer: Exchange | None, error: Exception, took_s: float) -> str:
    status, body = (answer.status, answer.body) if answer else (0, b"")
    kind = "stream" if asked.is_stream else "whole answer"
    what = str(error) or type(error).__name__
    return f"{what} ({kind} of {asked.path} to {asked.door.place}, {status}, after {took_s:.1f} s): {body[-2000:]!r}"


@asynccontextmanager
async def steady(
    clients: Sequence[Sequence[Question]], chance: random.Random, bound_s: float
) -> AsyncIterator[Clients]:
    """A load, for as long as the block lasts.

    Args:
        clients: for each client the questions from which it chooses.
        bound_s: seconds within which every answer has to end.
    """
    everybody = Clients(bound_s)
    everybody.go_on()
    seeds = [random.Random(chance.random()) for _ in clients]
    tasks = [asyncio.create_task(everybody.client(*each)) for each in zip(clients, seeds, strict=True)]
    try:
        yield everybody
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
