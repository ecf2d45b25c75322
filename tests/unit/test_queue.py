"""The queue on an engine that is none: no place is lost or given twice, whoever leaves in whichever moment."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmd import sections
from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.plan import Plan
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineFailed, NotReady, Overloaded, TooMany, Unavailable
from vllmd.lifecycle import Engine, Policy, State, Verdict
from vllmd.limits import Allowance, Limits
from vllmd.sections import EnvironmentSettings, Model, Paths
from vllmd.server.accounts import Accounts
from vllmd.server.calls import Call
from vllmd.server.queue import Queue, places
from vllmd.server.refusals import retry_after_s
from vllmd.statuses import ModelStatus

CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
PLACES = 2
SETTLED = 30
"""Turns of the loop in which everything has happened that needs no clock."""


class Stub(Supervisor):
    """A supervisor without an engine, whose state is what it is told."""

    def __init__(self, feed: Feed, state: State = State.READY) -> None:
        super().__init__(Plan("m", Model("m"), EnvironmentSettings(), Paths(), {}), Policy(), feed)
        self._client = EngineClient(Path("/nonexistent"))
        self.eta_s: int | None = None
        self.put_off_s: float | None = None
        self.be(state)

    def be(self, state: State) -> None:
        verdict = Verdict("cause", "it broke") if state is State.FAILED else None
        self.engine = Engine(state=state, verdict=verdict)
        self._publish()

    @property
    def status(self) -> ModelStatus:
        return ModelStatus("m", state=self.engine.state.value, eta_s=self.eta_s)

    @property
    def pause_s(self) -> float | None:
        return self.put_off_s


class Bench:
    """A queue, and calls that run until they are ended."""

    def __init__(self, state: State = State.READY, limits: Limits | None = None, **queue: Any) -> None:
        self.feed = Feed()
        self.supervisor = Stub(self.feed, state)
        self.accounts = Accounts(limits)
        self.queue = Queue(sections.Queue(**queue), self.feed, {"m": PLACES}, self.accounts)
        self.running: dict[Call, asyncio.Event] = {}
        self.tasks: dict[Call, asyncio.Task[None]] = {}
        self.order: list[str] = []
        self.said: list[str] = []

    def ask(
        self, who: str, path: str = CHAT, *, returning: bool = False, stream: bool = False, may_wait: bool = True
    ) -> Call:
        call = Call(f"{who}{len(self.tasks)}", who, "m", path, b"{}", {}, stream=stream, may_wait=may_wait)
        call.sent_at = 0.0 if returning else None
        self.again(call)
        return call

    def again(self, call: Call) -> None:
        self.tasks[call] = asyncio.create_task(self._serve(call))

    async def _serve(self, call: Call) -> None:
        async with self.queue.turn(call, self.supervisor, self._tell) as client:
            assert client is self.supervisor._client
            assert not call.held
            self.running[call] = asyncio.Event()
            self.order.append(call.id)
            try:
                assert self.taken <= PLACES, "a place was given twice"
                await self.running[call].wait()
            finally:
                del self.running[call]

    async def _tell(self, sentence: str) -> None:
        self.said.append(sentence)

    @property
    def taken(self) -> int:
        return sum(call.path != TOKENIZE for call in self.running)

    def end(self, call: Call) -> None:
        self.running[call].set()

    async def outcome(self, call: Call) -> Unavailable | None:
        async with asyncio.timeout(30):
            await asyncio.wait([self.tasks[call]])
        error = self.tasks[call].exception()
        assert error is None or isinstance(error, Unavailable), error
        return error

    async def close(self) -> None:
        """Ends everything, and sees that all places are there again, and that nothing is left over."""
        self.supervisor.be(State.READY)
        await settled()
        while self.running or self.queue.held:
            for event in self.running.values():
                event.set()
            await settled()
        outcomes = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert all(isinstance(each, Unavailable | asyncio.CancelledError | None) for each in outcomes), outcomes
        again = [self.ask(str(number)) for number in range(PLACES + 1)]
        await settled()
        assert [call in self.running for call in again] == [True] * PLACES + [False], "a place was lost"
        for call in again:
            self.tasks[call].cancel()
        await asyncio.wait([self.tasks[call] for call in again])
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody waits, and so nobody watches"


@asynccontextmanager
async def bench(state: State = State.READY, limits: Limits | None = None, **queue: Any) -> AsyncIterator[Bench]:
    made = Bench(state, limits, **queue)
    yield made
    await made.close()


async def settled(ticks: int = SETTLED) -> None:
    for _ in range(ticks):
        await asyncio.sleep(0)


UNEQUAL = Limits(identities={"a": Allowance(running=1), "b": Allowance(running=1, held=2)})

# ── whatever happens ──

people = st.sampled_from("abc")
indexes = st.integers(0, 20)
steps = st.one_of(
    st.tuples(st.just("ask"), people, st.booleans(), st.sampled_from((CHAT, CHAT, CHAT, TOKENIZE))),
    st.tuples(st.just("leave"), indexes),
    st.tuples(st.just("end"), indexes),
    st.tuples(st.just("be"), st.sampled_from((State.READY, State.READY, *State))),
    st.tuples(st.just("tick"), st.integers(1, 4)),
    st.tuples(st.just("settle")),
)


async def perform(made: Bench, step: tuple[Any, ...]) -> None:
    match step:
        case ("ask", who, returning, path):
            made.ask(who, path, returning=returning)
        case ("leave", index):
            pick([task for task in made.tasks.values() if not task.done()], index, lambda task: task.cancel())
        case ("end", index):
            pick(list(made.running), index, made.end)
        case ("be", state):
            made.supervisor.be(state)
        case ("tick", number):
            await settled(number)
        case _:
            await settled()
            check(made)


def pick(choice: list[Any], index: int, do: Callable[[Any], object]) -> None:
    if choice:
        do(choice[index % len(choice)])


def check(made: Bench) -> None:
    """What holds whenever nothing is on its way."""
    alive = [call for call, task in made.tasks.items() if not task.done()]
    waiting = [call for call in alive if call not in made.running]
    assert made.queue.held == len(waiting) == sum(call.held for call in made.tasks)
    state = made.supervisor.engine.state
    assert not waiting or state not in (State.STOPPED, State.FAILED), "they wait in vain"
    if waiting and state is State.READY:
        limited = all(at_its_limit(made, call.who) for call in waiting)
        assert made.taken == PLACES or limited, "a place is free, and somebody waits who may have it"
        assert all(call.path == CHAT for call in waiting)
    for who in "abc":
        most = made.accounts.named(who).allowed.running
        assert not most or running(made, who) <= most


def running(made: Bench, who: str) -> int:
    return sum(call.who == who and call.path == CHAT for call in made.running)


def at_its_limit(made: Bench, who: str) -> bool:
    most = made.accounts.named(who).allowed.running
    return bool(most) and running(made, who) >= most


@settings(max_examples=400)
@given(st.lists(steps, max_size=60), st.integers(0, 6), st.sampled_from((None, UNEQUAL)))
def test_no_place_is_lost_or_given_twice(steps: list[tuple[Any, ...]], limit: int, limits: Limits | None) -> None:
    async def play() -> None:
        async with bench(limits=limits, limit=limit) as made:
            for step in steps:
                await perform(made, step)

    asyncio.run(play())


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("state", [State.READY, State.STARTING])
async def test_a_place_passes_on_from_one_who_leaves_in_any_moment(state: State, ticks: int) -> None:
    """The place is given to the first, who leaves so many turns of the loop later."""
    async with bench(state) as made:
        before = [made.ask("z") for _ in range(PLACES)] if state is State.READY else []
        await settled()
        asked = [made.ask("abc"[number]) for number in range(3)]
        await settled()
        for call in before:
            made.end(call)
        made.supervisor.be(State.READY)
        await settled(ticks)
        made.tasks[asked[0]].cancel()
        await settled()
        assert list(made.running) == asked[1:]


@pytest.mark.parametrize("ticks", range(6))
async def test_who_is_refused_and_leaves_in_the_same_moment_takes_nothing_along(ticks: int) -> None:
    async with bench(State.STARTING) as made:
        asked = [made.ask("a") for _ in range(4)]
        await settled()
        made.supervisor.be(State.FAILED)
        await settled(ticks)
        made.tasks[asked[0]].cancel()
        with suppress(asyncio.CancelledError):
            assert isinstance(await made.outcome(asked[0]), EngineFailed)
        assert isinstance(await made.outcome(asked[1]), EngineFailed)


# ── limits of one identity ──


async def test_who_has_as_many_as_it_may_waits_and_stands_in_nobody_s_way() -> None:
    async with bench(limits=UNEQUAL, status_after_s=0) as made:
        first, second = made.ask("a"), made.ask("a", stream=True)
        await settled()
        assert (first in made.running, second.held) == (True, True)
        assert made.said == ["waiting for another request of yours to end"]
        other = made.ask("c")
        await settled()
        assert other in made.running
        made.end(first)
        await settled()
        assert second in made.running


async def test_who_waits_as_often_as_it_may_is_told_and_no_other() -> None:
    async with bench(State.STARTING, limits=UNEQUAL) as made:
        b = [made.ask("b") for _ in range(3)]
        others = [made.ask("c") for _ in range(3)]
        back = made.ask("b", returning=True)
        error = await made.outcome(b[2])
        assert isinstance(error, TooMany)
        assert (error.message, bool(error.retry_after_s)) == ("b has as many requests waiting as it may: 2", True)
        await settled()
        assert all(call.held for call in (*b[:2], *others, back)), "who was let in once is not refused"
        assert made.accounts.named("b").refused == 1


async def test_who_does_not_want_to_wait_hears_that_it_is_its_own_fault() -> None:
    async with bench(limits=UNEQUAL) as made:
        made.ask("a")
        await settled()
        error = await made.outcome(made.ask("a", may_wait=False))
        assert isinstance(error, TooMany)
        assert error.message == "a has as many requests running as it may: 1"


# ── the order ──


async def test_a_newcomer_takes_a_free_place_at_once() -> None:
    async with bench() as made:
        tasks = len(asyncio.all_tasks())
        call = Call("id", "a", "m", CHAT, b"{}", {}, stream=True, may_wait=True)
        turn = made.queue.turn(call, made.supervisor, made._tell)
        with pytest.raises(StopIteration):
            turn.__aenter__().send(None)  # one step, and it is there
        assert (len(asyncio.all_tasks()), made.queue.held, call.held_s) == (tasks, 0, 0.0)
        await turn.__aexit__(None, None, None)


async def test_as_many_go_as_there_are_places_and_in_turns() -> None:
    async with bench(State.STARTING) as made:
        asked = [made.ask(who) for who in "aaaab"]
        await settled()
        assert (made.queue.held, asked[0].held) == (5, True)
        made.supervisor.be(State.READY)
        await settled()
        assert (made.order, made.queue.held) == (["a0", "b4"], 3)
        made.end(asked[0])
        await settled()
        assert (made.order, made.queue.held) == (["a0", "b4", "a1"], 2)


async def test_a_newcomer_does_not_overtake_those_whom_the_news_has_not_reached() -> None:
    async with bench(State.STARTING) as made:
        for who in "ab":
            made.ask(who)
        await settled()
        made.ask("c")  # runs before the feed's readers, in the next turn of the loop
        made.supervisor.be(State.READY)
        await settled()
        assert (made.order, made.queue.held) == (["a0", "b1"], 1)


async def test_one_who_comes_as_the_last_one_leaves_is_seen_to() -> None:
    async with bench(State.STARTING) as made:
        last = made.ask("a")
        await settled()
        made.tasks[last].cancel()
        made.ask("b")
        await settled()
        made.supervisor.be(State.READY)
        await settled()
        assert made.order == ["b1"]


async def test_calls_wait_on_when_the_engine_dies_and_those_it_had_go_first() -> None:
    async with bench() as made:
        asked = [made.ask("a") for _ in range(4)]
        await settled()
        made.supervisor.be(State.BACKOFF)
        for call in asked[:2]:
            made.end(call)
            await made.outcome(call)
            call.sent_at = 0.0
            made.again(call)
        await settled()
        assert (made.queue.held, made.running) == (4, {})
        made.supervisor.be(State.READY)
        await settled()
        assert made.order == ["a0", "a1", "a0", "a1"]


async def test_places_belong_to_the_model_and_not_to_an_engine() -> None:
    async with bench() as made:
        old = [made.ask("a") for _ in range(PLACES)]
        await settled()
        made.supervisor.be(State.BACKOFF)
        made.ask("b")
        made.supervisor.be(State.READY)
        await settled()
        assert made.queue.held == 1, "the attempts of the old engine have not ended yet"
        made.end(old[0])
        await settled()
        assert made.queue.held == 0


async def test_what_does_not_come_to_the_scheduler_takes_no_place() -> None:
    async with bench() as made:
        for _ in range(PLACES + 1):
            made.ask("a")
        beside = [made.ask("a", TOKENIZE) for _ in range(5)]
        await settled()
        assert (made.queue.held, all(call in made.running for call in beside)) == (1, True)


async def test_without_an_engine_it_waits_all_the_same() -> None:
    async with bench(State.STARTING) as made:
        beside = [made.ask("a", TOKENIZE) for _ in range(5)]
        await settled()
        assert made.queue.held == 5
        made.supervisor.be(State.READY)
        await settled()
        assert list(made.running) == beside


# ── refusals ──


async def refused(made: Bench, call: Call) -> Unavailable:
    error = await made.outcome(call)
    assert error is not None
    assert error.retry_after_s is not None
    return error


async def test_a_full_queue_of_one_identity_is_overloaded() -> None:
    async with bench(State.STARTING, limit=2) as made:
        for _ in range(2):
            made.ask("a")
        assert isinstance(await refused(made, made.ask("a")), Overloaded)
        assert made.queue.held == 2


async def test_who_fills_the_queue_makes_room_for_another() -> None:
    async with bench(State.STARTING, limit=3) as made:
        asked = [made.ask("a") for _ in range(3)]
        await settled()
        made.ask("b")
        assert isinstance(await refused(made, asked[2]), TooMany)
        assert isinstance(await refused(made, made.ask("a")), TooMany)
        assert isinstance(await refused(made, made.ask("b")), TooMany)
        made.ask("c")
        assert isinstance(await refused(made, asked[1]), TooMany)
        assert made.queue.held == 3


async def test_a_queue_full_of_many_is_overloaded_for_one_more() -> None:
    async with bench(State.STARTING, limit=3) as made:
        for who in "abc":
            made.ask(who)
        await settled()
        assert isinstance(await refused(made, made.ask("d")), Overloaded)
        assert isinstance(await refused(made, made.ask("c")), TooMany)


async def test_what_an_engine_had_before_always_gets_in() -> None:
    async with bench(State.STARTING, limit=1) as made:
        for _ in range(3):
            made.ask("a", returning=True)
        await settled()
        assert made.queue.held == 3
        assert isinstance(await refused(made, made.ask("a")), Overloaded)
        assert isinstance(await refused(made, made.ask("a", TOKENIZE, returning=True)), Overloaded)


async def test_who_does_not_want_to_wait_is_refused() -> None:
    async with bench() as made:
        for _ in range(PLACES):
            made.ask("a", may_wait=False)
        await settled()
        assert made.taken == PLACES
        assert isinstance(await refused(made, made.ask("b", may_wait=False)), Overloaded)
        made.supervisor.be(State.UNHEALTHY)
        assert isinstance(await refused(made, made.ask("b", may_wait=False)), NotReady)


@pytest.mark.parametrize(("state", "kind"), [(State.STOPPED, NotReady), (State.FAILED, EngineFailed)])
async def test_all_hear_at_once_that_they_wait_in_vain(state: State, kind: type[Unavailable]) -> None:
    async with bench() as made:
        asked = [made.ask("a") for _ in range(PLACES + 3)][PLACES:]
        await settled()
        made.supervisor.be(state)
        assert [type(await made.outcome(call)) for call in asked] == [kind] * 3
        assert type(await made.outcome(made.ask("a"))) is kind


# ── time ──


async def test_the_time_that_a_call_is_held_adds_up() -> None:
    async with bench(wait_s=0.3) as made:
        running = [made.ask("z") for _ in range(PLACES)]
        await settled()
        call = made.ask("a")
        assert isinstance(await refused(made, call), Overloaded)
        assert call.held_s >= 0.3
        made.supervisor.be(State.STARTING)
        made.again(call)
        await settled()
        assert made.tasks[call].done(), "nothing of its time is left"
        assert isinstance(await refused(made, call), NotReady)
        for other in running:
            assert other.held_s == 0


async def test_only_streams_are_told() -> None:
    async with bench(wait_s=0.3, status_after_s=0) as made:
        for _ in range(PLACES):
            made.ask("z")
        await settled()
        silent = made.ask("a")
        await made.outcome(silent)
        assert not made.said
        streams = [made.ask("a", stream=True) for _ in range(3)]
        for call in streams:
            await made.outcome(call)
        ahead = ("the next one is yours", "1 request is ahead", "2 requests are ahead")
        assert made.said == [f"waiting for a place: {each}" for each in ahead]
        made.said.clear()
        made.supervisor.be(State.STARTING)
        await made.outcome(made.ask("a", stream=True))
        assert made.said == ["starting, " + made.said[0].partition(", ")[2]]


async def test_a_client_that_leaves_while_it_is_told_leaves_the_queue() -> None:
    async def gone(sentence: str) -> None:
        raise ConnectionResetError

    async with bench(State.STARTING, status_after_s=0) as made:
        call = Call("id", "a", "m", CHAT, b"{}", {}, stream=True, may_wait=True)
        with pytest.raises(ConnectionResetError):
            async with made.queue.turn(call, made.supervisor, gone):
                pytest.fail("there is no engine")
        assert (made.queue.held, call.held) == (0, False)


@pytest.mark.parametrize(("eta_s", "told"), [(None, 5), (0, 1), (42, 42), (10_000, 600)])
async def test_when_to_ask_again_is_after_the_load(eta_s: int | None, told: int) -> None:
    supervisor = Stub(Feed(), State.STARTING)
    supervisor.eta_s = eta_s
    assert retry_after_s(supervisor) == told


@pytest.mark.parametrize(("pause_s", "told"), [(0.0, 5), (0.2, 6), (30.5, 36), (3600.0, 60)])
async def test_when_to_ask_again_is_after_the_pause(pause_s: float, told: int) -> None:
    supervisor = Stub(Feed(), State.BACKOFF)
    supervisor.put_off_s = pause_s
    assert retry_after_s(supervisor) == told


@pytest.mark.parametrize(("state", "setbacks", "told"), [("starting", 1, 5), ("starting", 5, 16), ("ready", 9, 5)])
async def test_who_asks_while_others_are_away_asks_as_seldom_as_they_are_asked(
    state: str, setbacks: int, told: int
) -> None:
    supervisor = Stub(Feed())
    supervisor.engine = Engine(State(state), setbacks=setbacks)
    assert retry_after_s(supervisor) == told
    supervisor.policy = Policy(backoff_max_s=3600)
    supervisor.engine = Engine(State.STARTING, setbacks=20)
    assert retry_after_s(supervisor) == 60


# ── places ──


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ({}, 7),
        ({"max-num-seqs": 3}, 3),
        ({"max_num_seqs": 3}, 3),
        ({"--max-num-seqs": "3"}, 3),
        ({"max-num-seqs": 0}, 7),
        ({"max-num-seqs": -1}, 7),
        ({"max-num-seqs": True}, 7),
        ({"max-num-seqs": 2.5}, 7),
        ({"max-num-seqs": "²"}, 7),
    ],
)
def test_places_are_what_the_engine_takes_at_once(args: dict[str, Any], found: int) -> None:
    models = {"m": Model("m", args=args), "other": Model("o")}
    assert places(sections.Config(queue=sections.Queue(running=7), models=models)) == {"m": found, "other": 7}


async def test_a_call_counts_as_running_from_the_moment_in_which_it_has_a_place() -> None:
    """Else its engine would be taken for idle until its task hears of it, and could be made to go."""
    async with bench(State.STARTING) as there:
        call = there.ask("a")
        await settled()
        assert call.held
        there.supervisor.be(State.READY)
        while there.queue.held:
            assert call.held, "it has no place yet"
            await asyncio.sleep(0)
        assert not call.held
        assert call not in there.running, "and its task has not heard of it"
