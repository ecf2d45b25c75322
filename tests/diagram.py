"""The state diagram of ARCHITECTURE.md, drawn from the table that decides: `python tests/diagram.py` prints it."""

import re
from collections.abc import Mapping

from vllmd.lifecycle import Exited, State, Timer
from vllmd.transitions import TRANSITIONS, Key, Row


def mermaid(transitions: Mapping[Key, Row]) -> str:
    """The table as a Mermaid state diagram, one arrow for each pair of states, labelled with all that leads over it."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), row in transitions.items():
        for target in row.leads_to:
            arrows.setdefault((state, target), []).append(_label(event))
    lines = [f"    {state} --> {target}: {', '.join(labels)}" for (state, target), labels in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {State.STOPPED}", *lines, "```"])


def _label(event: type | Timer) -> str:
    """`ProbeOk` → `probe ok`, `Timer.STALL` → `stall timer`."""
    if isinstance(event, Timer):
        return f"{event} timer"
    return "exit" if event is Exited else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event.__name__).lower()


if __name__ == "__main__":
    print(mermaid(TRANSITIONS))
