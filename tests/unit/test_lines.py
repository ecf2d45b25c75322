"""The ring of an engine's last lines: bounded, numbered, and no trouble for whoever fills it."""

import asyncio

from vllmd.engine.lines import Lines


def texts(lines: Lines, count: int = 100) -> list[str]:
    return [each.text for each in lines.latest(count)]


def filled(count: int, **limits: int) -> Lines:
    lines = Lines(**limits)
    for number in range(1, count + 1):
        lines.add(f"line {number}")
    return lines


def test_there_is_nothing_at_first() -> None:
    assert (texts(Lines()), Lines().last) == ([], 0)


def test_the_latest_come_in_their_order() -> None:
    lines = filled(5)
    assert texts(lines, 2) == ["line 4", "line 5"]
    assert texts(lines, 0) == texts(lines, -1) == []
    assert [each.number for each in lines.latest(9)] == [1, 2, 3, 4, 5]


def test_it_is_bounded_in_lines_and_in_size() -> None:
    assert texts(filled(10, kept_lines=3)) == ["line 8", "line 9", "line 10"]
    assert texts(filled(9, kept_characters=14)) == ["line 8", "line 9"]
    lines = filled(3, kept_characters=10)
    lines.add("x" * 100)
    assert texts(lines) == ["x" * 100]
    lines.add("y")
    assert texts(lines) == ["y"]


async def test_who_waits_is_woken_by_the_next_line() -> None:
    lines = filled(2)
    waiting = [asyncio.create_task(lines.after(2)) for _ in range(3)]
    await asyncio.sleep(0)
    lines.add("a")
    lines.add("b")
    for found, missed in await asyncio.gather(*waiting):
        assert ([each.text for each in found], missed) == (["a", "b"], 0)


async def test_who_comes_too_late_is_told_what_is_lost() -> None:
    found, missed = await filled(10, kept_lines=3).after(4)
    assert ([each.number for each in found], missed) == ([8, 9, 10], 3)


async def test_without_anybody_who_waits_nobody_is_woken() -> None:
    lines = filled(1)
    assert lines._more is None
    task = asyncio.create_task(lines.after(1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    lines.add("x")
    assert lines._more is None
