"""Engines ask for memory, wait for it, are told why there is none, and are made to give it back."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import virtual_models
from waiting import until

from vllmd.engine.causes import Cause
from vllmd.engine.checkpoint import Part, Weights
from vllmd.engine.feed import Feed
from vllmd.engine.fit import GIB, Question, Room
from vllmd.engine.fitting import Devices
from vllmd.engine.gpu import Card
from vllmd.engine.memory import Host
from vllmd.engine.plan import Plan
from vllmd.engine.residency import Rules
from vllmd.engine.residents import Residents
from vllmd.engine.shape import Shape, Unknown, read_shape
from vllmd.engine.stay import Stay
from vllmd.engine.wants import Wants
from vllmd.errors import SleepError
from vllmd.lifecycle import Engine, Event, Evict, State
from vllmd.sections import EnvironmentSettings, Model, Paths
from vllmd.statuses import ModelStatus

SHAPE = read_shape(virtual_models.CONFIG)


class Owner:
    """A supervisor that does as it is told, and keeps what it was told."""

    def __init__(self, name: str, **model: object) -> None:
        about = Model("m", **model)  # type: ignore[arg-type]
        self.plan = Plan(name, about, EnvironmentSettings(), Paths(state="/s", runtime="/r", cache="/c"), {})
        self.engine = Engine(State.STARTING)
        self.expected_until = 0.0
        self.told: list[Event] = []
        self.holds = 0
        self.stay: Stay | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    def post(self, event: Event) -> None:
        self.told.append(event)

    @contextmanager
    def holding(self, why: str) -> Iterator[None]:
        self.holds += 1
        yield
        self.holds -= 1


class World:
    """One GPU, and the requests."""

    def __init__(self, patience_s: float) -> None:
        self.total = self.free = 80 * GIB
        self.weights, self.main_memory = 10, 100
        self.running: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.used: dict[str, float] = {}
        self.device = "GPU"
        self.broken = self.odd = False
        self.unread: set[str] = set()
        self.feed = Feed()
        self.rules = Rules()
        self.asked = self.decided = 0
        """How often the driver was asked, and how often a round has ended."""
        self._left = asyncio.Event()
        self.residents = Residents(self._decides, self.feed, self, self, patience_s)

    def _decides(self) -> Rules:
        self.decided += 1
        return self.rules

    # ── what files and devices say ──

    def device_of(self, plan: Plan, root: Path | None) -> str:
        return self.device

    async def question_of(self, plan: Plan, root: Path | None) -> Question:
        await until(lambda: plan.name not in self.unread, "its files to be readable")
        if self.broken:
            raise ZeroDivisionError("layers of no width")
        wants = Wants(share=float(str(plan.model.flag("gpu-memory-utilization") or 0.5)))
        assert isinstance(SHAPE, Shape)
        weights = Weights(Part(self.weights * GIB // 2), Part(self.weights * GIB // 2))
        wants = replace(wants, tensor=0) if self.odd else wants
        there = await self.devices({self.device})
        return Question(plan.name, weights, SHAPE, self.room_of(plan, self.device, wants, there), wants)

    async def devices(self, kinds: Collection[str]) -> Devices:
        self.asked += 1
        return Devices((Card("GPU-0", self.total, self.free),))

    def room_of(self, plan: Plan, device: str, wants: Wants, there: Devices) -> Room | Unknown:
        (card,) = there.cards
        return Room(device, card.total, card.free, (card.uuid,)) if device else Unknown("nobody knows")

    # ── the requests ──

    def count(self, model: str) -> tuple[int, int]:
        return self.running.get(model, 0), self.waiting.get(model, 0)

    def used_at(self, model: str) -> float:
        return self.used.get(model, 0.0)

    def host(self) -> Host:
        return Host(self.main_memory * GIB, self.main_memory * GIB)

    async def left(self) -> None:
        await self._left.wait()

    def changed(self) -> None:
        """Whatever has happened is looked at."""
        self._left.set()
        self._left = asyncio.Event()
        self.feed.publish(ModelStatus("any"))

    # ── engines ──

    async def loaded(self, name: str, share: float = 0.5, **model: object) -> Owner:
        """An engine that is ready, and holds its share."""
        owner = Owner(name, args={"gpu-memory-utilization": share}, **model)
        owner.stay = self.residents.stay(owner)
        assert await self.begin(owner) is None
        self.free -= owner.stay.claim
        self.turns(owner, State.READY)
        return owner

    async def contested(self, running: int = 0) -> "tuple[Owner, Owner, asyncio.Task[object]]":
        """`a` has more than half of the memory, and requests that run; `b` wants as much, and somebody waits for it."""
        a, b = await self.loaded("a", 0.6), Owner("b", args={"gpu-memory-utilization": 0.6})
        self.running["a"], self.waiting["b"] = running, 1
        return a, b, self.bids(b)

    def bids(self, owner: Owner) -> "asyncio.Task[object]":
        owner.stay = self.residents.stay(owner)
        return asyncio.create_task(self.begin(owner))

    def inherits(self, owner: Owner, state: State) -> None:
        """An engine that an earlier vllmd has left behind."""
        owner.stay = self.residents.stay(owner)
        self.turns(owner, state)
        owner.stay.inherit(owner.plan, Path(), is_asleep=state is State.ASLEEP)

    async def begin(self, owner: Owner) -> object:
        assert owner.stay is not None
        return await asyncio.wait_for(owner.stay.begin(owner.plan, Path(), lambda: None), 30)

    def turns(self, owner: Owner, state: State) -> None:
        owner.engine = replace(owner.engine, state=state, epoch=owner.engine.epoch + 1)
        self.changed()


@asynccontextmanager
async def world(patience_s: float = 20) -> AsyncIterator[World]:
    there = World(patience_s)
    task = asyncio.create_task(there.residents.run())
    try:
        yield there
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


async def test_whoever_waits_for_a_model_has_the_idle_one_make_room_for_it() -> None:
    async with world() as there:
        a, b, start = await there.contested()
        await until(lambda: bool(a.told), "a to be told to go")
        assert a.told == [Evict(0)]
        assert a.holds == 1, "and no new request gets to it meanwhile"
        there.turns(a, State.STOPPING)
        await until(lambda: not a.holds, "its requests to be let on: it is known to be going")
        assert not start.done()
        there.free = there.total
        assert a.stay is not None
        a.stay.end()
        assert await start is None
        assert b.stay is not None
        assert b.stay.claim == pytest.approx(0.6 * there.total, abs=1)


async def test_the_driver_is_asked_once_for_all_who_wait() -> None:
    async with world() as there:
        _, _, start = await there.contested(running=1)
        owners = [Owner(f"m{number}", args={"gpu-memory-utilization": 0.6}) for number in range(20)]
        there.waiting.update({each.name: 1 for each in owners})
        starts = [start, *map(there.bids, owners)]
        await until(lambda: all(each.stay and each.stay.is_bidding for each in owners), "all of them to wait")
        asked, decided = there.asked, there.decided
        await until(lambda: there.decided >= decided + 3, "three rounds")
        assert there.asked - asked <= there.decided - decided + 1
        assert not any(each.done() for each in starts)
        for each in starts:
            each.cancel()


async def test_requests_that_run_are_waited_for_and_new_ones_held() -> None:
    async with world() as there:
        there.rules = Rules(turn_s=0)
        a, _, start = await there.contested(running=1)
        await until(lambda: a.holds == 1, "a to take no more requests")
        assert a.told == []
        there.running["a"] = 0
        there.changed()
        await until(lambda: a.told == [Evict(0)], "a to be told to go")
        start.cancel()


async def test_who_need_not_go_any_more_serves_on() -> None:
    async with world() as there:
        there.rules = Rules(turn_s=0)
        a, b, start = await there.contested(running=1)
        await until(lambda: a.holds == 1, "a to take no more requests")
        there.waiting["b"] = 0  # its client has left
        there.changed()
        await until(lambda: a.holds == 0, "a to take requests again")
        assert a.told == []
        await until(lambda: b.told == [Evict()], "nobody waits for b: it is loaded when somebody does")
        start.cancel()


async def test_a_hold_lasts_until_the_engine_has_heard_that_it_goes() -> None:
    """Else a request could come to it in the moment between, and be cut off."""
    async with world() as there:
        a, _, start = await there.contested()
        await until(lambda: bool(a.told), "a to be told to go")
        there.waiting["b"] = 0
        start.cancel()
        for _ in range(5):
            there.changed()
            await asyncio.sleep(0.1)
        assert (a.holds, a.told) == (1, [Evict(0)])
        there.turns(a, State.STOPPING)
        await until(lambda: a.holds == 0, "a to be going")


async def test_an_engine_that_can_sleep_sleeps_and_holds_what_it_did_not_give_back() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.6, sleep_level=1)
        b = Owner("b", args={"gpu-memory-utilization": 0.6})
        there.waiting["b"] = 1
        start = there.bids(b)
        await until(lambda: a.told == [Evict(1)], "a to be put to sleep")
        there.turns(a, State.DOZING)
        assert a.stay is not None
        claimed = a.stay.claim

        async def fall_asleep() -> None:
            there.free += claimed - GIB

        await a.stay.rest(fall_asleep)
        assert a.stay.claim == GIB
        there.turns(a, State.ASLEEP)
        assert await start is None


async def test_weights_for_which_main_memory_has_no_room_are_not_put_there() -> None:
    async with world() as there:
        there.main_memory = 19  # of which 10 GiB of weights may take twice as much
        for level, told in ((1, 0), (2, 2)):
            a, b = await there.loaded("a", 0.6, sleep_level=level), Owner("b", args={"gpu-memory-utilization": 0.6})
            there.waiting["b"] = 1
            start = there.bids(b)
            await until(lambda a=a, told=told: a.told == [Evict(told)], "a to be told to go")  # type: ignore[misc]
            start.cancel()
            assert a.stay is not None
            a.stay.end()
            there.free, there.waiting["b"] = there.total, 0


async def test_sleep_that_frees_nothing_is_none() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.6, sleep_level=1)
        assert a.stay is not None

        async def lie() -> None:
            there.free += GIB

        with pytest.raises(SleepError, match=r"says that it sleeps, and 1\.00 GiB became free"):
            await a.stay.rest(lie, 0.2)
        there.device = ""
        with pytest.raises(SleepError, match="nobody says"):
            await (await there.loaded("b")).stay.rest(lie, 0.2)  # type: ignore[union-attr]


async def test_memory_that_others_give_back_meanwhile_is_not_taken_for_the_sleepers() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.5, sleep_level=1)
        assert a.stay is not None
        claimed = a.stay.claim

        async def fall_asleep() -> None:
            there.free += claimed + 5 * GIB

        there.free -= 5 * GIB
        await a.stay.rest(fall_asleep)
        assert (a.stay.claim, a.stay.wants.claim) == (0, claimed), (
            "or it would ask for more than it needs when it wakes"
        )


async def test_what_nobody_waits_for_lets_those_come_first_that_are_on_their_way() -> None:
    async with world() as there:
        first, other = Owner("first", default=True), Owner("other", args={"gpu-memory-utilization": 0.9})
        first.engine = replace(first.engine, ordered=True)
        first.stay = there.residents.stay(first)  # which downloads still
        late = there.bids(other)
        await asyncio.sleep(0.1)
        assert not late.done()
        assert await there.begin(first) is None
        late.cancel()
    async with world() as there:
        there.residents.stay(Owner("never"))
        assert await there.bids(Owner("other")) is None, "but not for ever"


async def test_a_wake_that_nobody_waits_for_any_more_is_none() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.6, sleep_level=1)
        assert a.stay is not None
        claimed = a.stay.claim

        async def fall_asleep() -> None:
            there.free += claimed - GIB

        await a.stay.rest(fall_asleep)
        there.turns(a, State.ASLEEP)
        b = await there.loaded("b", 0.6)
        there.running["b"] = there.waiting["a"] = 1
        there.turns(a, State.STARTING)
        waking = asyncio.create_task(a.stay.resume(lambda: None))
        await until(lambda: a.stay.is_bidding, "a to bid")  # type: ignore[union-attr]
        there.waiting["a"] = 0
        there.changed()
        assert await asyncio.wait_for(waking, 30) is False
        assert (a.stay.is_asleep, a.stay.is_here, a.told, b.told) == (True, True, [], [])


async def test_a_sleeper_waits_for_its_memory_like_any_start() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.6, sleep_level=1)
        assert a.stay is not None
        a.stay.claim, there.free = 0, there.total
        there.turns(a, State.ASLEEP)
        b = await there.loaded("b", 0.6)
        there.waiting["a"] = 1
        there.turns(a, State.STARTING)
        waking = asyncio.create_task(a.stay.resume(lambda: None))
        await until(lambda: bool(b.told), "b to make room")
        assert not waking.done()
        there.free = there.total
        assert b.stay is not None
        b.stay.end()
        await waking
        assert a.stay.claim == pytest.approx(0.6 * there.total, abs=1)


async def test_who_wakes_before_it_is_known_what_an_earlier_vllmd_left_behind_waits_for_that() -> None:
    """Woken without room it would be ruined, and a bid of which nobody knows the size would be granted at once."""
    async with world() as there:
        a, b = (Owner(name, args={"gpu-memory-utilization": 0.6}, sleep_level=1) for name in "ab")
        there.free = there.total - int(0.6 * there.total)
        there.unread = {"a", "b"}
        there.inherits(a, State.ASLEEP)
        there.inherits(b, State.READY)
        there.waiting["a"] = 1
        there.turns(a, State.STARTING)
        assert a.stay is not None
        assert b.stay is not None
        waking = asyncio.create_task(a.stay.resume(lambda: None))
        await asyncio.sleep(0)
        there.unread.clear()
        await until(lambda: bool(b.told), "b to make room")
        assert not waking.done()
        there.free = there.total
        b.stay.end()
        assert await asyncio.wait_for(waking, 30)
        assert a.stay.claim == pytest.approx(0.6 * there.total, abs=1)


async def test_a_start_waits_until_it_is_known_what_an_earlier_vllmd_left_behind() -> None:
    """Else there is too little for it, and nobody who could go."""
    async with world() as there:
        a, b = (Owner(name, args={"gpu-memory-utilization": 0.6}, fit="warn") for name in "ab")
        there.free, there.waiting["b"] = there.total - int(0.6 * there.total), 1
        there.unread = {"a"}
        there.inherits(a, State.READY)
        start = there.bids(b)
        await until(lambda: b.stay and b.stay.is_bidding, "b to want memory")
        there.unread.clear()
        await until(lambda: bool(a.told), "a to make room")
        assert not start.done()
        start.cancel()


async def test_an_engine_is_never_woken_where_there_is_too_little_for_it() -> None:
    """It would run out of memory over it, and be ruined: better a fresh one, when there is room again."""
    async with world(patience_s=0.3) as there:
        a = await there.loaded("a", 0.6, sleep_level=1)
        assert a.stay is not None

        async def fall_asleep() -> None:
            there.free = there.total

        await a.stay.rest(fall_asleep)
        there.turns(a, State.ASLEEP)
        there.free = 20 * GIB  # somebody who is no engine of ours has taken the rest
        there.waiting["a"] = 1
        there.turns(a, State.STARTING)
        with pytest.raises(SleepError, match="others have taken the memory"):
            await a.stay.resume(lambda: None)


async def test_what_can_never_fit_is_refused_at_once_and_moves_nobody() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.6)
        there.weights, there.waiting["b"] = 100, 1
        refusal = await there.bids(Owner("b"))
        assert getattr(refusal, "permanent", None) is True
        assert getattr(refusal, "cause", "") == Cause.DOES_NOT_FIT
        assert a.told == []


async def test_who_does_not_believe_the_sum_may_say_so(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as there:
        there.weights = 100
        assert await there.bids(Owner("a", fit="warn")) is None
        assert "a: the model will not fit: the weights take 100.00 GiB" in caplog.text
    async with world() as there:
        there.weights, there.free = 100, 0
        assert await there.bids(Owner("a", fit="off")) is None


async def test_memory_that_others_hold_is_waited_for_and_then_refused() -> None:
    async with world(patience_s=0.5) as there:
        there.free = 5 * GIB
        refusal = await there.bids(Owner("a"))
        assert getattr(refusal, "permanent", None) is False
        assert "10.00 GiB" in getattr(refusal, "message", "")
        start = there.bids(Owner("a"))
        there.free = there.total
        assert await start is None


async def test_what_may_be_enough_is_tried_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as there:
        there.free = 30 * GIB
        assert await there.bids(Owner("a")) is None
        assert "a: the model may not fit: the engine asks for 40.00 GiB" in caplog.text


async def test_a_mistake_in_the_sum_keeps_no_engine_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as there:
        there.broken = True
        assert await there.bids(Owner("a")) is None
        assert "layers of no width" in caplog.text


async def test_a_mistake_in_the_sum_ends_nobody_s_care_for_memory() -> None:
    async with world() as there:
        there.odd, odd = True, Owner("odd")
        assert await there.bids(odd) is None
        assert odd.stay is not None
        odd.stay.end()
        there.odd = False
        await there.loaded("a", 0.3)


async def test_more_models_than_may_be_are_refused_where_those_that_are_there_stay() -> None:
    async with world(patience_s=0.2) as there:
        there.rules = Rules(max_models=1)
        a = await there.loaded("a", 0.3, load="manual")
        there.waiting["b"] = 1
        assert "memory.max_models" in getattr(await there.bids(Owner("b")), "hint", "")
        assert a.told == []


async def test_an_idle_model_goes_by_itself_and_one_that_is_used_does_not() -> None:
    async with world() as there:
        a = await there.loaded("a", 0.3, idle_unload_s=0.3)
        b = await there.loaded("b", 0.3, idle_unload_s=0.3)
        there.running["b"] = 1
        await until(lambda: a.told == [Evict(0)], "a to go")
        assert b.told == []
