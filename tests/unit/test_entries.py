"""From printed lines to entries: levels, tracebacks in one piece, bars that do not flood, bursts that lose no error."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.entries import MOST_BARS, ORDINARY, WINDOW_S, Entries, Entry

FAULTS = Path(__file__).parents[1] / "fixtures" / "faults"
INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR
HEAD = "(EngineCore pid=7) ERROR 11-27 11:30:17 [core.py:304] "


def entries(lines: Iterable[str], every_s: float = 0.0) -> list[Entry]:
    """All entries of lines that come at that pace."""
    made, now, found = Entries(), 100.0, list[Entry]()
    for line in lines:
        found += [*made.due(now), *made.feed(line, now)]
        now += every_s
    return [*found, *made.rest()]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("(APIServer pid=83) INFO 11-27 11:30:17 [launcher.py:304] up", INFO),
        ("(APIServer pid=83) WARNING 11-27 11:30:17 [x.py:1] Traceless", WARNING),
        ("(Worker_TP0 pid=83) ERROR 11-27 11:30:17 [x.py:1] bad", ERROR),
        ("ERROR 11-27 11:30:17 bad", ERROR),
        ("CRITICAL 11-27 11:30:17 [x.py:1] bad", logging.CRITICAL),
        ("DEBUG 11-27 11:30:17 [x.py:1] fine", logging.DEBUG),
        ("INFO:     Started server process [7]", INFO),
        ("WARNING:  Invalid HTTP request received.", WARNING),
        ("ERROR:    Exception in ASGI application", ERROR),
        ("ERRORS are not an error", INFO),
        ("plain", INFO),
    ],
)
def test_the_level_is_what_the_line_says(line: str, level: int) -> None:
    assert entries([line]) == [Entry(level, line)]


TRACEBACK = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "    g()", "ValueError: no"]
CHAINED = [
    *TRACEBACK,
    "During handling of the above exception, another exception occurred:",
    *TRACEBACK[:3],
    "KeyError",
]


@pytest.mark.parametrize("head", ["", HEAD])
@pytest.mark.parametrize("lines", [TRACEBACK, CHAINED])
def test_a_traceback_is_one_entry(head: str, lines: list[str]) -> None:
    around = [f"{head}before", *(head + line for line in lines), f"{head}after"]
    before, middle, after = entries(around)
    assert (before.text, after.text) == (around[0], around[-1])
    assert middle == Entry(ERROR, "\n".join([head + lines[0], *lines[1:]]))


def test_tracebacks_of_two_processes_are_not_mixed() -> None:
    heads = ["(EngineCore pid=7) ERROR 11-27 11:30:17 [a.py:1] ", "(Worker pid=8) ERROR 11-27 11:30:17 [a.py:1] "]
    found = entries([head + line for line in TRACEBACK for head in heads])
    assert [each.text for each in found] == ["\n".join([head + TRACEBACK[0], *TRACEBACK[1:]]) for head in heads]


def test_a_traceback_that_stops_is_told_after_a_moment() -> None:
    made = Entries()
    assert not list(made.feed(TRACEBACK[0], 1.0))
    assert made.waits
    assert not list(made.due(1.1))
    assert list(made.due(2.0)) == [Entry(ERROR, TRACEBACK[0])]
    assert not made.waits


def test_of_a_bar_the_first_and_the_last_state_of_each_second_are_told() -> None:
    bars = [f"Loading safetensors checkpoint shards: {percent}% Completed | 3/7" for percent in range(101)]
    found = entries(bars, every_s=0.05)
    assert found[0].text == bars[0]
    assert found[-1].text == bars[-1]
    assert 5 <= len(found) <= 8, "five seconds of it"
    assert len(entries(["Capturing (PIECEWISE):  43%|████▎  | 22/51", "Capturing (FULL):  43%|████▎  | 22/51"])) == 2


def test_what_only_looks_like_bars_is_bounded_like_any_other_line() -> None:
    """A client whose prompt is logged (enable-log-requests) may write what it likes."""
    made, now, told = Entries(), 1.0, 0
    for number in range(2 * ORDINARY):
        told += len(list(made.feed(f"Received request {number}: prompt: '5%| please'", now)))
        told += len(list(made.feed(f"Received request {number}: prompt: '6%| please'", now)))
    assert told == ORDINARY
    assert len(made._bars) <= MOST_BARS
    assert list(made.rest())[-1].text.endswith("are not logged")


def test_a_burst_keeps_its_errors_and_is_counted() -> None:
    burst = [
        f"ERROR 11-27 11:30:17 bad {n}" if n % 100 == 0 else f"INFO 11-27 11:30:17 line {n}" for n in range(100_000)
    ]
    found = entries(burst)
    assert sum(each.level == ERROR for each in found) == 1000
    assert sum(each.level == INFO for each in found) == ORDINARY
    assert found[-1] == Entry(WARNING, f"{99_000 - ORDINARY} more lines in 30 s, none an error, are not logged")


def test_after_a_burst_ordinary_lines_come_through_again() -> None:
    made = Entries()
    for number in range(ORDINARY + 3):
        list(made.feed(str(number), 1.0))
    assert made.waits
    assert [each.level for each in made.due(1.0 + WINDOW_S)] == [WARNING]
    assert not made.waits
    assert list(made.feed("again", 2.0 + WINDOW_S)) == [Entry(INFO, "again")]


@given(
    st.lists(st.sampled_from([*CHAINED, f"{HEAD}x", HEAD + TRACEBACK[0], f"{HEAD}  at", "INFO: x", " 3%|", "", "  x"]))
)
def test_no_line_is_lost_but_those_of_bars(lines: list[str]) -> None:
    text = "\n".join(each.text for each in entries(lines))
    for line in lines:
        assert "%|" in line or line.removeprefix(HEAD) in text


@pytest.mark.parametrize("recording", sorted(FAULTS.glob("*.txt")), ids=lambda path: path.stem)
def test_recorded_tracebacks_stay_together(recording: Path) -> None:
    """On the last lines of the real vLLM's failures: only the first of them may have lost its beginning."""
    lines = [line.partition("LOG| ")[2] for line in recording.read_text().splitlines() if "LOG| " in line]
    found = entries(lines)
    assert sum(each.text.lstrip().startswith('File "') for each in found) <= (0 if "Traceback" in lines[0] else 1)
    assert all(each.level == ERROR for each in found if 'File "' in each.text)
