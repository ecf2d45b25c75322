"""The requests for inference that are under way: who asks, of which model, waiting or running."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vllmd.errors import VllmdError
from vllmd.server.outcomes import Outcome


class Answer(Protocol):
    """How far the answer to a call has come. It counts for itself anyway; it is asked only by who wants to know."""

    @property
    def tokens(self) -> int:
        """About how many tokens have come."""

    @property
    def replays(self) -> int:
        """How often the request was sent again because its engine died."""

    @property
    def continuations(self) -> int:
        """How often another engine went on with the answer."""

    @property
    def has_all(self) -> bool:
        """Whether the client has got the end of it, or that is on its way."""


@dataclass(eq=False, slots=True)
class Call:
    """One request for inference.

    Args:
        id: the request's id, in the answer's `X-Request-Id` and in vLLM's log.
        who: who asks, for logs.
        model: the model's name.
        path: the engine's route.
        body: what the engine is sent.
        headers: those that the engine is sent.
        stream: whether the answer comes as events.
        may_wait: whether the client is willing to wait for the model.
    """

    id: str
    who: str
    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    stream: bool
    may_wait: bool
    began_at: float = field(default_factory=time.monotonic)
    sent_at: float | None = None
    held: bool = False
    held_s: float = 0.0
    """How long it has waited so far, in seconds: what is used up of `queue.wait_s`, over all its waits together."""
    ended_by: VllmdError | None = None
    """Why vllmd itself cut it short; None while it did not."""
    outcome: Outcome | None = None
    """What it failed with; None while it has not."""
    status: int = 200
    """The HTTP status of that."""
    answer: Answer | None = None
    """How far its answer has come, for as long as it is under way."""


class Ledger(Protocol):
    """Who keeps account of calls."""

    def admit(self, call: Call) -> None:
        """A call begins. Raises VllmdError if it may not."""

    def settle(self, call: Call) -> None:
        """A call that was admitted is over; its answer can still be asked."""


class Calls:
    """All calls under way. Leaving them one by one, or cutting them short, is how a daemon drains.

    Args:
        ledger: is told when one begins and ends; None where nobody keeps account.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger
        self._tasks: dict[Call, asyncio.Task[object]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed_by: VllmdError | None = None
        self._spared: frozenset[str] = frozenset()
        self.idle_since = time.monotonic()
        """When the last call ended, in `time.monotonic`'s seconds; of no meaning while one is under way."""
        self._left: asyncio.Event | None = None
        self._used: dict[str, float] = {}

    def add(self, call: Call) -> None:
        """Counts `call` among those under way until it is discarded; it belongs to the current task.

        Raises:
            VllmdError: what `close` was given, or why the ledger does not admit it.
        """
        if call.model not in self._spared:
            self.refuse_if_closed()
        if self._ledger is not None:
            self._ledger.admit(call)
        task = asyncio.current_task()
        assert task is not None, "a call is served by a task"
        self._tasks[call] = task
        self._idle.clear()

    def discard(self, call: Call) -> None:
        """It no longer is."""
        del self._tasks[call]
        if self._ledger is not None:
            self._ledger.settle(call)
        call.answer = None  # which knows the call: nobody shall have to wait for the garbage collector
        if not self._tasks:
            self._idle.set()
            self.idle_since = time.monotonic()
        self._used[call.model] = time.monotonic()
        if self._left is not None:  # made only by who waits
            self._left.set()
            self._left = None

    def refuse_if_closed(self) -> None:
        """Raises what `close` was given, if it was called."""
        if self._closed_by is not None:
            raise self._closed_by

    def count(self, model: str) -> tuple[int, int]:
        """How many calls of `model` run in the engine, and how many wait for it."""
        held = sum(call.held for call in self._tasks if call.model == model)
        return sum(call.model == model for call in self._tasks) - held, held

    def __iter__(self) -> Iterator[Call]:
        """Those under way now, in the order in which they came."""
        return iter(tuple(self._tasks))

    @property
    def held(self) -> int:
        """How many calls wait for an engine."""
        return sum(call.held for call in self._tasks)

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()

    async def wait_unused(self, model: str) -> None:
        """Returns when no call of `model` runs in its engine."""
        while self.count(model)[0]:
            await self.left()

    async def left(self) -> None:
        """Returns when a call has ended, whosever it was."""
        self._left = self._left or asyncio.Event()
        await self._left.wait()

    def used_at(self, model: str) -> float:
        """When the last call of `model` ended, in `time.monotonic`'s seconds; 0 if there was none."""
        return self._used.get(model, 0.0)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: whoever has an answer now had better come back to another vllmd."""
        return self._closed_by is not None

    @property
    def is_idle(self) -> bool:
        """Whether none is under way."""
        return not self._tasks

    def close(self, reason: VllmdError, spared: Iterable[str] = ()) -> None:
        """Takes no more calls, and ends those that still wait, with `reason`; running ones go on.

        Args:
            spared: models whose calls may still come and wait: their engines stay.
        """
        self._closed_by, self._spared = reason, frozenset(spared)
        self._end([call for call in self._tasks if call.held and call.model not in self._spared], reason)

    def cut_short(self, reason: VllmdError) -> None:
        """Ends all calls with `reason`, which their clients are told."""
        self._end(self, reason)

    def cancel(self, call: Call, reason: VllmdError) -> None:
        """Ends one call with `reason`, which its client is told."""
        self._end([call] if call in self._tasks else [], reason)

    def _end(self, calls: Iterable[Call], reason: VllmdError) -> None:
        for call in calls:
            if call.ended_by is None:
                call.ended_by = reason
                self._tasks[call].cancel()
