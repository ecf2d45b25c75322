"""All numbers of one moment, copied, so that a thread can make a page of them while they go on changing. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from vllmd.lifecycle import State
from vllmd.server.tallies import OTHERS, Histogram, Tallies

Who = Callable[[str], str]


@dataclass(frozen=True)
class ModelNow:
    """One model now.

    Args:
        state: its engine's.
        running, held: requests that its engine works on, and that wait.
        streams: those of them whose answers come as events.
        places: how many requests its engine works on at once.
        probes: result → how many health checks had it.
        has_told: whether its engine has told its own numbers.
    """

    state: State
    running: int
    held: int
    streams: int
    places: int
    probes: Mapping[str, int]
    has_told: bool


class Values(NamedTuple):
    """A histogram: of each bound how many values lie below it, and the sum of all."""

    buckets: list[tuple[str, float]]
    sum: float


@dataclass(frozen=True)
class ServedNow:
    """What was served of one model."""

    queue: Values
    first_token: Values
    inter_token: Values
    duration: Values
    size_bytes: int
    replays: int
    continuations: int


@dataclass(frozen=True)
class Snapshot:
    """All of it.

    Args:
        models: those that are configured, by name.
        queue_limit: how many requests may wait at once.
        served: model → what was served of it.
        by_outcome: (model, identity, outcome) → requests.
        tokens_in, tokens_out: (model, identity) → tokens.
        restarts: (model, cause) → restarts.
        ready, awake: model → how long its starts took, and its wakes.
        lag: how late the event loop was.
    """

    models: Mapping[str, ModelNow]
    queue_limit: int
    served: Mapping[str, ServedNow]
    by_outcome: Mapping[tuple[str, str, str], int]
    tokens_in: Mapping[tuple[str, str], int]
    tokens_out: Mapping[tuple[str, str], int]
    restarts: Mapping[tuple[str, str], int]
    ready: Mapping[str, Values]
    awake: Mapping[str, Values]
    lag: Values


def taken(models: Mapping[str, ModelNow], queue_limit: int, tallies: Tallies) -> Snapshot:
    """What is and was counted, as of now."""
    requests, lives = tallies.requests, tallies.lives
    served = {
        model: ServedNow(
            _values(each.queue),
            _values(each.first_token),
            _values(each.inter_token),
            _values(each.duration),
            each.size_bytes,
            each.replays,
            each.continuations,
        )
        for model, each in requests.of_model.items()
    }
    return Snapshot(
        models,
        queue_limit,
        served,
        dict(requests.by_outcome),
        dict(requests.tokens_in),
        dict(requests.tokens_out),
        dict(lives.restarts),
        {model: _values(each) for model, each in lives.ready.items()},
        {model: _values(each) for model, each in lives.awake.items()},
        _values(tallies.lag),
    )


def _values(histogram: Histogram) -> Values:
    return Values(histogram.cumulated(), histogram.sum)


def without_names(snapshot: Snapshot, own: str) -> Snapshot:
    """The same for somebody who is not to know who the others are."""

    def shown(who: str) -> str:
        return own if who == own else OTHERS

    by_outcome: Counter[tuple[str, str, str]] = Counter()
    for (model, who, outcome), count in snapshot.by_outcome.items():
        by_outcome[model, shown(who), outcome] += count
    tokens_in, tokens_out = (_shown(each, shown) for each in (snapshot.tokens_in, snapshot.tokens_out))
    return replace(snapshot, by_outcome=by_outcome, tokens_in=tokens_in, tokens_out=tokens_out)


def _shown(tokens: Mapping[tuple[str, str], int], shown: Who) -> Mapping[tuple[str, str], int]:
    summed: Counter[tuple[str, str]] = Counter()
    for (model, who), count in tokens.items():
        summed[model, shown(who)] += count
    return summed
