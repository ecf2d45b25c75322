"""What was tried, and for how long."""

import time
from dataclasses import dataclass


@dataclass
class Tally:
    """A target and how many inputs it has had.

    Args:
        target: what was fed.
        by: what made the inputs.
        inputs: how many there were.
        answered: after how many of them the daemon answered the next request; None where there is no daemon.
    """

    target: str
    by: str
    inputs: int = 0
    answered: int | None = None

    def row(self) -> str:
        """A row of the table."""
        answered = "–" if self.answered is None else f"{self.answered:,}"
        return f"| {self.target} | {self.by} | {self.inputs:,} | {answered} |"


HEADING = "| what was fed | by | inputs | the next request was answered after |\n|---|---|---|---|"


class Until:
    """A deadline.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self._end
