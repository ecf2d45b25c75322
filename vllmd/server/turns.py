"""Whose turn it is: the places in the engines, and who waits for one. Decided without a clock and without a loop.

Identities that wait for the same model take turns, however many calls each of them has; its own go in order of arrival,
those first that an engine had before. So one client with a thousand calls delays another's first one by one place. An
identity that has as many places as it may have is passed over.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar


class Lane(NamedTuple):
    """What is waited for together.

    Args:
        model: the model's name.
        bounded: whether it is one of the model's places; else it is only the engine, which has room for any number.
    """

    model: str
    bounded: bool = True


@dataclass(eq=False)
class Ticket:
    """The claim of one call.

    Args:
        lane: to what.
        who: whose it is.
        returning: whether an engine had the call before; it then goes before its identity's new ones.
    """

    lane: Lane
    who: str
    returning: bool


T = TypeVar("T", bound=Ticket)


class Line(Generic[T]):
    """The tickets of one identity in one lane, in the order in which they go. Every change costs the same."""

    def __init__(self) -> None:
        # Ordered dictionaries: in a plain one, finding the first entry takes longer with every one that has left.
        self._parts: dict[bool, OrderedDict[T, None]] = {True: OrderedDict(), False: OrderedDict()}

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def __iter__(self) -> Iterator[T]:
        for part in self._parts.values():
            yield from part

    def add(self, ticket: T) -> None:
        """Puts it behind those that return, and if it does not, behind all."""
        self._parts[ticket.returning][ticket] = None

    def remove(self, ticket: T) -> None:
        """Takes it out, wherever it stands."""
        del self._parts[ticket.returning][ticket]


class Turns(Generic[T]):
    """The places of all models, and the tickets that wait for them.

    Args:
        places: model → how many calls may be in its engine at once.
        most: identity → how many places it may have, of all models together; 0 for any number.
    """

    def __init__(self, places: Mapping[str, int], most: Callable[[str], int] = lambda who: 0) -> None:
        self._places = dict(places)
        self._most = most
        self._taken: Counter[Lane] = Counter()
        self._running: Counter[str] = Counter()
        self._lines: dict[Lane, OrderedDict[str, Line[T]]] = {}
        """Of each lane the identities that wait, the one first whose turn is the next."""
        self._own: dict[str, OrderedDict[T, None]] = {}
        """Of each identity all that waits: first what returns, then the rest in order of arrival."""
        self._count = 0

    def reconfigure(self, places: Mapping[str, int]) -> None:
        """Other numbers of places. Where they are fewer than are taken, nobody has to leave; a model that is gone keeps
        its own for whoever is still there."""
        self._places |= places

    def __len__(self) -> int:
        """How many tickets wait."""
        return self._count

    def is_waited_for(self, lane: Lane) -> bool:
        """Whether any ticket waits in a lane."""
        return bool(self._lines.get(lane))

    def count(self, who: str) -> int:
        """How many tickets of one identity wait."""
        return len(self._own.get(who, ()))

    # ── places ──

    def take(self, lane: Lane, who: str) -> bool:
        """Takes a place for somebody who has not waited; False if none is free, or somebody waits who may have it."""
        if not self._is_free(lane) or not self.may_have(lane, who):
            return False
        if self._count and self._first(lane) is not None:
            return False
        self._give(lane, who)
        return True

    def give_back(self, lane: Lane, who: str) -> None:
        """Frees a place that `take` or `next` gave."""
        assert self._taken[lane] > 0, f"a place of {lane.model} was given back twice"
        self._taken[lane] -= 1
        if lane.bounded:
            self._running[who] -= 1
            if not self._running[who]:
                del self._running[who]

    def next(self, lane: Lane) -> T | None:
        """The ticket whose turn it is: it waits no longer, and has a place. None if none waits, or no place is free."""
        if not self._is_free(lane) or (who := self._first(lane)) is None:
            return None
        lines = self._lines[lane]
        ticket = next(iter(lines[who]))
        lines.move_to_end(who)
        self.remove(ticket)
        self._give(lane, who)
        return ticket

    def may_have(self, lane: Lane, who: str) -> bool:
        """Whether an identity has fewer places than it may have."""
        most = self._most(who) if lane.bounded else 0
        return not most or self._running[who] < most

    def _first(self, lane: Lane) -> str | None:
        """The identity whose turn it is, of those that may have one more place."""
        return next((who for who in self._lines.get(lane, ()) if self.may_have(lane, who)), None)

    def _give(self, lane: Lane, who: str) -> None:
        self._taken[lane] += 1
        if lane.bounded:
            self._running[who] += 1

    def _is_free(self, lane: Lane) -> bool:
        return not lane.bounded or self._taken[lane] < self._places[lane.model]

    # ── tickets ──

    def add(self, ticket: T) -> None:
        """Lets it wait. An identity that did not wait in this lane comes last in the round."""
        self._lines.setdefault(ticket.lane, OrderedDict()).setdefault(ticket.who, Line()).add(ticket)
        own = self._own.setdefault(ticket.who, OrderedDict())
        own[ticket] = None
        if ticket.returning:
            own.move_to_end(ticket, last=False)
        self._count += 1

    def remove(self, ticket: T) -> None:
        """Lets it wait no longer."""
        lines, own = self._lines[ticket.lane], self._own[ticket.who]
        lines[ticket.who].remove(ticket)
        if not lines[ticket.who]:
            del lines[ticket.who]
        del own[ticket]
        if not own:
            del self._own[ticket.who]
        self._count -= 1

    def clear(self, lane: Lane) -> list[T]:
        """Lets nobody wait in a lane any longer; returns who did, in turn."""
        tickets = list(self.in_turn(lane))
        for ticket in tickets:
            self.remove(ticket)
        return tickets

    def in_turn(self, lane: Lane) -> Iterator[T]:
        """Those that wait in a lane, in the order in which `next` would return them."""
        ahead = deque(map(iter, self._lines.get(lane, {}).values()))
        while ahead:
            line = ahead.popleft()
            for ticket in line:
                yield ticket
                ahead.append(line)
                break

    def ranks(self) -> dict[T, int]:
        """Of each ticket, how many go before it."""
        return {ticket: rank for lane in self._lines for rank, ticket in enumerate(self.in_turn(lane))}

    def to_make_room(self, who: str) -> T | None:
        """Which ticket is to go so that a new one of `who` can wait in a full queue; None if the new one is to go.

        The identity that waits most loses its newest, one that returns last of all. Where nobody would wait more than
        `who` with the new one, nobody loses for it: the two could displace each other for ever.
        """
        most = max(self._own.values(), key=len, default=OrderedDict[T, None]())
        return next(reversed(most)) if self.count(who) + 1 < len(most) else None
