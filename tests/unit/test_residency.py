"""Who may be in memory: rooms, turns, the least recently used, and that nobody waits for ever."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.residency import LINGER_S, Answer, Bid, Decision, Resident, Rules, decide
from vllmd.lifecycle import State

GIB = 1 << 30
ONE = frozenset({"GPU-0"})
OTHER = frozenset({"GPU-1"})
NOW = 1000.0
RULES = Rules(turn_s=30)


def here(name: str, claim: int = 40, state: State = State.READY, **more: Any) -> Resident:
    """A resident of the first GPU that has been ready and idle for long; claims are GiB of 80."""
    about = {"devices": ONE, "ready_at": NOW - 100, "used_at": NOW - 50, "is_gpu": True, **more}
    return Resident(name=name, claim=claim * GIB, state=state, **about)


def bid(name: str = "new", claim: int = 60, free: int | None = None, **more: Any) -> Bid:
    """One for the first GPU that somebody waits for."""
    about = {"devices": ONE, "is_gpu": True, "is_wanted": True, "yields": True, "since": NOW, **more}
    sizes = {"total": 80 * GIB, "free": (80 if free is None else free) * GIB}
    sizes["entry"] = claim * GIB if about["is_gpu"] else 0
    return Bid(name=name, claim=claim * GIB, **{**sizes, **about})


def decided(*parties: Bid | Resident, rules: Rules = RULES, now: float = NOW) -> Decision:
    bids = [each for each in parties if isinstance(each, Bid)]
    return decide(bids, [each for each in parties if isinstance(each, Resident)], rules, now)


def answer(*parties: Bid | Resident, rules: Rules = RULES) -> Answer:
    """What becomes of the bid `new`."""
    return decided(*parties, rules=rules).answers["new"]


# ── room ──


def test_what_fits_beside_the_others_comes_in() -> None:
    assert answer(bid()) is Answer.GRANTED
    assert answer(bid(claim=40, free=40), here("a", 40)) is Answer.GRANTED
    assert answer(bid(claim=80, free=80), here("a", devices=OTHER)) is Answer.GRANTED, "on another GPU"


def test_what_is_free_and_what_is_claimed_both_count() -> None:
    """A model that loads has not taken its memory yet; and others than engines hold memory that nobody claims."""
    assert answer(bid(claim=60, free=80), here("a", 40, stays=True)) is Answer.HELD
    assert answer(bid(claim=60, free=50)) is Answer.SHORT
    cpu: dict[str, Any] = {"is_gpu": False}
    loading = here("a", 20, State.STARTING, **cpu)
    assert answer(bid(claim=30, free=60, **cpu), loading) is Answer.GRANTED
    assert answer(bid(claim=50, free=60, **cpu), loading) is Answer.WAITS, "20 of the free 60 are spoken for"


def test_a_start_wants_its_whole_share_to_be_free_whatever_it_takes_then() -> None:
    assert answer(bid(claim=10, entry=70 * GIB, free=60)) is Answer.SHORT
    assert answer(bid(claim=10, entry=60 * GIB, free=60)) is Answer.GRANTED


def test_of_what_nobody_knows_the_size_there_is_always_room() -> None:
    assert answer(bid(claim=0, free=0), here("a", 80)) is Answer.GRANTED


def test_on_a_gpu_one_thing_happens_at_a_time() -> None:
    for state in (State.STARTING, State.STOPPING, State.DOZING):
        changing = here("a", 30, state)
        assert answer(bid(claim=30), changing) is Answer.WAITS, state
        assert answer(bid(claim=30, devices=OTHER), changing) is Answer.GRANTED, state
        assert answer(bid(claim=30, is_gpu=False), here("a", 30, state, is_gpu=False)) is Answer.GRANTED, state
    two = decided(bid("new", 30), bid("next", 30, since=NOW + 1))
    assert two.answers == {"new": Answer.GRANTED, "next": Answer.WAITS}


def test_from_a_gpu_they_go_one_by_one_and_nobody_comes_meanwhile() -> None:
    old, young = here("old", 40, used_at=NOW - 90), here("young", 40)
    assert decided(bid(claim=80, free=0), young, old).leave == {"old": "new"}
    cpu: dict[str, Any] = {"is_gpu": False}
    both = [replace(each, is_gpu=False) for each in (old, young)]
    assert decided(bid(claim=80, free=0, **cpu), *both).leave == {"old": "new", "young": "new"}
    timed = [replace(each, idle_unload_s=30) for each in (old, young)]
    assert decided(*timed).leave == {"old": ""}
    beside = decided(bid(claim=10, free=40), replace(old, idle_unload_s=30))
    assert (beside.answers, beside.leave) == ({"new": Answer.WAITS}, {"old": ""}), "there is room, but not this moment"
    wide = here("wide", 40, devices=ONE | OTHER)
    two = decided(bid(claim=60, free=40), bid("next", 20, devices=OTHER, since=NOW + 1), wide)
    assert (two.answers["next"], two.leave) == (Answer.WAITS, {"wide": "new"})


def test_there_are_no_more_models_than_may_be() -> None:
    two = Rules(max_models=2)
    a, b = here("a", 0), here("b", 0, used_at=NOW - 10)
    assert answer(bid(claim=0), a, rules=two) is Answer.GRANTED
    assert answer(bid(claim=0), a, replace(b, state=State.ASLEEP), rules=two) is Answer.GRANTED, (
        "who sleeps is not there"
    )
    assert decided(bid(claim=0), a, b, rules=two).leave == {"a": "new"}
    assert decided(bid(claim=0, devices=OTHER), a, b, rules=two).leave == {"a": "new"}, "wherever they are"
    stubborn = [replace(each, stays=True) for each in (a, b)]
    assert answer(bid(claim=0), *stubborn, rules=two) is Answer.FULL
    assert answer(bid(claim=0, is_wanted=False), a, b, rules=two) is Answer.YIELDS


# ── who goes ──


def test_the_least_recently_used_goes_and_nobody_who_need_not() -> None:
    small, old, young = here("small", 10, used_at=NOW - 90), here("old", 30), here("young", 30, used_at=NOW - 5)
    assert decided(bid(claim=30, free=10), small, old, young).leave == {"old": "new"}, "the small one would not help"
    assert decided(bid(claim=20, free=10), small, old, young).leave == {"small": "new"}, "and now it is enough"
    assert decided(bid(claim=60, free=10), small, old, young).closed == {"old", "young"}
    assert decided(bid(claim=80, free=10), small, old, young).closed == {"small", "old", "young"}


def test_never_used_means_used_when_it_became_ready() -> None:
    fresh, used = here("fresh", used_at=0, ready_at=NOW - 5), here("used", used_at=NOW - 20)
    assert decided(bid(claim=40, free=0), fresh, used).leave == {"used": "new"}


def test_nobody_goes_in_vain() -> None:
    assert decided(bid(claim=60, free=10), here("a", 30), here("b", 40, stays=True)).leave == {}
    assert answer(bid(claim=60, free=10), here("a", 30), here("b", 40, stays=True)) is Answer.HELD
    assert decided(bid(claim=70, free=10), here("a", 30, devices=OTHER)).leave == {}


def test_nobody_goes_for_what_nobody_waits_for() -> None:
    idle = decided(bid(is_wanted=False, free=40), here("a"))
    assert idle.answers == {"new": Answer.YIELDS}
    assert idle.leave == {}
    assert answer(bid(is_wanted=False, free=40, yields=False), here("a")) is Answer.HELD, "it is not to be withdrawn"
    assert answer(bid(is_wanted=False, free=40)) is Answer.SHORT, "no engine holds it, so that waiting may help"


def test_a_sum_that_is_too_cautious_keeps_nobody_out() -> None:
    cpu: dict[str, Any] = {"is_gpu": False}
    assert answer(bid(claim=50, least=30 * GIB, free=40, is_wanted=False, **cpu), here("a", **cpu)) is Answer.SHORT
    assert answer(bid(claim=50, least=45 * GIB, free=40, is_wanted=False, **cpu), here("a", **cpu)) is Answer.YIELDS


def test_who_sleeps_gives_up_the_rest_before_anybody_who_works() -> None:
    asleep = here("asleep", 2, State.ASLEEP, used_at=NOW - 10)
    busy = here("busy", 20, running=1)
    assert decided(bid(claim=59, free=58), asleep, busy).leave == {"asleep": "new"}
    idle = here("idle", 20)
    assert decided(bid(claim=59, free=58), asleep, idle).leave == {"idle": "new"}, "an idle one goes first"


def test_what_is_about_to_be_free_is_waited_for() -> None:
    for state in (State.STOPPING, State.DOZING):
        decision = decided(bid(claim=70, free=40), here("going", 40, state), here("idle", 5))
        assert decision.answers == {"new": Answer.WAITS}, state
        assert decision.leave == {}, state


# ── turns ──


def test_running_requests_are_never_cut() -> None:
    busy = here("busy", running=1)
    decision = decided(bid(free=40), busy)
    assert decision.closed == {"busy"}, "its turn is over: it takes no more, and ends these"
    assert decision.leave == {}
    assert decided(bid(free=40), replace(busy, running=0, used_at=NOW)).leave == {"busy": "new"}, "now it is their turn"


def test_a_busy_one_serves_all_that_come_in_its_turn() -> None:
    busy = here("busy", running=3, ready_at=NOW - 10)
    decision = decided(bid(free=40), busy)
    assert decision == Decision({"new": Answer.WAITS}, again_at=NOW + 20)


def test_who_asks_one_question_after_another_is_not_interrupted() -> None:
    between = here("between", ready_at=NOW - 10, used_at=NOW - 0.2)
    decision = decided(bid(free=40), between)
    assert decision.leave == {}
    assert decision.again_at == pytest.approx(NOW - 0.2 + LINGER_S)
    assert decided(bid(free=40), replace(between, used_at=NOW - LINGER_S)).leave == {"between": "new"}


def test_those_who_have_to_go_for_one_go_together() -> None:
    idle, busy = here("idle", 30), here("busy", 40, running=1, ready_at=NOW - 10)
    assert decided(bid(claim=80, free=10), idle, busy).closed == frozenset(), "the idle one may serve meanwhile"
    over = decided(bid(claim=80, free=10), idle, replace(busy, ready_at=NOW - 40))
    assert over.closed == {"idle", "busy"}
    assert over.leave == {}


def test_who_waits_for_one_that_has_just_come_gets_in_however_short_its_turn() -> None:
    fresh = here("fresh", running=1, ready_at=NOW)
    assert decided(bid(free=40), fresh, rules=Rules(turn_s=0)) == Decision(
        {"new": Answer.WAITS}, again_at=NOW + LINGER_S
    )


def test_of_busy_ones_the_same_has_to_go_whoever_ends_a_request() -> None:
    """Else each would be let on before it has come to its end."""
    first, second = here("first", running=2, ready_at=NOW - 90), here("second", running=2, ready_at=NOW - 80)
    for ended in (first, second):
        parties = [replace(each, used_at=NOW) if each is ended else each for each in (first, second)]
        assert decided(bid(claim=40, free=0), *parties).closed == {"first"}


def test_bids_go_in_order_of_arrival_those_first_that_somebody_waits_for() -> None:
    later, first = bid("later", 60, since=NOW + 1), bid("first", 60, since=NOW)
    assert decided(later, first).answers == {"first": Answer.GRANTED, "later": Answer.WAITS}
    assert decided(later, replace(first, is_wanted=False)).answers["later"] is Answer.GRANTED
    small = bid("small", 10, since=NOW + 2, free=40)
    held = decided(bid("big", 60, free=40, since=NOW), small, here("a", running=1))
    assert held.answers == {"big": Answer.WAITS, "small": Answer.WAITS}, "else the big one would wait for ever"
    assert decided(bid("big", 60, free=40), replace(small, devices=OTHER), here("a", running=1)).answers["small"] is (
        Answer.GRANTED
    )


def test_a_start_that_may_come_to_nothing_is_waited_for() -> None:
    for state in (State.STARTING, State.UNHEALTHY):
        assert answer(bid(free=40, is_gpu=False), here("a", state=state, is_gpu=False)) is Answer.WAITS


# ── idle ──


def test_an_idle_one_goes_when_its_time_is_over() -> None:
    resident = here("a", idle_unload_s=60, used_at=NOW - 50)
    assert decided(resident).again_at == NOW + 10
    assert decided(resident, now=NOW + 10).leave == {"a": ""}
    assert decided(replace(resident, running=1), now=NOW + 1000) == Decision(again_at=NOW + 1060)
    assert decided(replace(resident, waiting=1), now=NOW + 1000) == Decision(again_at=NOW + 1060)
    busy_gpu = decided(resident, here("b", state=State.STARTING), now=NOW + 10)
    assert busy_gpu.leave == {}, "a start that sees memory become free ends"
    assert decided(replace(resident, stays=True), now=NOW + 1000) == Decision()
    assert decided(replace(resident, state=State.STARTING), now=NOW + 1000) == Decision()


# ── whatever may be ──

NAMES = st.sampled_from("abcdef")
DEVICES = st.frozensets(st.sampled_from(["0", "1"]), max_size=2)
SIZES = st.integers(0, 80)
RESIDENTS = st.builds(
    Resident,
    NAMES,
    DEVICES,
    SIZES,
    st.sampled_from(State),
    running=st.integers(0, 2),
    waiting=st.integers(0, 2),
    ready_at=st.floats(0, 2000),
    used_at=st.floats(0, 2000),
    stays=st.booleans(),
    idle_unload_s=st.sampled_from([0.0, 30.0]),
    is_gpu=st.booleans(),
)
BIDS = st.builds(
    Bid,
    st.sampled_from("ghijk"),
    DEVICES,
    SIZES,
    entry=SIZES,
    least=SIZES,
    total=st.just(80),
    free=SIZES,
    since=st.floats(0, 2000),
    is_wanted=st.booleans(),
    yields=st.booleans(),
    is_gpu=st.booleans(),
)
ANY_RULES = st.builds(Rules, st.integers(0, 3), st.floats(0, 100))


MANY_RESIDENTS = st.lists(RESIDENTS, max_size=5, unique_by=lambda each: each.name)
MANY_BIDS = st.lists(BIDS, max_size=5, unique_by=lambda each: each.name)


@given(MANY_BIDS, MANY_RESIDENTS, ANY_RULES)
def test_what_holds_in_every_memory(bids: list[Bid], residents: list[Resident], rules: Rules) -> None:
    decision = decide(bids, residents, rules, NOW)
    assert decision.answers.keys() == {each.name for each in bids}, "each has an answer"
    by_name = {each.name: each for each in residents}
    assert decision.leave.keys() <= decision.closed <= by_name.keys(), "who goes takes no more requests"
    assert not any(by_name[name].running for name in decision.leave), "nobody goes with a request running"
    assert all(by_name[name].may_go for name in decision.closed)
    assert decision.again_at > NOW, "it is not looked at without end"
    granted = [each for each in bids if decision.answers[each.name] is Answer.GRANTED]
    for device in "01":
        parties: list[Resident | Bid] = [*residents, *granted]
        claims = sum(each.claim for each in parties if device in each.devices)
        newest = [each for each in granted if device in each.devices and each.claim]
        assert not newest or claims <= 80, "no device is promised twice"
        coming = [each for each in granted if each.is_gpu and device in each.devices]
        going = [by_name[name] for name in decision.leave if by_name[name].is_gpu and device in by_name[name].devices]
        assert len(coming) + len(going) <= 1, "on a GPU one thing happens at a time"
    if rules.max_models and granted:
        awake = [each for each in residents if each.state is not State.ASLEEP]
        assert len(awake) + len(granted) <= rules.max_models


@given(MANY_RESIDENTS, SIZES, ANY_RULES)
def test_who_is_waited_for_gets_in_some_day(residents: list[Resident], claim: int, rules: Rules) -> None:
    """As long as none stays for good: everybody becomes ready, ends its requests when it takes no more, and goes."""
    newcomer = Bid("g", frozenset("0"), claim, total=80, free=0, is_wanted=True, is_gpu=True)
    now = NOW
    residents = [replace(each, stays=False) for each in residents]
    for _ in range(60):
        free = 80 - sum(each.claim for each in residents if "0" in each.devices)
        decision = decide([replace(newcomer, free=max(0, free))], residents, rules, now)
        if decision.answers["g"] is Answer.GRANTED:
            return
        residents = [_on(each, decision, now) for each in residents if not each.is_going]
        residents = [each for each in residents if each.state in (State.READY, State.ASLEEP) or each.is_going]
        now = decision.again_at if math.isfinite(decision.again_at) else now + 1
    raise AssertionError(f"it waits for ever: {decision} beside {residents}")


def _on(resident: Resident, decision: Decision, now: float) -> Resident:
    """What becomes of a resident in the meantime."""
    if resident.name in decision.leave:
        return replace(resident, state=State.STOPPING)
    if resident.name in decision.closed:
        return replace(resident, running=0, used_at=now)
    if resident.state in (State.STARTING, State.UNHEALTHY):
        return replace(resident, state=State.READY, ready_at=now)
    return resident
