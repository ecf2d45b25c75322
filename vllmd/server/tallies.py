"""What is counted for the metrics since the daemon began: numbers, and nothing that would cost a request its time.

How they are told is said in `metrics`; here is no word of Prometheus, so that its library is loaded by who asks only.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

from vllmd.lifecycle import State
from vllmd.server.ended import Ended
from vllmd.statuses import ModelStatus

IDENTITIES = 100
"""So many are counted by their names; all who come later are one."""

OTHERS = "other"

QUEUE_S = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
READY_S = (1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """How often values fell between bounds.

    Args:
        bounds: the upper ones, ascending; what is above the last is counted too.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value; one that is a bound lies below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[str, float]]:
        """Of each bound, and of infinity, how many values lie below it."""
        below, pairs = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            pairs.append((bound, float(below)))
        return pairs


class Served:
    """What was served of one model."""

    __slots__ = ("continuations", "duration", "first_token", "inter_token", "queue", "replays", "size_bytes")

    def __init__(self) -> None:
        self.queue = Histogram(QUEUE_S)
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.inter_token = Histogram(INTER_TOKEN_S)
        self.duration = Histogram(DURATION_S)
        self.size_bytes = self.replays = self.continuations = 0

    def add(self, record: Ended) -> None:
        """One more request has ended."""
        if record.was_let_in:  # many that were refused at once would make a full queue look quick
            self.queue.observe(record.queue_s)
            self.duration.observe(record.duration_s)
        self.size_bytes += record.size_bytes
        self.replays += record.replays
        self.continuations += record.continuations
        if record.first_token_s is not None:
            self.first_token.observe(record.first_token_s)
            if record.tokens_out > 1:
                after_s = record.duration_s - record.first_token_s
                self.inter_token.observe(after_s / (record.tokens_out - 1))


class Requests:
    """The requests that have ended, by model, identity and outcome, and their tokens.

    Args:
        most: identities that are counted by their names.
    """

    def __init__(self, most: int = IDENTITIES) -> None:
        self._most = most
        self._known: set[str] = set()
        self.by_outcome: Counter[tuple[str, str, str]] = Counter()
        self.tokens_in: Counter[tuple[str, str]] = Counter()
        self.tokens_out: Counter[tuple[str, str]] = Counter()
        self.of_model: dict[str, Served] = {}

    def add(self, record: Ended) -> None:
        """One more."""
        model, who = record.model, self._named(record.who)
        self.by_outcome[model, who, record.outcome] += 1
        if not model:
            return
        self.tokens_in[model, who] += record.tokens_in or 0
        self.tokens_out[model, who] += record.tokens_out
        if (served := self.of_model.get(model)) is None:
            served = self.of_model[model] = Served()
        served.add(record)

    def _named(self, who: str) -> str:
        """The name under which somebody is counted: there are only so many."""
        if who in self._known:
            return who
        if len(self._known) >= self._most:
            return OTHERS
        self._known.add(who)
        return who


class Lives:
    """What became of engines: how often they were started again, why, and how long starts and wakes took.

    Args:
        now: the monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: dict[str, ModelStatus] = {}
        self._began: dict[str, tuple[float, dict[str, Histogram]]] = {}
        self.restarts: Counter[tuple[str, str]] = Counter()
        self.ready: dict[str, Histogram] = {}
        self.awake: dict[str, Histogram] = {}

    def note(self, status: ModelStatus) -> None:
        """A model has changed. To be told of every change, in their order."""
        before = self._last.get(status.name, ModelStatus(status.name))
        self._last[status.name] = status
        if status.restarts > before.restarts:
            self.restarts[status.name, status.cause] += status.restarts - before.restarts
        # A model that a reload took away and another one brought back counts its generations anew.
        if status.state == State.STARTING and (before.state, before.generation) != (status.state, status.generation):
            is_wake = before.state in (State.DOZING, State.ASLEEP) and before.generation == status.generation
            self._began[status.name] = self._now(), self.awake if is_wake else self.ready
        if status.state == State.READY and before.state == State.STARTING and status.name in self._began:
            began_at, of_each = self._began[status.name]
            of_each.setdefault(status.name, Histogram(READY_S)).observe(self._now() - began_at)


class Tallies:
    """All that is counted."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.lives = Lives()
        self.lag = Histogram(LAG_S)
