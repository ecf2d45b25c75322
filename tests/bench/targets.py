"""The targets of the relay, and whether what was measured holds them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.rounds import Figures, Measured

PACED = ("s64", "s512", "sync64", "idle2000")


@dataclass(frozen=True)
class Target:
    """One line: a figure that should not be larger than `goal` and must not be larger than `must`.

    Args:
        figure: None where it was not measured.
        is_sure: whether all runs behind it counted.
    """

    what: str
    figure: float | None
    goal: float
    must: float
    unit: str = ""
    is_sure: bool = True

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        held = "goal" if self.figure <= self.goal else "held" if self.figure <= self.must else "NOT HELD"
        return held if self.is_sure else f"{held}?"


def targets(measured: Measured, faults: Mapping[str, Mapping[str, Any]]) -> Iterator[Target]:
    """All of them, in the order of performance.md."""
    for scenario in PACED:
        yield _ratio(measured, scenario, "vllmd", "nginx", 1.0, 1.35)
    for scenario in PACED:
        yield _ratio(measured, scenario, "vllmd", "aiohttp", 0.5, 0.65)
    for scenario in ("churn", "churn-sse"):
        yield _short_request(measured, scenario)
    yield _latency(measured)
    yield from (_ratio(measured, scenario, "vllmd-prompt", "vllmd", 2.0, 3.0) for scenario in ("s64", "sync64"))
    yield _of(measured, "idle2000", "memory per open stream", 15, 25, "KiB", lambda each: each.kib_per_stream)
    yield _idle(measured)
    vllmd = faults.get("vllmd", {})
    yield _fault(vllmd, "stalled", "growth_kib", "growth by a stalled client", 512, 1024, "KiB")
    yield _fault(vllmd, "gone_mid_stream", "median_ms", "client gone in mid-stream → closed", 2, 50, "ms")
    yield _fault(vllmd, "gone_in_prefill", "median_ms", "client gone in a silent prefill → closed", 2, 50, "ms")
    yield _fault(vllmd, "engine_killed", "median_ms", "engine killed → error event", 10, 200, "ms")


def _pair(measured: Measured, scenario: str, one: str, other: str) -> tuple[Figures, Figures] | None:
    ways = measured.get(scenario, {})
    return (ways[one], ways[other]) if one in ways and other in ways and ways[other].cpu else None


def _ratio(measured: Measured, scenario: str, one: str, other: str, goal: float, must: float) -> Target:
    what, pair = f"CPU per event, {one} ÷ {other}: {scenario}", _pair(measured, scenario, one, other)
    if pair is None:
        return Target(what, None, goal, must)
    return Target(what, pair[0].cpu / pair[1].cpu, goal, must, is_sure=pair[0].is_sure and pair[1].is_sure)


def _short_request(measured: Measured, scenario: str) -> Target:
    """The goal is 0.15 ms or four times nginx, whichever is easier."""
    what, pair = f"CPU per short request: {scenario}", _pair(measured, scenario, "vllmd", "nginx")
    if pair is None:
        return Target(what, None, 0.15, 0.15, "ms")
    nginx_ms = pair[1].cpu / 1e3
    sure = pair[0].is_sure and pair[1].is_sure
    return Target(what, pair[0].cpu / 1e3, max(0.15, 4 * nginx_ms), 7 * nginx_ms, "ms", sure)


def _latency(measured: Measured) -> Target:
    what, pair = "added latency p50 ÷ the floor's: s1", _pair(measured, "s1", "vllmd", "floor")
    if pair is None or pair[1].added_p50_us <= 0:
        return Target(what, None, 1.3, 2.0)
    sure = pair[0].is_sure and pair[1].is_sure
    return Target(what, pair[0].added_p50_us / pair[1].added_p50_us, 1.3, 2.0, is_sure=sure)


def _of(
    measured: Measured,
    scenario: str,
    what: str,
    goal: float,
    must: float,
    unit: str,
    figure: Callable[[Figures], float | None],
) -> Target:
    found = measured.get(scenario, {}).get("vllmd")
    return Target(what, figure(found) if found else None, goal, must, unit)


def _idle(measured: Measured) -> Target:
    ways = [figures.way for found in measured.values() for figures in found.values() if figures.way.name == "vllmd"]
    idle = ways[0].idle if ways else None
    return Target("idle resident size", idle.resident_kib / 1024 if idle else None, 40, 60, "MiB")


def _fault(found: Mapping[str, Any], fault: str, member: str, what: str, goal: float, must: float, unit: str) -> Target:
    return Target(what, found[fault][member] if fault in found else None, goal, must, unit)
