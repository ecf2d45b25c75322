"""Waiting for an engine and for a place in it: calls are held, not refused, bounded, and in turns (see `turns`).

A place is one of the requests that an engine works on at once. More of them wait here and not in the engine, because
vLLM serves them in order of arrival, and one client's thousand requests would delay everybody else's.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from vllmd import sections
from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import Unavailable
from vllmd.server.accounts import Accounts
from vllmd.server.calls import Call
from vllmd.server.refusals import at_its_limit, busy, full, not_ready, retry_after_s, too_late
from vllmd.server.turns import Lane, Ticket, Turns

TICK_S = 1.0
"""A held stream is told once in this time what it waits for."""

COMES_AGAIN = 2
"""A client that does not wait is told when to ask again; for that long, times this, the model is loaded for it."""

BESIDE = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""The engine's routes that never come to its scheduler, and so take no place."""

Tell = Callable[[str], Awaitable[None]]


def places(settings: sections.Config) -> dict[str, int]:
    """Of each model, how many calls its engine works on at once: `max-num-seqs` of its args, else `queue.running`."""
    return {name: _max_num_seqs(model) or settings.queue.running for name, model in settings.models.items()}


def _max_num_seqs(model: sections.Model) -> int:
    """That flag in whichever way it is written; 0 if it is no positive number, which is vLLM's to complain about."""
    value = str(model.flag("max-num-seqs"))
    return int(value) if value.isascii() and value.isdecimal() else 0


@dataclass(eq=False)
class Waiting(Ticket):
    """A call that waits.

    Args:
        call: which one.
        supervisor: of its model.
        answer: the way to the engine, once it has a place in it, or why it gets none. An error is a result here and no
            exception, because nobody may be left to take it.
    """

    call: Call
    supervisor: Supervisor
    answer: "asyncio.Future[EngineClient | Unavailable]"

    def let_in(self, client: EngineClient) -> None:
        """It has a place, and counts as running from now on: by the time that its task hears of it, an engine without
        requests could have been told to go."""
        self.call.held = False
        self.answer.set_result(client)


class Turn:
    """The context manager of `Queue.turn`; a generator would cost several times as much, and each request has one."""

    __slots__ = ("_call", "_lane", "_queue", "_supervisor", "_tell")

    def __init__(self, queue: "Queue", call: Call, supervisor: Supervisor, tell: Tell) -> None:
        self._queue = queue
        self._call = call
        self._lane = Lane(call.model, call.path not in BESIDE)
        self._supervisor = supervisor
        self._tell = tell

    def __aenter__(self) -> Coroutine[Any, Any, EngineClient]:
        return self._queue.enter(self._call, self._lane, self._supervisor, self._tell)

    async def __aexit__(self, *exc: object) -> None:
        self._queue.leave(self._call, self._lane, self._supervisor)


class Queue:
    """The calls that wait, and the places that they wait for.

    A place belongs to the model, whichever engine serves it. Nobody who may have one waits while it is free and the
    engine is ready; this is seen to whenever a place becomes free and whenever an engine's state changes.

    Args:
        settings: how long calls may wait, and how many of them.
        feed: changes when an engine's state does.
        places: model → how many calls may be in its engine at once.
        accounts: how many calls of one identity may be in engines, and how many may wait.
    """

    def __init__(
        self, settings: sections.Queue, feed: Feed, places: Mapping[str, int], accounts: Accounts | None = None
    ) -> None:
        self._settings = settings
        self._feed = feed
        self._accounts = accounts or Accounts()
        self._turns: Turns[Waiting] = Turns(places, lambda who: self._accounts.named(who).allowed.running)
        self._supervisors: dict[str, Supervisor] = {}
        self._watching: asyncio.Task[None] | None = None
        self._ranks: dict[Waiting, int] = {}
        self._ranked_at = -math.inf

    def reconfigure(self, settings: sections.Queue, places: Mapping[str, int]) -> None:
        """Other bounds, from now on, and for those that wait already."""
        self._settings = settings
        self._turns.reconfigure(places)
        for supervisor in self._supervisors.values():
            self._see_to(supervisor)

    @property
    def held(self) -> int:
        """How many calls wait."""
        return len(self._turns)

    def turn(self, call: Call, supervisor: Supervisor, tell: Tell) -> "Turn":
        """An async context manager that waits until the engine is ready and it is the call's turn.

        The call has a place in the engine for the block, and the block gets the way to it.

        At most `queue.limit` calls wait, of all models together. In a full queue the identity that waits most gives up
        its newest call for the one that comes; where that would be the newcomer's own identity, or one that waits no
        more than it, the newcomer is refused. Calls that had a place before (`call.sent_at`) always get in: they were
        let in once, and are no more than there are places. Whoever must go is told TooMany if it has other calls here
        and is not the only one who has, and Overloaded else. An identity that waits as often as it may is told TooMany.

        Args:
            call: the request; it counts as held while it waits, and its `held_s` grows.
            supervisor: its model's.
            tell: brings a line of status to the client; called only for streams, and after `queue.status_after_s`.

        Raises:
            EngineFailed: the supervisor has given up.
            NotReady: the model is not loaded, or did not become ready in time, or the client does not want to wait.
            Overloaded: too many wait already, or no place became free in time, or the client does not want to wait.
            TooMany: too many of this client's calls wait.
        """
        return Turn(self, call, supervisor, tell)

    # ── one call: what its turn calls ──

    async def enter(self, call: Call, lane: Lane, supervisor: Supervisor, tell: Tell) -> EngineClient:
        """Returns when the call has a place. Raises as `turn` says."""
        client = supervisor.client
        if client is None or not self._turns.take(lane, call.who):
            return await self._hold(call, lane, supervisor, tell)
        return client

    def leave(self, call: Call, lane: Lane, supervisor: Supervisor) -> None:
        """The call needs its place no more."""
        self._give_back(lane, call.who, supervisor)

    async def _hold(self, call: Call, lane: Lane, supervisor: Supervisor, tell: Tell) -> EngineClient:
        now = asyncio.get_running_loop().time
        waiting, began_at = self._admit(call, lane, supervisor), now()
        call.held = True
        try:
            answer = await self._answer(waiting, call, tell)
        except BaseException:
            self._withdraw(waiting)
            raise
        finally:
            call.held = False
            call.held_s += now() - began_at
            self._rest()
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    def _admit(self, call: Call, lane: Lane, supervisor: Supervisor) -> Waiting:
        if supervisor.is_hopeless:
            raise not_ready(supervisor)
        if supervisor.client is None:
            supervisor.want(0.0 if call.may_wait else COMES_AGAIN * retry_after_s(supervisor))
        if not call.may_wait:
            raise self._cannot_wait(call, lane, supervisor)
        if call.sent_at is None:
            self._refuse_if_many_wait(call.who)
        answer = asyncio.get_running_loop().create_future()
        waiting = Waiting(lane, call.who, call.sent_at is not None, call, supervisor, answer)
        if self.held < self._settings.limit or (waiting.returning and lane.bounded):
            self._add(waiting)
        else:
            self._make_room_for(waiting)
        return waiting

    def _cannot_wait(self, call: Call, lane: Lane, supervisor: Supervisor) -> Unavailable:
        if supervisor.client is None:
            return not_ready(supervisor)
        if self._turns.may_have(lane, call.who):
            return busy(supervisor)
        account = self._accounts.named(call.who)
        account.refused += 1
        return at_its_limit(call.who, "running", account.allowed.running)

    def _refuse_if_many_wait(self, who: str) -> None:
        account = self._accounts.named(who)
        if account.allowed.held and self._turns.count(who) >= account.allowed.held:
            account.refused += 1
            raise at_its_limit(who, "waiting", account.allowed.held)

    def _make_room_for(self, newcomer: Waiting) -> None:
        loser = self._turns.to_make_room(newcomer.who)
        if loser is None:
            raise self._refusal(newcomer)
        self._turns.remove(loser)
        self._add(newcomer)
        loser.answer.set_result(self._refusal(loser))

    def _refusal(self, waiting: Waiting) -> Unavailable:
        return full(waiting.supervisor, own=self._turns.count(waiting.who), held=self.held)

    def _add(self, waiting: Waiting) -> None:
        self._turns.add(waiting)
        self._supervisors[waiting.lane.model] = waiting.supervisor
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    def _withdraw(self, waiting: Waiting) -> None:
        """The call is over while it waits; it may have got a place in the same moment, which goes to the next."""
        if not waiting.answer.done():
            self._turns.remove(waiting)
        elif not isinstance(waiting.answer.result(), Unavailable):
            self._give_back(waiting.lane, waiting.who, waiting.supervisor)

    async def _answer(self, waiting: Waiting, call: Call, tell: Tell) -> EngineClient | Unavailable:
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._settings.wait_s - call.held_s
        tell_at = now() + max(0.0, self._settings.status_after_s - call.held_s) if call.stream else math.inf
        while True:
            # `wait` leaves the future alone when the call is cancelled: whoever answers need not know.
            await asyncio.wait([waiting.answer], timeout=max(0.0, min(give_up_at, tell_at) - now()))
            if waiting.answer.done():
                return waiting.answer.result()
            if now() >= give_up_at:
                raise too_late(waiting.supervisor, self._settings.wait_s)
            if now() >= tell_at:
                await tell(self._sentence(waiting))
                tell_at = now() + TICK_S

    def _sentence(self, waiting: Waiting) -> str:
        if waiting.supervisor.client is None:
            return waiting.supervisor.sentence()
        if not self._turns.may_have(waiting.lane, waiting.who):
            return "waiting for another request of yours to end"
        match self._rank(waiting):
            case 0:
                return "waiting for a place: the next one is yours"
            case 1:
                return "waiting for a place: 1 request is ahead"
            case ahead:
                return f"waiting for a place: {ahead} requests are ahead"

    def _rank(self, waiting: Waiting) -> int:
        """How many go before it, as of a moment ago: they are counted once for all who want to know."""
        now = asyncio.get_running_loop().time()
        if waiting not in self._ranks or now >= self._ranked_at + TICK_S:
            self._ranks, self._ranked_at = self._turns.ranks(), now
        return self._ranks[waiting]

    # ── all of them ──

    def _give_back(self, lane: Lane, who: str, supervisor: Supervisor) -> None:
        self._turns.give_back(lane, who)
        if not self._turns:
            return
        # Whoever had as many places as it may have can go on with any model.
        of_all = lane.bounded and self._accounts.named(who).allowed.running
        for each in list(self._supervisors.values()) if of_all else [supervisor]:
            self._see_to(each)

    def _see_to(self, supervisor: Supervisor) -> None:
        """Lets as many go to the engine as it has places, if it is ready; ends their waiting if it is in vain."""
        client, model = supervisor.client, supervisor.name
        for lane in (Lane(model), Lane(model, bounded=False)):
            while client is not None and (waiting := self._turns.next(lane)):
                waiting.let_in(client)
            if client is None and self._turns.is_waited_for(lane):
                supervisor.want()  # which it may not have heard: it was ready then, and had to go since
            if supervisor.is_hopeless:
                for waiting in self._turns.clear(lane):
                    waiting.answer.set_result(not_ready(supervisor))

    async def _watch(self) -> None:
        """Follows the engines for as long as anybody waits."""
        while True:
            seen = self._feed.last
            for supervisor in list(self._supervisors.values()):
                self._see_to(supervisor)
            await self._feed.after(seen)

    def _rest(self) -> None:
        if not self.held and self._watching:
            self._watching.cancel()
            self._watching, self._ranks = None, {}
