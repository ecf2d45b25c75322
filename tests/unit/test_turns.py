"""Places are taken and given back one for one, and identities take turns, whatever comes and goes in between."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllmd.server.turns import Lane, Ticket, Turns

M = Lane("m")
LANES = (M, Lane("n"), Lane("m", bounded=False))
PLACES = {"m": 2, "n": 1}
MOST = {"ann": 0, "bob": 1, "cyd": 2, "dan": 0}
PEOPLE = tuple(MOST)

lanes = st.sampled_from(LANES)
people = st.sampled_from(PEOPLE)
arrivals = st.lists(st.tuples(people, st.booleans()), max_size=30)


def waiting(arrived: Iterable[tuple[str, bool]], lane: Lane = M, places: int = 1) -> tuple[Turns[Ticket], list[Ticket]]:
    """All of them wait, in that order."""
    turns, tickets = Turns[Ticket]({lane.model: places}), [Ticket(lane, *each) for each in arrived]
    for ticket in tickets:
        turns.add(ticket)
    return turns, tickets


def served(turns: Turns[Ticket], lane: Lane = M) -> list[Ticket]:
    """All that wait, as they get the one place, each giving it back at once."""
    tickets = []
    while ticket := turns.next(lane):
        tickets.append(ticket)
        turns.give_back(lane, ticket.who)
    return tickets


def names(tickets: Iterable[Ticket]) -> str:
    return "".join(each.who for each in tickets)


# ── turns ──


def test_identities_take_turns() -> None:
    turns, _ = waiting((who, False) for who in "aaaabbc")
    assert names(served(turns)) == "abcabaa"


def test_one_call_waits_for_one_of_a_thousand() -> None:
    turns, _ = waiting([("hog", False)] * 1000)
    turns.add(one := Ticket(M, "one", False))
    assert turns.ranks()[one] == 1
    assert served(turns)[1] is one


def test_an_identity_s_own_calls_go_in_order_of_arrival_those_that_return_first() -> None:
    turns, (a, b, c, d) = waiting([("a", False), ("a", True), ("a", False), ("a", True)])
    assert served(turns) == [b, d, a, c]


def test_what_returns_does_not_go_before_other_identities() -> None:
    turns, _ = waiting([("a", False), ("b", False), ("b", True), ("b", True)])
    assert names(served(turns)) == "abbb"


def test_who_was_served_last_comes_last() -> None:
    turns, _ = waiting([("a", False), ("a", False), ("b", False)])
    assert names([turns.next(M) or pytest.fail("a place is free")]) == "a"
    turns.add(Ticket(M, "c", False))
    turns.give_back(M, "a")
    assert names(served(turns)) == "bac"


@given(arrivals)
def test_the_order_is_known_beforehand(arrived: list[tuple[str, bool]]) -> None:
    turns, _ = waiting(arrived)
    foretold, ranks = list(turns.in_turn(M)), turns.ranks()
    assert served(turns) == foretold
    assert [ranks[each] for each in foretold] == list(range(len(arrived)))


@given(arrivals)
def test_clearing_returns_all_in_turn(arrived: list[tuple[str, bool]]) -> None:
    turns, _ = waiting(arrived)
    turns.add(other := Ticket(Lane("m", bounded=False), "ann", False))
    foretold = list(turns.in_turn(M))
    assert turns.clear(M) == foretold
    assert (len(turns), turns.count("ann"), turns.next(M)) == (1, 1, None)
    assert turns.next(other.lane) is other


# ── places ──


def test_a_free_place_is_taken_at_once_unless_somebody_waits() -> None:
    turns, (ticket,) = waiting([("a", False)], places=2)
    assert not turns.take(M, "b")
    assert turns.next(M) is ticket
    assert turns.take(M, "b")
    assert not turns.take(M, "b")
    turns.give_back(M, "a")
    assert turns.take(M, "b")


def test_without_bounds_there_is_always_room() -> None:
    beside = Lane("m", bounded=False)
    turns, tickets = waiting([("a", False)] * 3, beside, places=1)
    assert [turns.next(beside) for _ in tickets] == tickets
    assert all(turns.take(beside, "a") for _ in range(100))
    assert turns.take(M, "a")


def test_a_place_that_nobody_has_is_not_given_back() -> None:
    with pytest.raises(AssertionError):
        Turns[Ticket](PLACES).give_back(M, "a")


def test_who_has_all_places_that_it_may_have_is_passed_over_and_keeps_its_turn() -> None:
    turns = Turns[Ticket]({"m": 3, "other": 3}, lambda who: {"a": 1}.get(who, 0))
    assert turns.take(M, "a")
    assert not turns.take(M, "a")
    assert not turns.take(Lane("other"), "a"), "of all models together"
    assert turns.take(Lane("m", bounded=False), "a"), "what takes no place has no bound"
    turns.add(mine := Ticket(M, "a", False))
    assert turns.next(M) is None
    assert turns.take(M, "b"), "nobody waits who may go before"
    turns.add(other := Ticket(M, "b", False))
    assert turns.next(M) is other
    turns.give_back(M, "a")
    assert not turns.take(M, "b"), "now somebody does"
    assert turns.next(M) is mine


# ── a full queue ──


@pytest.mark.parametrize(
    ("queue", "newcomer", "loser"),
    [
        ("", "a", None),
        ("a", "a", None),
        ("aaa", "a", None),
        ("aaa", "b", 2),
        ("aaabb", "b", None),  # they would only change places
        ("aaaabb", "b", 3),
        ("abaca", "d", 4),
        ("abc", "d", None),
    ],
)
def test_the_one_who_waits_most_makes_room(queue: str, newcomer: str, loser: int | None) -> None:
    turns, tickets = waiting((who, False) for who in queue)
    assert turns.to_make_room(newcomer) is (None if loser is None else tickets[loser])


def test_what_returns_is_the_last_to_go() -> None:
    turns, tickets = waiting([("a", True), ("a", False), ("a", False), ("a", True)])
    assert turns.to_make_room("b") is tickets[2]
    for gone in tickets[1:3]:
        turns.remove(gone)
    turns.add(Ticket(M, "a", True))
    assert turns.to_make_room("b") in (tickets[0], tickets[3])


def test_who_waits_most_is_asked_over_all_models() -> None:
    turns, _ = waiting((who, False) for who in "aabb")
    turns.add(newest := Ticket(Lane("n"), "b", False))
    assert turns.to_make_room("c") is newest


# ── everything together ──


class Machine(RuleBasedStateMachine):
    """Turns beside a plain account of the same: dictionaries whose first identity is the next."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns[Ticket](PLACES, MOST.__getitem__)
        self.account: dict[Lane, dict[str, list[Ticket]]] = {lane: {} for lane in LANES}
        self.running: Counter[tuple[Lane, str]] = Counter()
        self.overtaken: dict[tuple[Lane, str], Counter[str]] = {}
        """By whom, and how often, each of those who wait was overtaken since it began to wait, or was served."""

    @property
    def all(self) -> list[Ticket]:
        return [each for lines in self.account.values() for line in lines.values() for each in line]

    def is_free(self, lane: Lane) -> bool:
        taken = sum(count for (other, _), count in self.running.items() if other == lane)
        return not lane.bounded or taken < PLACES[lane.model]

    def may_have(self, lane: Lane, who: str) -> bool:
        has = sum(count for (other, name), count in self.running.items() if name == who and other.bounded)
        return not lane.bounded or not MOST[who] or has < MOST[who]

    def first(self, lane: Lane) -> str | None:
        return next((who for who in self.account[lane] if self.may_have(lane, who)), None)

    @rule(lane=lanes, who=people, returning=st.booleans())
    def add(self, lane: Lane, who: str, returning: bool) -> None:
        self.turns.add(ticket := Ticket(lane, who, returning))
        line = self.account[lane].setdefault(who, [])
        line.insert(sum(each.returning for each in line) if returning else len(line), ticket)
        self.overtaken.setdefault((lane, who), Counter())

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.all))
        self.turns.remove(ticket)
        self.strike(ticket)

    @rule(lane=lanes, who=people)
    def take(self, lane: Lane, who: str) -> None:
        taken = self.turns.take(lane, who)
        assert taken is (self.is_free(lane) and self.may_have(lane, who) and self.first(lane) is None)
        self.running[lane, who] += taken

    @rule(lane=lanes)
    def next(self, lane: Lane) -> None:
        who, ticket, lines = self.first(lane), self.turns.next(lane), self.account[lane]
        if who is None or not self.is_free(lane):
            assert ticket is None
            return
        assert ticket is lines[who][0]
        self.running[lane, who] += 1
        lines[who] = lines.pop(who)
        self.strike(ticket)
        self.note_overtaking(lane, who)

    @precondition(lambda self: self.running.total())
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        lane, who = data.draw(st.sampled_from([each for each, count in self.running.items() if count]))
        self.turns.give_back(lane, who)
        self.running[lane, who] -= 1

    @rule(who=people)
    def make_room(self, who: str) -> None:
        counts = Counter(each.who for each in self.all)
        loser, most = self.turns.to_make_room(who), max(counts.values(), default=0)
        if loser is None:
            assert counts[who] + 1 >= most
            return
        assert counts[who] + 1 < counts[loser.who] == most
        assert not loser.returning or all(each.returning for each in self.all if each.who == loser.who)
        self.turns.remove(loser)
        self.strike(loser)

    def strike(self, ticket: Ticket) -> None:
        lines = self.account[ticket.lane]
        lines[ticket.who].remove(ticket)
        if not lines[ticket.who]:
            del lines[ticket.who], self.overtaken[ticket.lane, ticket.who]

    def note_overtaking(self, lane: Lane, served: str) -> None:
        for who in self.account[lane]:
            if who == served:
                self.overtaken[lane, who].clear()
                continue
            if MOST[who]:
                continue  # it may have been passed over
            self.overtaken[lane, who][served] += 1
            assert self.overtaken[lane, who][served] <= 1, "nobody goes twice while another waits"

    @invariant()
    def the_account_agrees(self) -> None:
        assert len(self.turns) == len(self.all)
        assert self.turns.ranks().keys() == set(self.all)
        for who in PEOPLE:
            assert self.turns.count(who) == sum(each.who == who for each in self.all)


TestEverythingTogether = Machine.TestCase
