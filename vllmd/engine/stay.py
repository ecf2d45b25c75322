"""One engine's time in memory: what it needs, what it has, and how it waits for what it wants.

Nothing is decided here: `residency` does, and `residents` carries it out.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vllmd.about import about
from vllmd.engine import fitting
from vllmd.engine.causes import Cause
from vllmd.engine.fit import Answer, Need, Question, Room, gib, judge, need
from vllmd.engine.fitting import Devices
from vllmd.engine.plan import Plan
from vllmd.engine.residence import Facts, Owner
from vllmd.engine.tasks import start
from vllmd.errors import SleepError
from vllmd.lifecycle import Evict, Verdict
from vllmd.provisions import Fit

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How often a wait for memory is a sign of life."""

FREED_WITHIN_S = 5.0
"""How long a driver may take to count what an engine has given back."""

PINNED = 2.0
"""Main memory that weights may take at level 1, as a multiple of their size: measured was 1.86, since PyTorch rounds
pinned blocks up to a power of two. It keeps them when the engine is awake again."""

MARGIN = 1 << 30
"""What has to be free for a wake beside what was given back: an engine that runs out of memory over it is ruined."""

FREED_PART = 0.5
"""The part of what an engine has claimed that has to be free when it sleeps: less is no sleep."""

_WITHDRAWN = Verdict("not wanted", "nobody waits for it any more")


class Stay:
    """One engine's time in memory: from the wish to start until nothing of it is alive.

    Args:
        owner: its supervisor.
        name: tells it from every other.
        moved: is called whenever something has changed.
        facts: what there is, and what is needed.
    """

    def __init__(self, owner: Owner, name: str, moved: Callable[["Stay"], None], facts: Facts = fitting) -> None:
        self.owner = owner
        self.name = name
        self.need = Need()
        self.claim = 0
        """The bytes of each device that it has now, or is about to take."""
        self.is_here = False
        """Whether it has memory, or may take it now."""
        self.is_inheriting = False
        """Whether it has memory of which nobody knows yet how much."""
        self.is_over = False
        self.device = ""
        """What its environment's vLLM serves from (`fitting.device_of`)."""
        self.since = 0.0
        self.short_since: float | None = None
        self.ready_at: float | None = None
        self._told_in: int | None = None
        self._freed: int | None = None
        self._is_pinned = False
        self._moved = moved
        self._facts = facts
        self._answer: asyncio.Future[Verdict | None] | None = None
        self._question: Question | None = None
        self._holding: ExitStack | None = None
        self._learning: asyncio.Task[None] | None = None
        self._is_known = asyncio.Event()
        """It was found out what it needs, and what it has."""

    # ── what a generation calls ──

    async def begin(self, plan: Plan, root: Path, tell: Callable[[], None]) -> Verdict | None:
        """Waits until there is room; returns why there will be none.

        Args:
            root: the environment that will serve the model.
            tell: called once a second meanwhile.
        """
        await self._find_out(plan, root)
        self._is_known.set()
        if refusal := self._impossible():
            return refusal
        return await self._bid(tell)

    def inherit(self, plan: Plan, root: Path | None, *, is_asleep: bool) -> None:
        """It is in memory already, started by an earlier vllmd; how much it has is found out while it serves on."""
        self.is_here, self._is_pinned, self._freed = True, is_asleep, 0 if is_asleep else None
        self.is_inheriting, self._learning = True, start(self._learn(plan, root or Path()))

    async def _learn(self, plan: Plan, root: Path) -> None:
        try:
            await self._find_out(plan, root)
            if self.is_asleep:
                self._freed = self.need.claim
            else:
                self.claim = self.need.claim
        finally:  # else all others would wait for ever
            self.is_inheriting = False
            self._is_known.set()
            self._moved(self)

    async def rest(self, fall_asleep: Callable[[], Awaitable[None]], within_s: float = FREED_WITHIN_S) -> None:
        """Puts the engine to sleep, and sees to it that its memory becomes free.

        Args:
            fall_asleep: returns when the engine says that it sleeps.
            within_s: how long the driver may then take to count its memory as free.

        Raises:
            SleepError: it does not, or nobody can tell.
        """
        await self._is_known.wait()
        before = await self._free()
        await fall_asleep()
        freed = self._freed = await self._watch(before, within_s)
        self._is_pinned = True
        self.claim = max(0, self.need.claim - freed)
        log.info("%s: asleep, %s are free for others", self.owner.name, gib(freed), extra=about(model=self.owner.name))
        self._moved(self)

    async def resume(self, tell: Callable[[], None]) -> bool:
        """Waits until there is room for an engine that wakes. It takes back what it gave, and asks for nothing more.

        Returns:
            Whether it may wake; not if nobody waits for it any more.

        Raises:
            SleepError: there will be no room.
        """
        await self._is_known.wait()  # who wakes at once was adopted a moment ago
        await self._look()  # what it saw last may be hours old
        self.is_here = False
        self.let_in()
        try:
            refusal = await self._bid(tell)
            if refusal and refusal is not _WITHDRAWN:
                raise SleepError(refusal.message, refusal.hint)
            return refusal is None
        finally:
            self.is_here = True

    def end(self) -> None:
        """Nothing of the engine is alive."""
        self.is_here, self.is_inheriting, self.claim, self.is_over = False, False, 0, True
        if self._learning:
            self._learning.cancel()
        self.let_in()
        self._moved(self)

    # ── what the residents ask and do ──

    @property
    def is_bidding(self) -> bool:
        """Whether it waits for an answer."""
        return self._answer is not None and not self._answer.done()

    def grant(self) -> None:
        """It may take what it needs."""
        assert self._answer is not None, "it has made a bid"
        if not self.is_asleep:
            self._warn()
        self.is_here, self.claim, self._freed = True, self.wants.claim, None
        self._answer.set_result(None)

    def refuse(self, verdict: Verdict) -> None:
        """There will be no room for it."""
        assert self._answer is not None, "it has made a bid"
        self._answer.set_result(verdict)

    def withdraw(self) -> None:
        """Nobody waits for it: it sleeps on, or comes when somebody asks for it."""
        if self.is_asleep:
            self.refuse(_WITHDRAWN)
        else:
            self.turn_out()

    @property
    def can_sleep(self) -> bool:
        """Whether its engine was started with sleep mode: vLLM has none on a CPU, and nobody could see it there."""
        return self.device == fitting.GPU and bool(self.owner.plan.model.sleep_level)

    @property
    def is_asleep(self) -> bool:
        """Whether it has given its memory back for now."""
        return self._freed is not None

    @property
    def wants(self) -> Need:
        """What it bids for: all that it needs; or when it wakes, what it gave back."""
        if self._freed is None:
            return self.need
        return Need(claim=self.claim + self._freed, entry=self.claim + self._freed + MARGIN)

    @property
    def sleep_level(self) -> int:
        """At which it can be put to sleep now; 0: it has to be unloaded."""
        level = self.owner.plan.model.sleep_level if self.can_sleep else 0
        if level != 1 or self._is_pinned:
            return level
        fit, host = self.fit(self.room.free) if self.room else None, self._facts.host()
        pinned = int(PINNED * fit.weights_bytes * fit.devices) if fit and fit.weights_bytes else 0
        if host is None or host.free >= pinned:
            return level
        log.warning(
            "%s: is unloaded and not put to sleep: its weights would take up to %s of main memory, and %s are free",
            self.owner.name,
            gib(pinned),
            gib(host.free),
            extra=about(model=self.owner.name),
        )
        return 0

    @property
    def room(self) -> Room | None:
        """The memory of its devices, as it was looked at last."""
        room = self._question.room if self._question else None
        return room if isinstance(room, Room) else None

    def see(self, there: Devices) -> None:
        """Takes note of the memory of its devices, of all that were looked at."""
        if self._question is not None:
            room = self._facts.room_of(self.owner.plan, self.device, self._question.wants, there)
            self._question = replace(self._question, room=room)

    def _warn(self) -> None:
        fit, name = self.fit(self.room.free) if self.room else None, self.owner.name
        if fit and fit.verdict in (Answer.NO, Answer.TIGHT) and self.owner.plan.model.fit != "off":
            said = "will not fit" if fit.verdict == Answer.NO else "may not fit"
            log.warning("%s: the model %s: %s (%s)", name, said, fit.reason, fit.hint, extra=about(model=name))

    def fit(self, free: int) -> Fit | None:
        """Whether it fits, if so much is free; None where that cannot be judged."""
        room = self.room
        if self._question is None or room is None:
            return None
        try:
            return judge(replace(self._question, room=replace(room, free=free)))
        except Exception as error:
            self._cannot_judge(error)
            return None

    def shut_out(self, why: str) -> None:
        """Holds its new requests."""
        if self._holding is None:
            self._holding = ExitStack()
            self._holding.enter_context(self.owner.holding(why))

    def turn_out(self, level: int = 0) -> None:
        """Tells the engine to go.

        Args:
            level: of sleep; 0: it ends.
        """
        self._told_in = self.owner.engine.epoch
        self.owner.post(Evict(level))

    @property
    def is_told_to_go(self) -> bool:
        """Whether it was told to go, and has not begun to."""
        return self._told_in == self.owner.engine.epoch

    def let_in(self) -> None:
        """Holds them no longer."""
        holding, self._holding = self._holding, None
        if holding:
            holding.close()

    # ── inside ──

    async def _find_out(self, plan: Plan, root: Path) -> None:
        """What it needs; nothing is known of a model whose files are nonsense: what cannot be judged is started."""
        self.device = await asyncio.to_thread(self._facts.device_of, plan, root)
        try:
            self._question = await self._facts.question_of(plan, root)
            self.need = need(self._question) if plan.model.fit != "off" else Need()
        except Exception as error:
            self._cannot_judge(error)

    def _cannot_judge(self, error: Exception) -> None:
        """Whatever stands in a model's files: what cannot be judged is started."""
        name = self.owner.name
        log.warning("%s: whether the model fits cannot be judged: %s", name, error, extra=about(model=name))

    def _impossible(self) -> Verdict | None:
        """Why it cannot start, whoever else gives memory back."""
        fit = self.fit(self.room.total) if self.room else None
        is_no = fit is not None and fit.verdict == Answer.NO and self.owner.plan.model.fit == "refuse"
        return does_not_fit(fit) if fit and is_no else None

    async def _bid(self, tell: Callable[[], None]) -> Verdict | None:
        self._answer, self.since = asyncio.get_running_loop().create_future(), time.monotonic()
        self.short_since = None
        self._moved(self)
        try:
            while True:
                await asyncio.wait([self._answer], timeout=TICK_S)
                if self._answer.done():
                    return self._answer.result()
                tell()
        finally:
            self._answer = None
            self._moved(self)

    async def _look(self) -> None:
        self.see(await self._facts.devices({self.device}))

    async def _free(self) -> int:
        await self._look()
        if self.room is None:
            raise SleepError("nobody says how much memory is free, so that sleep could not be told from a lie")
        return self.room.free

    async def _watch(self, before: int, within_s: float) -> int:
        deadline = time.monotonic() + within_s
        while (freed := await self._free() - before) < max(1, FREED_PART * self.need.claim):
            if time.monotonic() > deadline:
                raise SleepError(f"the engine says that it sleeps, and {gib(max(0, freed))} became free")
            await asyncio.sleep(within_s / 20)
        return min(freed, self.need.claim or freed)  # others may have given memory back meanwhile


def does_not_fit(fit: Fit) -> Verdict:
    """Why an engine is not to be started."""
    message, passes_s = f"the model does not fit: {fit.reason}", None if fit.permanent else 0.0
    return Verdict(Cause.DOES_NOT_FIT, message, fit.hint, fit.permanent, retry_after_s=passes_s)


class Residence(Protocol):
    """Where engines stay (residents.Residents)."""

    def stay(self, owner: Owner) -> Stay:
        """A stay, for an engine that is about to begin."""


class Unbounded:
    """Memory without end: everybody gets what they want."""

    def stay(self, owner: Owner) -> Stay:
        """One that is granted at once."""
        return Stay(owner, owner.name, lambda stay: stay.grant() if stay.is_bidding else None)


UNBOUNDED = Unbounded()
