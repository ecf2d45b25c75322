"""What is asked of each relay, one run of it, and whether that run counts."""

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from bench.compiled import program
from bench.relays import NAMES, Way

LEAST_READS_PER_EVENT = 0.97
"""Below it the clients saw joined events: the relay was starved, and looks cheaper than it is."""

MOST_STEAL = 0.03
"""The part of the machine's time that the host may take."""

LEAST_OF_WINDOW = 0.5
"""What must be left of the window when the last stream has begun."""

WITHOUT_UNIX = tuple(name for name in NAMES if name != "vllmd-unix")
FIVE = NAMES[:5]


@dataclass(frozen=True)
class Scenario:
    """A load.

    Args:
        connections: streams, or kept-alive connections, open at once.
        rate_per_s: tokens of each stream; in churn, requests of all connections together.
        ramp_s: seconds in which the connections are opened and say their first words; not measured.
        flags: of load.c.
        ways: the names of those that take part.
    """

    name: str
    what: str
    connections: int
    rate_per_s: float
    ramp_s: float
    flags: tuple[str, ...] = ()
    ways: tuple[str, ...] = FIVE

    @property
    def is_churn(self) -> bool:
        return "--churn" in self.flags

    @property
    def event(self) -> str:
        """What an event is here."""
        return "request" if self.is_churn else "event"


ALL = (
    Scenario("s1", "1 stream of 100 tokens/s", 1, 100, 0.2, ways=NAMES),
    Scenario("s64", "64 streams of 50 tokens/s", 64, 50, 0.4, ways=NAMES),
    Scenario("sync64", "the same, all streams in step", 64, 50, 0.4, ("--sync",), WITHOUT_UNIX),
    Scenario("s512", "512 streams of 50 tokens/s", 512, 50, 1.5, ways=(*FIVE, "vllmd-unix")),
    Scenario("idle2000", "2000 streams of 2 tokens/s", 2000, 2, 4.0),
    Scenario("churn", "500 one-token requests/s, kept-alive, in one piece", 16, 500, 0.2, ("--churn", "--whole")),
    Scenario("churn-sse", "the same, streamed", 16, 500, 0.2, ("--churn",), WITHOUT_UNIX),
)


@dataclass(frozen=True)
class Run:
    """What one run measured; the fields are those of load.c.

    Args:
        wanted_s: how long the window was to be.
        is_churn: whether requests were counted, which cannot be joined.
    """

    wanted_s: float
    is_churn: bool
    window_s: float
    events: int
    reads: int
    cpu_s: float
    waited_s: float
    steal: float
    p50_us: float
    p99_us: float
    resident_kib: int
    own_kib: int
    tokens_wanted: int
    tokens_got: int
    lost: int
    failed: int

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_s / self.events * 1e6 if self.events else 0.0

    @property
    def events_per_s(self) -> float:
        return self.events / self.window_s if self.window_s else 0.0

    @property
    def reads_per_event(self) -> float:
        return self.reads / self.events if self.events else 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every token came, in order, and every stream had its ending."""
        return self.tokens_got == self.tokens_wanted and not self.lost and not self.failed

    @property
    def complaint(self) -> str:
        """Why this run does not count; empty if it does."""
        if not self.is_whole:
            missing = self.tokens_wanted - self.tokens_got
            return f"{missing} tokens missing, {self.lost} connections lost, {self.failed} answers wrong"
        if not self.events or self.window_s < LEAST_OF_WINDOW * self.wanted_s:
            return "the streams were too slow to begin"
        if not self.is_churn and self.reads_per_event < LEAST_READS_PER_EVENT:
            return f"{self.reads_per_event:.2f} reads per event"
        return f"{self.steal:.0%} stolen by the host" if self.steal > MOST_STEAL else ""


def run(scenario: Scenario, way: Way, window_s: float, core: int) -> Run:
    """One run of a scenario over one way, the clients on that core."""
    argv: list[Any] = [program("load"), "--to", way.address, "--connections", scenario.connections]
    argv += ["--rate", scenario.rate_per_s, "--ramp", scenario.ramp_s, "--window", window_s, "--door", way.door]
    argv += ["--pids", ",".join(map(str, way.pids)), *scenario.flags, *(["--key", way.key] if way.key else [])]
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        out = subprocess.run([*map(str, argv)], stdout=subprocess.PIPE, check=True).stdout
    finally:
        os.sched_setaffinity(0, mine)
    return Run(window_s, scenario.is_churn, **json.loads(out))
