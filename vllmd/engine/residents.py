"""The engines that have memory, and those that want it: what `residency` decides is found out here, and carried out.

An engine asks for a *stay* before it takes memory, and gives it back at its end. One task looks at all of them whenever
something has happened, or once a second while somebody waits: how much is free, who waits for whom, who is idle. It
asks a driver once for all of them.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from vllmd.about import about
from vllmd.engine import fitting
from vllmd.engine.causes import Cause
from vllmd.engine.feed import Feed
from vllmd.engine.fit import Answer as Verdicts
from vllmd.engine.residence import Facts, Owner
from vllmd.engine.residency import Answer, Bid, Decision, Resident, Rules, decide, left
from vllmd.engine.stay import Stay, does_not_fit
from vllmd.lifecycle import State, Verdict

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How often memory is looked at while somebody waits for it: nobody tells when it becomes free."""

GATHER_S = 1.0
"""How long a bid that nobody waits for lets those come first that are on their way: vllmd starts them all at once."""

PAUSE_S = 0.05
"""Requests that end one after the other are looked at together."""

FREE_WITHIN_S = 20.0
"""How long memory that others hold is waited for: vLLM would have found out about then."""

LONG_S = 3600.0
"""As good as for ever, for a timer."""

_CONTESTED = "another model gets its memory when the running requests have ended"
_IDLE = "it gives its memory back, as nobody has asked for it for long"
"""What those are told whose requests are held for a moment."""

_NO_ROOM_TO_WAKE = Verdict(Cause.DOES_NOT_FIT, "others have taken the memory that it gave back", retry_after_s=0.0)

_NOBODY_GOES = {
    Answer.HELD: Verdict(
        Cause.DOES_NOT_FIT,
        "the model does not fit beside those in memory, and none of them may be taken out",
        "unload one of those that are loaded by hand, or give each a smaller `gpu_memory_utilization`",
        retry_after_s=0.0,
    ),
    Answer.FULL: Verdict(
        Cause.DOES_NOT_FIT,
        "as many models are in memory as may be, and none of them may be taken out",
        "unload one of those that are loaded by hand, or raise memory.max_models",
        retry_after_s=0.0,
    ),
}


class Traffic(Protocol):
    """The requests (calls.Calls)."""

    def count(self, model: str) -> tuple[int, int]:
        """How many run in its engine, and how many wait for it."""

    def used_at(self, model: str) -> float:
        """When the last one ended, in `time.monotonic`'s seconds; 0 if there was none."""

    async def left(self) -> None:
        """Returns when one has ended."""


class Residents:
    """All stays.

    Args:
        rules: what the administrator says just now.
        feed: changes when an engine's state does.
        traffic: the requests.
        facts: what memory there is, and what is needed.
        patience_s: how long memory that others than engines hold is waited for.
    """

    def __init__(
        self,
        rules: Callable[[], Rules],
        feed: Feed,
        traffic: Traffic,
        facts: Facts = fitting,
        patience_s: float = FREE_WITHIN_S,
    ) -> None:
        self._rules = rules
        self._feed = feed
        self._traffic = traffic
        self._facts = facts
        self._patience_s = patience_s
        self._stays: dict[str, Stay] = {}
        self._count = 0
        self._has_moved = asyncio.Event()

    def stay(self, owner: Owner) -> Stay:
        """A new one, for an engine that is about to begin."""
        self._count += 1
        stay = Stay(owner, f"{owner.name}#{self._count}", self._moved, self._facts)
        self._stays[stay.name] = stay
        return stay

    def _moved(self, stay: Stay) -> None:
        if stay.is_over:
            self._stays.pop(stay.name, None)
        self._has_moved.set()

    async def run(self) -> None:
        """Looks after all of them, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            while True:
                self._has_moved.clear()
                if any(each.is_inheriting for each in self._stays.values()):
                    await self._has_moved.wait()
                    continue
                bidding = [each for each in self._stays.values() if each.is_bidding]
                there = await self._facts.devices({each.device for each in bidding})
                for each in bidding:
                    each.see(there)
                again_at = self._look(time.monotonic())
                await self._wait(min(again_at - time.monotonic(), TICK_S if bidding else math.inf), bool(bidding))

    async def _follow(self) -> None:
        while True:
            await self._feed.after(self._feed.last)
            self._has_moved.set()

    async def _wait(self, seconds: float, minds_traffic: bool) -> None:
        """Until something has happened, or the time is over."""
        works: list[Coroutine[Any, Any, Any]] = [self._has_moved.wait()]
        if minds_traffic:
            works.append(self._traffic.left())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(tasks, timeout=min(max(seconds, PAUSE_S), LONG_S), return_when=asyncio.FIRST_COMPLETED)
            if minds_traffic:
                await asyncio.sleep(PAUSE_S)
        finally:
            for task in tasks:
                task.cancel()

    def _look(self, now: float) -> float:
        """Decides, and does what was decided; returns when to look again."""
        present = [each for each in self._stays.values() if each.is_here]
        bidding = [each for each in self._stays.values() if each.is_bidding and self._is_due(each, now)]
        residents, bids = [self._resident(each, now) for each in present], [self._bid(each, now) for each in bidding]
        decision = decide(bids, residents, self._rules(), now)
        for stay in present:
            self._see_to(stay, decision)
        for stay, bid in zip(bidding, bids, strict=True):
            self._answer(stay, decision.answers[bid.name], left(bid, residents), now)
        return decision.again_at

    def _is_due(self, stay: Stay, now: float) -> bool:
        """Whether it is time to answer a bid."""
        are_all_there = all(each.is_here or each.is_bidding for each in self._stays.values())
        return are_all_there or self._is_wanted(stay, now) or now >= stay.since + GATHER_S

    def _is_wanted(self, stay: Stay, now: float) -> bool:
        """Whether a request waits for it, or its client comes again in a moment, or an administrator waits."""
        owner = stay.owner
        return bool(self._traffic.count(owner.name)[1]) or owner.engine.ordered or now < owner.expected_until

    def _resident(self, stay: Stay, now: float) -> Resident:
        owner, room = stay.owner, stay.room
        state, (running, waiting) = owner.engine.state, self._traffic.count(owner.name)
        if state is State.READY:
            stay.ready_at = now if stay.ready_at is None else stay.ready_at
        elif state is not State.UNHEALTHY:
            stay.ready_at = None
        return Resident(
            stay.name,
            frozenset(room.names if room else ()),
            stay.claim,
            state,
            running=running,
            waiting=waiting,
            ready_at=now if stay.ready_at is None else stay.ready_at,
            used_at=self._traffic.used_at(owner.name),
            stays=owner.plan.model.load == "manual",
            idle_unload_s=owner.plan.model.idle_unload_s,
            is_gpu=room is not None and room.device == fitting.GPU,
        )

    def _bid(self, stay: Stay, now: float) -> Bid:
        owner, room = stay.owner, stay.room
        return Bid(
            stay.name,
            frozenset(room.names if room else ()),
            stay.wants.claim,
            stay.wants.entry,
            stay.wants.least,
            room.total if room else 0,
            room.free + stay.claim if room else 0,
            stay.since,
            is_wanted=self._is_wanted(stay, now),
            yields=owner.plan.model.load != "manual",
            is_gpu=room is not None and room.device == fitting.GPU,
        )

    def _see_to(self, stay: Stay, decision: Decision) -> None:
        """Holds the requests of an engine that has to go, and tells it to."""
        if stay.name in decision.closed:
            stay.shut_out(_IDLE if decision.leave.get(stay.name) == "" else _CONTESTED)
            if stay.name in decision.leave and not stay.is_told_to_go:
                self._turn_out(stay, decision.leave[stay.name])
        elif not stay.is_told_to_go:
            stay.let_in()

    def _turn_out(self, stay: Stay, heir: str) -> None:
        name, why = stay.owner.name, f"for {_model(heir)}" if heir else "as nobody has asked for it for long"
        log.info("%s: gives its memory back, %s", name, why, extra=about(model=name))
        stay.turn_out(stay.sleep_level)

    def _answer(self, stay: Stay, answer: Answer, free: int, now: float) -> None:
        match answer:
            case Answer.GRANTED:
                stay.grant()
            case Answer.YIELDS:
                log.info("%s: has no room beside the others; it comes when somebody asks for it", stay.owner.name)
                stay.withdraw()
            case Answer.SHORT:
                self._try(stay, free, now)
            case Answer.HELD | Answer.FULL:
                self._be_patient(stay, _NOBODY_GOES[answer], now)
            case Answer.WAITS:
                stay.short_since = None

    def _try(self, stay: Stay, free: int, now: float) -> None:
        """There is too little for comfort, and nobody goes for it: what may be enough is tried. But never by one that
        wakes: it would be ruined."""
        if stay.is_asleep:
            self._be_patient(stay, _NO_ROOM_TO_WAKE, now)
            return
        fit = stay.fit(free)
        if fit is None or fit.verdict != Verdicts.NO or stay.owner.plan.model.fit != "refuse":
            stay.grant()
        else:
            self._be_patient(stay, does_not_fit(fit), now)

    def _be_patient(self, stay: Stay, verdict: Verdict, now: float) -> None:
        """Refuses a bid only after a while, since others than engines may give memory back."""
        if stay.short_since is None:
            stay.short_since = now
            name = stay.owner.name
            log.info("%s: memory is waited for: %s", name, verdict.message, extra=about(model=name))
        if now >= stay.short_since + self._patience_s:
            stay.refuse(verdict)


def _model(name: str) -> str:
    return name.rpartition("#")[0]
