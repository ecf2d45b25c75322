"""Who may be in memory, and who has to go. Decided without a clock, and without asking anybody.

An engine that is about to take memory makes a *bid*. Engines that have some, or will in a moment, are *residents*. Four
rules keep it fair, and keep models from chasing each other out of memory:

Room.  A bid is granted when every device has room for it, by its own count of what is free and by the sum of what the
residents claim. On a GPU one thing happens at a time, a start, a sleep or an end: vLLM measures there what a start
takes and what sleep frees, and ends if others take or free memory meanwhile.

Least recently used.  Only what somebody waits for makes others go: idle ones, the longest unused first. One with
running requests never goes. A bid that nobody waits for, and that has no room beside others, is withdrawn.

Turns.  A resident that is never idle keeps its memory for `turn_s` after it has become ready, and serves all that
come meanwhile: so requests that alternate between two models come in two batches. Then its new requests are held until
the running ones have ended. An idle one goes after `LINGER_S`: who asks one question after another is not interrupted.

First come.  Bids are served in order of arrival, those first that somebody waits for. A later one overtakes an earlier
one only on other devices.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from vllmd.lifecycle import State

LINGER_S = 1.0
"""Seconds without a request after which a resident counts as idle, where others wait for its memory."""

_GOING = (State.STOPPING, State.DOZING)


@dataclass(frozen=True)
class Resident:
    """An engine that has memory.

    Args:
        name: its model's.
        devices: what it serves from.
        claim: the bytes that it takes of each; 0 where nobody knows.
        state: as its supervisor says.
        running: requests that it works on.
        waiting: requests that wait for it, though it is ready: in a moment, or when others of their clients have ended,
            it will work on them.
        ready_at, used_at: when it became ready, and when its last request ended, in seconds of any clock.
        stays: whether vllmd never unloads it by itself.
        idle_unload_s: seconds without a request after which it goes though nobody waits; 0: never.
        is_gpu: whether its devices are GPUs.
    """

    name: str
    devices: frozenset[str]
    claim: int
    state: State
    running: int = 0
    waiting: int = 0
    ready_at: float = 0.0
    used_at: float = 0.0
    stays: bool = False
    idle_unload_s: float = 0.0
    is_gpu: bool = False

    @property
    def is_going(self) -> bool:
        """Whether its memory will be free by itself in a moment."""
        return self.state in _GOING

    @property
    def idle_since(self) -> float:
        """Since when it has had nothing to do; in the future if it has."""
        return math.inf if self.running or self.waiting else max(self.ready_at, self.used_at)

    @property
    def may_go(self) -> bool:
        """Whether it can be made to go at all: at once, or when its turn is over."""
        return self.state is State.ASLEEP or (self.state is State.READY and not self.stays)

    def goes_at(self, turn_s: float) -> float:
        """When it has to make room for others; those that sleep have nothing to lose but time. Whoever waits for one
        that has just become ready gets in, however short its turn."""
        if self.state is State.ASLEEP:
            return -math.inf
        return min(self.idle_since + LINGER_S, self.ready_at + max(turn_s, LINGER_S))


@dataclass(frozen=True)
class Bid:
    """An engine that wants memory.

    Args:
        name, devices, is_gpu: as of a resident.
        claim: the bytes that it will take of each device; 0 where nobody knows.
        entry: the bytes that have to be free for its start; vLLM asks for its whole share of a GPU.
        least: the bytes without which it cannot start, by the most cautious count.
        total, free: each device's memory, as the device says itself.
        since: when it was made, in seconds of the residents' clock.
        is_wanted: whether a request or an administrator waits for it, or a client that would not may soon come again.
        yields: whether it may be withdrawn until somebody asks for it.
    """

    name: str
    devices: frozenset[str]
    claim: int = 0
    entry: int = 0
    least: int = 0
    total: int = 0
    free: int = 0
    since: float = 0.0
    is_wanted: bool = False
    yields: bool = False
    is_gpu: bool = False


class Answer(StrEnum):
    """What becomes of a bid."""

    GRANTED = "granted"
    WAITS = "waits"
    YIELDS = "yields"
    SHORT = "short"
    """There is too little for comfort, of what others hold or of what there is: it may be tried."""
    HELD = "held"
    """Residents hold what it would need, and none of them can be made to go."""
    FULL = "full"
    """As many engines are in memory as may be, and none of them can be made to go."""


@dataclass(frozen=True)
class Rules:
    """What the administrator says.

    Args:
        max_models: engines that may have memory at once, those asleep not counted; 0: any number.
        turn_s: seconds that a resident may go on serving while others wait for its memory.
    """

    max_models: int = 0
    turn_s: float = 30.0


@dataclass(frozen=True)
class Decision:
    """What is to be done now.

    Args:
        answers: of each bid.
        closed: residents whose new requests are held, since they have to go.
        leave: residents that go now, each with the name of the bid that it goes for, or an empty one; none of them has
            a running request.
        again_at: when time alone may change something; infinite if it will not.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    leave: dict[str, str] = field(default_factory=dict)
    again_at: float = math.inf


def decide(bids: Iterable[Bid], residents: Iterable[Resident], rules: Rules, now: float) -> Decision:
    """Whose bids are granted, and who has to go for the others.

    Args:
        now: in seconds of the residents' clock.
    """
    present, waiting = list(residents), set[str]()
    decision = _idle_ones(present, now)
    present = _after(present, decision)
    for bid in sorted(bids, key=lambda each: (not each.is_wanted, each.since)):
        if bid.devices & waiting or (rules.max_models and waiting):
            answer, step = Answer.WAITS, Decision()
        else:
            answer, step = _consider(bid, present, rules, now)
        present = _after(present, step)
        if answer is Answer.GRANTED:
            present.append(Resident(bid.name, bid.devices, bid.claim, State.STARTING, is_gpu=bid.is_gpu))
        elif answer is Answer.WAITS:
            waiting |= bid.devices
        decision = _both(decision, replace(step, answers={bid.name: answer}))
    return decision


def _idle_ones(residents: Sequence[Resident], now: float) -> Decision:
    """Those go for whom nobody has asked for long."""
    timed = [each for each in residents if each.idle_unload_s and each.state is State.READY and not each.stays]
    ends = {each.name: min(each.idle_since, now) + each.idle_unload_s for each in timed}  # nobody tells who falls idle
    decision = Decision(again_at=min((end for end in ends.values() if end > now), default=math.inf))
    for each in timed:
        if ends[each.name] <= now and not _is_changing(each, _after(residents, decision)):
            decision = _both(decision, Decision(closed=frozenset({each.name}), leave={each.name: ""}))
    return decision


def _after(residents: Iterable[Resident], decision: Decision) -> list[Resident]:
    """The residents, when those have begun to go who go now."""
    return [replace(each, state=State.STOPPING) if each.name in decision.leave else each for each in residents]


def _both(one: Decision, other: Decision) -> Decision:
    return Decision(
        one.answers | other.answers,
        one.closed | other.closed,
        one.leave | other.leave,
        min(one.again_at, other.again_at),
    )


def _consider(bid: Bid, residents: Sequence[Resident], rules: Rules, now: float) -> tuple[Answer, Decision]:
    """What becomes of one bid, beside those residents."""
    staying = [each for each in residents if not each.is_going]
    if _is_changing(bid, residents):
        return Answer.WAITS, Decision()
    if _has_room(bid, residents, rules):
        return Answer.GRANTED, Decision()
    if _has_room(bid, staying, rules, residents):
        return Answer.WAITS, Decision()
    victims = _victims(bid, residents, rules) if bid.is_wanted else []
    if victims:
        return Answer.WAITS, _turn_out(victims, bid, rules, now)
    return _without(bid, staying, rules), Decision()


def _without(bid: Bid, residents: Sequence[Resident], rules: Rules) -> Answer:
    """What becomes of a bid for which nobody is made to go, as nobody waits for it or as it would not help."""
    rivals = residents if _is_full(residents, rules) else list(_beside(bid, residents))
    if not any(each.claim or _is_awake(each) for each in rivals):
        return Answer.SHORT
    short = _why_short(bid, residents, rules)
    if bid.is_wanted:
        unsettled = any(each.state in (State.STARTING, State.UNHEALTHY) for each in rivals)
        return Answer.WAITS if unsettled else short
    return Answer.YIELDS if bid.yields and short is not Answer.SHORT else short


def _why_short(bid: Bid, residents: Sequence[Resident], rules: Rules) -> Answer:
    """What keeps a bid out. What can start, if only just, is tried: a sum too cautious shall keep nobody out."""
    if _is_full(residents, rules):
        return Answer.FULL
    claimed = _claims(_beside(bid, residents))
    return Answer.HELD if claimed and (bid.entry or bid.least) > bid.total - claimed else Answer.SHORT


def _turn_out(victims: Sequence[Resident], bid: Bid, rules: Rules, now: float) -> Decision:
    """When all of them have to go, their new requests are held; when the last request has ended, they go.

    From a GPU one by one: those that come later take requests again meanwhile.
    """
    due = max(each.goes_at(rules.turn_s) for each in victims)
    if due > now:
        return Decision(again_at=due)
    names = frozenset(each.name for each in victims)
    if any(each.running for each in victims):
        return Decision(closed=names)
    going = victims[:1] if bid.is_gpu else victims
    return Decision(closed=names, leave={each.name: bid.name for each in going})


def _victims(bid: Bid, residents: Sequence[Resident], rules: Rules) -> list[Resident]:
    """Who has to go for a bid: nobody more than needed, and nobody at all if it would not help."""
    chosen = sorted((each for each in residents if each.may_go), key=_worth)
    if not _has_room_without(chosen, bid, residents, rules):
        return []
    for each in reversed(chosen):  # the last one is the first that may stay after all
        fewer = [one for one in chosen if one is not each]
        if _has_room_without(fewer, bid, residents, rules):
            chosen = fewer
    return chosen


def _has_room_without(gone: Sequence[Resident], bid: Bid, residents: Sequence[Resident], rules: Rules) -> bool:
    """Whether a bid has room when those have gone who are chosen, or are going anyway."""
    staying = [each for each in residents if not each.is_going and not any(each is one for one in gone)]
    return _has_room(bid, staying, rules, residents)


def _worth(resident: Resident) -> tuple[bool, bool, float]:
    """The first is the one to go: idle before busy, awake before asleep, the longest unused before others.

    Of busy ones the first to come: by their requests, which end all the time, each look would choose another one, and
    none of them would ever come to an end.
    """
    since = resident.ready_at if resident.running else max(resident.used_at, resident.ready_at)
    return bool(resident.running), resident.state is State.ASLEEP, since


def _has_room(bid: Bid, staying: Sequence[Resident], rules: Rules, present: Sequence[Resident] | None = None) -> bool:
    """Whether a bid has room beside those who stay, when the others of those who are present have gone."""
    if _is_full(staying, rules):
        return False
    gone = _claims(_beside(bid, present or staying)) - _claims(_beside(bid, staying))
    return not bid.claim or max(bid.claim, bid.entry) <= left(bid, staying, gone)


def left(bid: Bid, residents: Sequence[Resident], gone: int = 0) -> int:
    """The bytes of its devices that a bid may have beside those residents.

    Args:
        gone: what others hold, and will have given back.
    """
    return min(bid.free + gone - _not_taken(bid, residents), bid.total - _claims(_beside(bid, residents)))


def _not_taken(bid: Bid, residents: Iterable[Resident]) -> int:
    """What starts have been granted, and may not have taken yet."""
    return _claims(each for each in _beside(bid, residents) if each.state is State.STARTING)


def _is_changing(party: Bid | Resident, residents: Iterable[Resident]) -> bool:
    """Whether another one takes or frees memory of the same GPU."""
    changing = (each for each in residents if each.is_gpu and each.state in (State.STARTING, *_GOING))
    return any(each.devices & party.devices for each in changing)


def _is_full(residents: Iterable[Resident], rules: Rules) -> bool:
    return bool(rules.max_models) and sum(map(_is_awake, residents)) >= rules.max_models


def _beside(bid: Bid, residents: Iterable[Resident]) -> Iterator[Resident]:
    return (each for each in residents if each.devices & bid.devices)


def _claims(residents: Iterable[Resident]) -> int:
    return sum(each.claim for each in residents)


def _is_awake(resident: Resident) -> bool:
    return resident.state is not State.ASLEEP
