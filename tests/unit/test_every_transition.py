"""The life of an engine by exhaustion: everything that can happen, in every order, and what may come late besides."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.lifecycle import (
    ALIVE,
    Adopt,
    Adopted,
    Effect,
    Engine,
    Event,
    Evict,
    Exited,
    Kill,
    Load,
    Policy,
    Probe,
    ProbeFailed,
    ProbeOk,
    Progressed,
    PutToSleep,
    Restart,
    SetTimer,
    SleepFailed,
    Slept,
    Spawn,
    State,
    Terminate,
    Timer,
    TimerFired,
    Unload,
    Verdict,
    Wake,
    WakeFailed,
    Wanted,
    Woken,
)
from vllmd.transitions import TRANSITIONS, Key, step

POLICIES = [Policy(failure_threshold=threshold, restart_limit=limit) for threshold, limit in product((1, 2, 3), (0, 2))]
CRASH = Verdict("crashed", "it fell over")
AWAY = Verdict("hub unreachable", "the hub is away", retry_after_s=0.0)
HOPELESS = Verdict("no such model", "there is no such model", permanent=True)


@dataclass(frozen=True)
class World:
    """An engine, and what its supervisor and the machine know without asking it.

    Args:
        alive: a process exists: from `Spawn` or `Adopt` to `Exited`, whatever the state says.
        timers: set and not yet fired; a change of state clears them.
        probing: a probe is pending; a change of state cancels it.
        moving: it is being put to sleep or woken; likewise.
    """

    engine: Engine
    alive: bool = False
    timers: frozenset[Timer] = frozenset()
    probing: bool = False
    moving: bool = False

    @property
    def shape(self) -> "World":
        """What matters for what comes next: the counts that only grow do not."""
        return replace(self, engine=replace(self.engine, epoch=0, generation=0, restarts=0, setbacks=0, verdict=None))


BEGINNING = World(Engine())


@dataclass(frozen=True)
class Move:
    """One event in one world."""

    before: World
    event: Event
    effects: tuple[Effect, ...]
    after: World

    @property
    def key(self) -> Key:
        return self.before.engine.state, self.event.timer if isinstance(self.event, TimerFired) else type(self.event)


def move(world: World, event: Event, policy: Policy) -> Move:
    """Lets `event` happen, and does what its effects say."""
    engine, effects = step(world.engine, event, policy)
    same = engine.state is world.engine.state
    rung = {event.timer} if isinstance(event, TimerFired) and event.epoch == world.engine.epoch else set()
    probed = isinstance(event, ProbeOk | ProbeFailed) and event.epoch == world.engine.epoch
    timers = set(world.timers) - rung if same else set()
    timers |= {effect.timer for effect in effects if isinstance(effect, SetTimer)}
    probing = (same and world.probing and not probed) or any(isinstance(effect, Probe) for effect in effects)
    moved = isinstance(event, Slept | SleepFailed | Woken | WakeFailed) and event.epoch == world.engine.epoch
    moving = (same and world.moving and not moved) or any(isinstance(effect, PutToSleep | Wake) for effect in effects)
    gone = isinstance(event, Exited) and event.generation == world.engine.generation
    alive = (world.alive and not gone) or any(isinstance(effect, Spawn | Adopt) for effect in effects)
    return Move(world, event, effects, World(engine, alive, frozenset(timers), probing, moving))


def possible(world: World) -> Iterator[Event]:
    """Everything that can happen next: any wish at any time, an exit only of what is alive, and so on."""
    engine = world.engine
    yield from (Load(), Load(ordered=True), Unload(), Restart(), Wanted(), Wanted(on_demand=True), Evict(), Evict(1))
    yield from (TimerFired(engine.epoch, timer) for timer in sorted(world.timers))
    if world.probing:
        yield from (ProbeOk(engine.epoch), ProbeFailed(engine.epoch, "silence"))
        yield ProbeFailed(engine.epoch, "refused", listens=True, certain=True)
    if world.moving and engine.state is State.DOZING:
        yield from (Slept(engine.epoch), SleepFailed(engine.epoch, "it keeps its memory"))
    if world.moving and engine.state is State.STARTING:
        yield from (Woken(engine.epoch), WakeFailed(engine.epoch, "HTTP 500"), Slept(engine.epoch))
    if engine.state is State.STARTING:
        yield Progressed(engine.epoch)
    if engine == Engine():  # before anything else, or never
        yield from (Adopted(7, was_ready=True), Adopted(7, was_ready=False))
        yield Adopted(7, was_ready=True, is_asleep=True)
    if world.alive:
        yield from (Exited(engine.generation, each) for each in (CRASH, HOPELESS, AWAY))


@cache
def explore(policy: Policy) -> list[Move]:
    """Every move from every world that can be reached."""
    moves, seen, ahead = [], {BEGINNING.shape}, deque([BEGINNING])
    while ahead:
        world = ahead.popleft()
        for event in possible(world):
            moves.append(move(world, event, policy))
            after = moves[-1].after
            if after.shape not in seen:
                seen.add(after.shape)
                ahead.append(after)
        assert len(seen) < 10_000, "the crashes or the failed probes grow without end"
    return moves


@cache
def every_move() -> list[Move]:
    return [each for policy in POLICIES for each in explore(policy)]


EVICTED = (State.STARTING, State.READY, State.DOZING, State.ASLEEP)
"""Where there may be memory to give back."""

RUNNING = (State.STARTING, State.READY, State.UNHEALTHY)
WAITS_FOR = {
    State.STARTING: Timer.STALL,
    State.DOZING: Timer.STALL,
    State.STOPPING: Timer.STOP,
    State.BACKOFF: Timer.BACKOFF,
}


def test_an_engine_is_spawned_only_when_nothing_is_alive() -> None:
    for each in every_move():
        if any(isinstance(effect, Spawn) for effect in each.effects):
            assert not each.before.alive or isinstance(each.event, Exited), each
            assert each.effects[0] == Spawn(each.before.engine.generation + 1), each


def test_an_engine_is_adopted_only_when_nothing_is_alive_and_under_its_own_number() -> None:
    adopted = [each for each in every_move() if any(isinstance(effect, Adopt) for effect in each.effects)]
    assert {each.after.engine.state for each in adopted} == {State.STARTING, State.UNHEALTHY, State.ASLEEP}
    for each in adopted:
        assert not each.before.alive, each
        assert isinstance(each.event, Adopted)
        assert each.effects[0] == Adopt(each.event.generation)
        assert each.after.engine.generation == each.event.generation


def test_an_adopted_engine_is_not_ready_before_it_has_shown_a_token() -> None:
    for each in every_move():
        if isinstance(each.event, Adopted):
            assert each.after.engine.state is not State.READY, each
            assert each.after.probing or each.event.is_asleep, each


def test_alive_is_what_the_state_says() -> None:
    for each in every_move():
        assert each.after.alive is (each.after.engine.state in ALIVE), each


def test_only_what_is_alive_is_terminated_killed_or_probed() -> None:
    for each in every_move():
        if any(isinstance(effect, Terminate | Kill | Probe | PutToSleep | Wake) for effect in each.effects):
            assert each.after.alive, each


def test_every_state_that_waits_has_something_that_ends_the_wait() -> None:
    for each in every_move():
        world = each.after
        if timer := WAITS_FOR.get(world.engine.state):
            assert timer in world.timers, each
        if world.engine.state in (State.READY, State.UNHEALTHY):
            assert world.probing, each
        if world.engine.state is State.STARTING:
            assert world.probing is not world.moving, each
        if world.engine.state is State.DOZING:
            assert world.moving, each
        if world.engine.state in (State.STOPPED, State.FAILED, State.ASLEEP):
            assert not world.timers, each
            assert not world.probing, each


def test_a_ready_engine_is_forgiven_some_day() -> None:
    for each in every_move():
        if each.after.engine.state is State.READY and each.after.engine.crashes:
            assert Timer.STABLE in each.after.timers, each


def test_unload_and_the_exit_of_what_is_alive_end_in_stopped() -> None:
    for policy in POLICIES:
        for each in explore(policy):
            world = move(each.after, Unload(), policy).after
            if world.alive:
                world = move(world, Exited(world.engine.generation, CRASH), policy).after
            assert world.engine.state is State.STOPPED, each
            assert world.engine.crashes == 0, each


def test_what_an_administrator_has_unloaded_comes_back_for_nobody_who_only_asks() -> None:
    for policy in POLICIES:
        for each in explore(policy):
            world = move(each.after, Unload(), policy).after
            if world.alive:
                world = move(world, Exited(world.engine.generation, CRASH), policy).after
            assert move(world, Wanted(), policy).after == world, each
            assert move(world, Wanted(on_demand=True), policy).after.engine.state is State.STARTING, each


def test_what_vllmd_has_taken_out_comes_back_for_whoever_asks() -> None:
    for policy in POLICIES:
        for each in explore(policy):
            if isinstance(each.event, Evict) and each.after.engine.state is not each.before.engine.state:
                world = each.after
                if world.engine.state is State.DOZING:
                    world = move(world, Slept(world.engine.epoch), policy).after
                if world.engine.state is State.STOPPING:
                    world = move(world, Exited(world.engine.generation, CRASH), policy).after
                if each.before.engine.ordered:
                    assert world.engine.state is State.STARTING, "an administrator waits for it"
                    continue
                assert world.engine.state in (State.ASLEEP, State.STOPPED), each
                assert move(world, Wanted(), policy).after.engine.state is State.STARTING, each


def test_only_a_ready_engine_is_put_to_sleep_and_only_a_sleeping_one_is_woken() -> None:
    for each in every_move():
        if any(isinstance(effect, PutToSleep) for effect in each.effects):
            assert each.before.engine.state is State.READY, each
        if any(isinstance(effect, Wake) for effect in each.effects):
            assert each.before.engine.state in (State.ASLEEP, State.DOZING) or isinstance(each.event, Slept), each
            assert each.after.engine.generation == each.before.engine.generation, "it is the same engine"


def test_the_epoch_changes_with_the_state_and_only_then() -> None:
    for each in every_move():
        before, after = each.before.engine, each.after.engine
        assert after.epoch - before.epoch == (after.state is not before.state), each


def test_crashes_never_exceed_the_limit_by_more_than_the_last() -> None:
    for policy in POLICIES:
        assert max(each.after.engine.crashes for each in explore(policy)) == policy.restart_limit + 1


def test_what_is_anothers_fault_is_never_counted_and_never_the_end() -> None:
    for each in every_move():
        if isinstance(each.event, Exited) and each.event.verdict is AWAY:
            assert each.after.engine.crashes == each.before.engine.crashes, each
        if isinstance(each.event, Exited) and each.event.verdict is AWAY and each.before.engine.state in RUNNING:
            assert each.after.engine.state is State.BACKOFF, each


def test_an_operators_wish_is_never_counted_against_the_engine() -> None:
    for each in every_move():
        if isinstance(each.event, Load | Unload | Restart | Evict) and each.after != each.before:
            assert each.after.engine.crashes == 0, each
            assert each.after.engine.restarts == each.before.engine.restarts, each


def test_every_row_is_reached_and_leads_exactly_where_it_says() -> None:
    reached: dict[Key, set[State]] = {}
    for each in every_move():
        if each.key in TRANSITIONS:
            reached.setdefault(each.key, set()).add(each.after.engine.state)
    assert reached == {key: set(row.leads_to) for key, row in TRANSITIONS.items()}


def test_what_is_not_in_the_table_changes_nothing() -> None:
    for each in every_move():
        if each.key not in TRANSITIONS:
            assert (each.after.engine, each.effects) == (each.before.engine, ()), each


def test_everything_that_can_happen_but_a_needless_wish_has_a_row() -> None:
    missing = {each.key for each in every_move() if each.key not in TRANSITIONS}
    needless: set[Key] = {(state, Load) for state in (State.READY, State.UNHEALTHY)}
    # A request brings back what is away and was not given up. An eviction is of what has memory and nothing to do.
    coming = (State.STARTING, State.READY, State.UNHEALTHY, State.BACKOFF, State.FAILED)
    needless |= {(state, Wanted) for state in coming}
    needless |= {(state, Evict) for state in State if state not in EVICTED}
    assert missing == needless


# ── whatever may come late, or never should ──

EPOCHS = st.integers(-3, 30)
VERDICTS = st.sampled_from([CRASH, HOPELESS])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from([Load(), Load(ordered=True), Unload(), Restart(), Wanted(), Evict(), Evict(2)]),
    st.builds(Adopted, EPOCHS, st.booleans(), st.booleans()),
    st.builds(Slept, EPOCHS),
    st.builds(SleepFailed, EPOCHS, st.text(max_size=5)),
    st.builds(Woken, EPOCHS),
    st.builds(WakeFailed, EPOCHS, st.text(max_size=5)),
    st.builds(Progressed, EPOCHS),
    st.builds(ProbeOk, EPOCHS),
    st.builds(ProbeFailed, EPOCHS, st.text(max_size=5), st.booleans(), st.booleans()),
    st.builds(TimerFired, EPOCHS, st.sampled_from(Timer)),
    st.builds(Exited, EPOCHS, VERDICTS),
)
ENGINES = st.builds(
    Engine,
    state=st.sampled_from(State),
    epoch=EPOCHS,
    generation=EPOCHS,
    crashes=st.integers(0, 10**6),
    restarts=st.integers(0, 10),
    probe_failures=st.integers(0, 10),
    after_stop=st.sampled_from(State),
    ordered=st.booleans(),
    evicted=st.booleans(),
    verdict=st.none() | VERDICTS,
)
ANY_POLICY = st.builds(
    Policy,
    failure_threshold=st.integers(1, 5),
    restart_limit=st.integers(0, 5),
    backoff_initial_s=st.floats(0, 1e300),
    backoff_max_s=st.floats(0, 1e300),
)


@given(ENGINES, EVENTS, ANY_POLICY)
def test_step_never_raises_and_knows_its_own_table(engine: Engine, event: Event, policy: Policy) -> None:
    after, effects = step(engine, event, policy)
    assert isinstance(after, Engine)
    assert all(isinstance(effect, Effect) for effect in effects)


def is_stale(engine: Engine, event: Event) -> bool:
    """Late, or what cannot be: nothing is adopted by a vllmd that has had an engine."""
    if isinstance(event, Adopted):
        return engine.state is not State.STOPPED
    if isinstance(event, Exited):
        return event.generation != engine.generation
    return getattr(event, "epoch", engine.epoch) != engine.epoch


@given(ENGINES, EVENTS)
def test_stale_events_change_nothing(engine: Engine, event: Event) -> None:
    if is_stale(engine, event):
        assert step(engine, event, Policy()) == (engine, ())


@given(st.sampled_from(POLICIES), st.lists(EVENTS | st.integers(0, 50), max_size=60))
def test_late_news_never_leads_out_of_what_was_explored(policy: Policy, course: list[Event | int]) -> None:
    """A number stands for the n-th of the things that can happen then; an event is late, unless it hits by chance."""
    explored = {each.after.shape for each in explore(policy)} | {BEGINNING.shape}
    world = BEGINNING
    for each in course:
        choices = list(possible(world))
        event = choices[each % len(choices)] if isinstance(each, int) else each
        if isinstance(each, int) or is_stale(world.engine, event):
            world = move(world, event, policy).after
        assert world.shape in explored


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 10**6))
def test_pauses_grow_and_are_bounded(initial_s: float, max_s: float, crashes: int) -> None:
    policy = Policy(backoff_initial_s=initial_s, backoff_max_s=max_s)
    pauses = [policy.backoff_s(each) for each in (*range(1, 40), crashes)]
    assert all(earlier <= later for earlier, later in pairwise(pauses[:-1]))
    assert all(0 <= pause <= max_s for pause in pauses)
    assert pauses[0] == min(initial_s, max_s)


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_reached(state: State) -> None:
    assert any(each.after.engine.state is state for each in every_move())
