"""Interleaved rounds of a scenario, and what their medians are."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.machine import Cores
from bench.relays import Way
from bench.scenarios import Run, Scenario, run

MORE_ROUNDS = 2
"""So often those are measured again that have too few runs that count."""


FEWEST_STREAMS = 512
"""Among fewer, what a process needs anyhow would be shared out."""


@dataclass(frozen=True)
class Figures:
    """What is known of one relay in one scenario.

    Args:
        runs: all of them, in order.
        wanted: how many of them should count.
        direct: the same load without a relay; None for the direct way itself.
    """

    way: Way
    scenario: Scenario
    runs: tuple[Run, ...]
    wanted: int
    direct: "Figures | None"

    @property
    def clean(self) -> tuple[Run, ...]:
        """The runs that count."""
        return tuple(each for each in self.runs if not each.complaint)

    @property
    def is_sure(self) -> bool:
        """Whether enough runs count; if not, the medians are of those there are, or of all."""
        return len(self.clean) >= self.wanted

    @property
    def is_whole(self) -> bool:
        """Whether nothing was lost in any run."""
        return all(each.is_whole for each in self.runs)

    @property
    def kib_per_stream(self) -> float | None:
        """What an open stream costs the processes. Only their first run tells: afterwards they keep what they had."""
        if self.way.idle is None or self.scenario.connections < FEWEST_STREAMS:
            return None
        return (self.runs[0].own_kib - self.way.idle.own_kib) / self.scenario.connections

    def median(self, figure: Callable[[Run], float]) -> float:
        """The median of a figure over the runs that count, or over all if none does."""
        return statistics.median(figure(each) for each in self.clean or self.runs)

    @property
    def cpu(self) -> float:
        """CPU seconds for a million events."""
        return self.median(lambda each: each.cpu_s_per_million)

    @property
    def spread(self) -> float:
        """How far the runs that count are apart: half the way from the least to the most, as a part of the median."""
        all_cpu = [each.cpu_s_per_million for each in self.clean or self.runs]
        return (max(all_cpu) - min(all_cpu)) / 2 / self.cpu if self.cpu else 0.0

    @property
    def p50_us(self) -> float:
        return self.median(lambda each: each.p50_us)

    @property
    def p99_us(self) -> float:
        return self.median(lambda each: each.p99_us)

    @property
    def added_p50_us(self) -> float:
        """What the relay adds to the direct way's latency."""
        return self.p50_us - (self.direct.p50_us if self.direct else 0)

    @property
    def added_p99_us(self) -> float:
        return self.p99_us - (self.direct.p99_us if self.direct else 0)


Measured = Mapping[str, Mapping[str, Figures]]
"""Figures by scenario and way."""


def measure(scenario: Scenario, ways: Sequence[Way], window_s: float, wanted: int, cores: Cores) -> dict[str, Figures]:
    """Runs a scenario over all ways in turn, so that all see the same noise, until enough runs count."""
    found: dict[str, list[Run]] = {way.name: [] for way in ways}
    for number in range(wanted + MORE_ROUNDS):
        left = [way for way in ways if _is_wanting(found[way.name], wanted)]
        if left:
            print(f"{scenario.name:10} round {number + 1}:", end="", flush=True)
            for way in left if number % 2 == 0 else reversed(left):
                found[way.name].append(run(scenario, way, window_s, cores.load))
                print(f" {way.name}{'' if not found[way.name][-1].complaint else '(!)'}", end="", flush=True)
            print()
    return _figures(scenario, ways, found, wanted)


def _is_wanting(runs: Sequence[Run], wanted: int) -> bool:
    """Whether more runs are needed, and may help: one that was starved every time will be so again."""
    counting = sum(not each.complaint for each in runs)
    return counting < wanted and (counting > 0 or len(runs) <= wanted)


def _figures(
    scenario: Scenario, ways: Sequence[Way], found: Mapping[str, Sequence[Run]], wanted: int
) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for way in ways:
        direct = figures.get("direct")
        figures[way.name] = Figures(way, scenario, tuple(found[way.name]), wanted, direct)
    return figures
