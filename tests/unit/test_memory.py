"""The kernel's count of kills for memory."""

from vllmd.engine.memory import kills_since, oom_kills


def test_what_nobody_counted_then_is_not_known() -> None:
    assert kills_since(None) is None


def test_the_difference_is_told_and_none_where_nobody_counts_any_more() -> None:
    now = oom_kills()
    assert kills_since(0) == now
    assert kills_since(5) == (None if now is None else now - 5)
