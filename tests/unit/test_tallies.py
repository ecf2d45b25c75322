"""What is counted: in buckets as Prometheus wants them, and with names that cannot become too many."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.server.ended import Ended
from vllmd.server.outcomes import Outcome
from vllmd.server.snapshot import taken, without_names
from vllmd.server.tallies import OTHERS, Histogram, Lives, Requests, Tallies
from vllmd.statuses import ModelStatus


def record(who: str = "uid:0", model: str = "m", **more: Any) -> Ended:
    return Ended("id", who, model, "/v1/completions", Outcome.FINISHED, 200, tokens_in=3, tokens_out=11)._replace(
        **more
    )


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_lies_below_each_bound(values: list[float]) -> None:
    bounds, histogram = (0.5, 1.0, 10.0), Histogram((0.5, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    below = [sum(value <= bound for value in values) for bound in bounds]
    assert histogram.cumulated() == [*zip(map(str, bounds), below, strict=True), ("+Inf", len(values))]
    assert histogram.sum == pytest.approx(sum(values))


def test_identities_beyond_a_number_are_one() -> None:
    requests = Requests(most=3)
    for number in [*range(1000), 1]:
        requests.add(record(f"uid:{number}"))
    assert requests.by_outcome == {
        ("m", "uid:0", "finished"): 1,
        ("m", "uid:1", "finished"): 2,
        ("m", "uid:2", "finished"): 1,
        ("m", OTHERS, "finished"): 997,
    }
    assert requests.tokens_in["m", OTHERS] == 3 * 997
    assert requests.tokens_out["m", "uid:1"] == 22


def test_what_was_refused_unread_has_no_times() -> None:
    requests = Requests()
    requests.add(record(model=""))
    assert requests.by_outcome == {("", "uid:0", "finished"): 1}
    assert not requests.of_model
    assert not requests.tokens_out


def test_what_was_refused_at_once_has_none_either() -> None:
    requests = Requests()
    for queue_s in (0.0, 0.0, 30.0):
        refusal = record(outcome=Outcome.OVERLOADED, was_let_in=queue_s > 0)
        requests.add(refusal._replace(queue_s=queue_s, duration_s=queue_s))
    assert requests.by_outcome["m", "uid:0", "overloaded"] == 3
    served = requests.of_model["m"]
    for each in (served.queue, served.duration):
        assert (each.sum, each.cumulated()[-1]) == (30.0, ("+Inf", 1.0))


def test_the_time_between_tokens_is_the_mean_of_an_answer() -> None:
    requests = Requests()
    requests.add(record(first_token_s=1.0, duration_s=6.0))
    requests.add(record(first_token_s=1.0, duration_s=6.0, tokens_out=1))
    requests.add(record(duration_s=6.0))
    served = requests.of_model["m"]
    assert served.inter_token.sum == pytest.approx(0.5)
    assert (served.first_token.sum, served.duration.sum) == (2.0, 18.0)


def test_others_are_not_named_to_everybody() -> None:
    tallies = Tallies()
    for who in ("uid:1", "uid:2", "uid:3", "uid:2"):
        tallies.requests.add(record(who))
    shown = without_names(taken({}, 1, tallies), "uid:2")
    assert shown.by_outcome == {("m", OTHERS, "finished"): 2, ("m", "uid:2", "finished"): 2}
    assert shown.tokens_out == {("m", OTHERS): 22, ("m", "uid:2"): 22}


def test_restarts_by_their_cause_and_starts_by_their_length() -> None:
    clock = iter(range(0, 1000, 10))
    lives = Lives(lambda: float(next(clock)))
    story = [
        ModelStatus("m", state="starting", generation=1),
        ModelStatus("m", state="starting", generation=1, phase="loading weights"),
        ModelStatus("m", state="ready", generation=1),
        ModelStatus("m", state="backoff", generation=1, cause="out of memory"),
        ModelStatus("m", state="starting", generation=2, restarts=1, cause="out of memory"),
        ModelStatus("m", state="backoff", generation=2, restarts=1, cause="killed"),
        ModelStatus("m", state="starting", generation=3, restarts=2, cause="killed"),
        ModelStatus("m", state="ready", generation=3, restarts=2, cause="killed"),
        ModelStatus("m", state="unhealthy", generation=3, restarts=2, cause="killed"),
        ModelStatus("m", state="ready", generation=3, restarts=2, cause="killed"),
        ModelStatus("adopted", state="unhealthy", generation=7, restarts=0),
        ModelStatus("adopted", state="ready", generation=7, restarts=0),
    ]
    for status in story:
        lives.note(status)
    assert lives.restarts == {("m", "out of memory"): 1, ("m", "killed"): 1}
    assert (lives.ready["m"].sum, lives.ready["m"].cumulated()[-1]) == (20.0, ("+Inf", 2.0))
    assert lives.ready.keys() == {"m"}


def test_a_wake_is_no_start() -> None:
    clock = iter(range(0, 1000, 10))
    lives = Lives(lambda: float(next(clock)))
    for state in ("starting", "ready", "dozing", "asleep", "starting", "ready", "dozing", "starting", "ready"):
        lives.note(ModelStatus("m", state=state, generation=1))
    assert (lives.ready["m"].sum, lives.awake["m"].sum) == (10.0, 20.0)


def test_a_model_that_comes_back_by_a_reload_begins_anew() -> None:
    clock = iter(range(0, 1000, 10))
    lives = Lives(lambda: float(next(clock)))
    for _ in range(2):
        for state in ("starting", "ready", "stopping", "stopped"):
            lives.note(ModelStatus("m", state=state, generation=1))
    assert (lives.ready["m"].sum, lives.ready["m"].cumulated()[-1]) == (20.0, ("+Inf", 2.0))
