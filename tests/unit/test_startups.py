"""How long a start will take, judged by an earlier one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.phases import Phase, Progress
from vllmd.engine.startups import KEEP, Recorder, Startups, Timeline, key_of
from vllmd.statuses import PhaseSpan

EARLIER = Timeline({"starting up": 0.0, "loading weights": 30.0, "compiling": 50.0, "warming up": 90.0}, 100.0)


@pytest.mark.parametrize(
    ("progress", "in_phase_s", "left_s"),
    [
        (Progress(Phase.STARTING_UP), 0, 100),
        (Progress(Phase.STARTING_UP), 10, 90),
        (Progress(Phase.STARTING_UP), 500, 70),  # slower than last time: the phase will end any moment
        (Progress(Phase.LOADING_WEIGHTS, 0), 19, 70),  # where vLLM says how far it is, the clock does not count
        (Progress(Phase.LOADING_WEIGHTS, 50), 1, 60),
        (Progress(Phase.LOADING_WEIGHTS, 100), 0, 50),
        (Progress(Phase.WARMING_UP), 99, 0),
        (Progress(Phase.CAPTURING_GRAPHS), 1, None),  # a phase that the last start did not have
    ],
)
def test_what_is_left_is_read_off_the_earlier_start(
    progress: Progress, in_phase_s: float, left_s: float | None
) -> None:
    assert EARLIER.left_s(progress, in_phase_s) == left_s


@given(st.sampled_from(list(Phase)), st.none() | st.integers(0, 100), st.floats(0, 1e6))
def test_what_is_left_is_never_negative_nor_more_than_all(phase: Phase, percent: int | None, in_phase_s: float) -> None:
    left_s = EARLIER.left_s(Progress(phase, percent), in_phase_s)
    assert left_s is None or 0 <= left_s <= EARLIER.total_s


def test_a_recorder_notes_the_first_sign_of_each_phase() -> None:
    recorder = Recorder(100.0)
    recorder.note(Phase.STARTING_UP, 100.0)
    recorder.note(Phase.LOADING_WEIGHTS, 130.0)
    recorder.note(Phase.LOADING_WEIGHTS, 140.0)
    assert recorder.in_phase_s(145.0) == 15.0
    assert recorder.finish(150.0) == Timeline({"starting up": 0.0, "loading weights": 30.0}, 50.0)


def test_the_phase_that_goes_on_has_no_length_yet() -> None:
    recorder = Recorder(100.0)
    assert recorder.spans() == ()
    recorder.note(Phase.STARTING_UP, 100.0)
    recorder.note(Phase.LOADING_WEIGHTS, 130.0)
    assert recorder.spans() == (PhaseSpan("starting up", 0.0, 30.0), PhaseSpan("loading weights", 30.0, None))


def test_a_start_that_is_over_takes_no_longer_afterwards() -> None:
    recorder = Recorder(100.0)
    recorder.note(Phase.STARTING_UP, 100.5)
    recorder.end(140.0)
    recorder.end(900.0)  # the engine's own end, long after
    assert recorder.spans() == (PhaseSpan("starting up", 0.5, 39.5),)


@pytest.mark.parametrize("once", [Phase.INSTALLING, Phase.DOWNLOADING])
def test_a_start_that_will_not_be_repeated_is_not_remembered(once: Phase) -> None:
    recorder = Recorder(0.0)
    recorder.note(once, 1.0)
    assert recorder.finish(2.0) is None


def test_how_long_memory_was_waited_for_says_nothing_about_the_next_start() -> None:
    recorder = Recorder(0.0)
    recorder.note(Phase.WAITING_FOR_MEMORY, 1.0)
    recorder.note(Phase.STARTING_UP, 61.0)
    recorder.note(Phase.LOADING_WEIGHTS, 64.0)
    assert recorder.finish(70.0) == Timeline({"starting up": 0.0, "loading weights": 3.0}, 9.0)


def test_timelines_survive_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state/startups.json"
    Startups(path).remember("a", EARLIER)
    Startups(path).remember("b", Timeline({}, 1.0))
    assert Startups(path).recall("a") == EARLIER
    assert Startups(path).recall("c") is None


def test_the_oldest_timelines_make_way(tmp_path: Path) -> None:
    startups = Startups(tmp_path / "startups.json")
    for number in range(KEEP + 3):
        startups.remember(str(number), EARLIER)
    assert startups.recall("2") is None
    assert startups.recall("3") == EARLIER


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"a": 5}', '{"a": {"total": 1}}'])
def test_a_spoilt_file_costs_the_estimate_and_nothing_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "startups.json"
    path.write_text(content)
    assert Startups(path).recall("a") is None
    Startups(path).remember("a", EARLIER)
    assert Startups(path).recall("a") == EARLIER


def test_a_directory_that_cannot_be_written_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Startups(tmp_path / "file/startups.json").remember("a", EARLIER)


def test_other_arguments_are_another_start() -> None:
    assert key_of("vllm==1", "m", {"a": 1}) == key_of("vllm==1", "m", {"a": 1})
    assert key_of("vllm==1", "m", {"a": 1}) != key_of("vllm==1", "m", {"a": 2})
