"""The diagram in ARCHITECTURE.md is the table's."""

from pathlib import Path

from diagram import mermaid

from vllmd.lifecycle import Load, State, Timer
from vllmd.transitions import TRANSITIONS, Row, step

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- diagram: python tests/diagram.py -->", "<!-- /diagram -->"


def test_the_architecture_shows_the_table_as_it_is() -> None:
    text = ARCHITECTURE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1, f"{ARCHITECTURE.name} needs {BEGIN} … {END}"
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == mermaid(TRANSITIONS), "run:  python tests/diagram.py"


def test_every_row_is_drawn() -> None:
    row = Row(lambda engine, event, policy: step(engine, event, policy), (State.READY, State.FAILED))
    drawn = mermaid({(State.STOPPED, Load): row, (State.STARTING, Timer.STALL): row, (State.STARTING, Load): row})
    assert drawn.splitlines()[2:-1] == [
        "    [*] --> stopped",
        "    stopped --> ready: load",
        "    stopped --> failed: load",
        "    starting --> ready: stall timer, load",
        "    starting --> failed: stall timer, load",
    ]


def test_every_state_is_drawn() -> None:
    drawn = mermaid(TRANSITIONS)
    assert all(f" {state} --> " in drawn and f" --> {state}" in drawn for state in State)
