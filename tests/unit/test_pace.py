"""How fast, and how long still: by what happened of late."""

from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.pace import LEAST_S, WINDOW_S, Pace


def pace_of(*samples: tuple[float, int]) -> Pace:
    pace = Pace()
    for now, done in samples:
        pace = pace.after(now, done)
    return pace


def test_nothing_is_guessed_from_too_little() -> None:
    assert Pace().per_s(5.0) is None
    assert pace_of((0, 0), (LEAST_S / 2, 100)).left_s(LEAST_S / 2, 1000) is None
    assert pace_of((0, 0), (10, 100)).left_s(10, None) is None, "nobody knows the whole"


def test_a_steady_pace() -> None:
    pace = pace_of(*((second, 100 * second) for second in range(11)))
    assert (pace.per_s(10), pace.left_s(10, 3000)) == (100, 20)
    assert pace.left_s(10, 900) == 0, "never less than nothing"


def test_what_was_long_ago_counts_no_more() -> None:
    slow = [(float(second), second) for second in range(100)]
    fast = [(100.0 + second, 100 + 1000 * second) for second in range(int(WINDOW_S) + 2)]
    rate = pace_of(*slow, *fast).per_s(101 + WINDOW_S)
    assert rate is not None
    assert 900 < rate <= 1000


def test_standing_still_shows() -> None:
    pace = pace_of((0, 0), (10, 1000))
    assert pace.per_s(10) == 100
    assert pace.per_s(20) == 50, "though nothing was reported since"
    still = pace_of(*((float(second), 1000) for second in range(60)))
    assert (still.per_s(60), still.left_s(60, 5000)) == (0, None)


def test_less_than_before_is_a_new_beginning() -> None:
    assert pace_of((0, 0), (10, 1000), (11, 10)).per_s(11) is None


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 10**9)), max_size=200))
def test_it_remembers_little_and_no_rate_is_negative(steps: list[tuple[float, int]]) -> None:
    pace, now, done = Pace(), 0.0, 0
    for passed, more in steps:
        now, done = now + passed, done + more
        pace = pace.after(now, done)
        rate = pace.per_s(now)
        assert rate is None or rate >= 0
        assert len(pace.samples) < 2 * WINDOW_S / 0.5 + 3
