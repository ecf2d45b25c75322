"""What people read, and what programs compare."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.rounds import Figures, Measured
from bench.targets import Target

YARDSTICKS = ("nginx", "aiohttp", "floor")


def table(found: Mapping[str, Figures]) -> Iterator[str]:
    """A scenario: a line for each way, then the runs that did not count."""
    scenario = next(iter(found.values())).scenario
    unit = f"CPU s/M {scenario.event}s"
    yield f"\n{scenario.name}: {scenario.what}"
    yield f"  {'':13}{unit:>18} {'±':>4} {'÷nginx':>7} {'÷aiohttp':>8} {'÷floor':>7} {scenario.event + 's/s':>11}" + (
        f" {'added p50':>10} {'p99 µs':>8} {'KiB/stream':>10} {'runs':>6}"
    )
    for figures in found.values():
        yield _line(figures, found)
    for figures in found.values():
        yield from _discarded(figures)


def _line(figures: Figures, found: Mapping[str, Figures]) -> str:
    ratios = [_ratio(figures, found.get(name)) for name in YARDSTICKS]
    kib = "" if figures.kib_per_stream is None else f"{figures.kib_per_stream:.1f}"
    mark = "" if figures.is_sure else "  UNSURE"
    return (
        f"  {figures.way.name:13}{figures.cpu:18.1f} {figures.spread:4.0%} {ratios[0]:>7} {ratios[1]:>8} {ratios[2]:>7}"
        f" {figures.median(lambda each: each.events_per_s):11,.0f} {figures.added_p50_us:10.0f}"
        f" {figures.added_p99_us:8.0f} {kib:>10} {f'{len(figures.clean)}/{len(figures.runs)}':>6}{mark}"
    )


def _ratio(figures: Figures, other: Figures | None) -> str:
    return f"{figures.cpu / other.cpu:.2f}" if other and other.cpu and figures.way.name != "direct" else ""


def _discarded(figures: Figures) -> Iterator[str]:
    for number, each in enumerate(figures.runs, 1):
        if each.complaint:
            yield f"    discarded: {figures.way.name}, run {number}: {each.complaint}"


def fault_table(faults: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Stalled and leaving clients, killed engines."""
    if not faults:
        return
    yield "\nfaults"
    yield f"  {'':13}{'stalled: KiB':>13} {'flat':>5} {'in sockets':>11} {'gone: ms':>9} {'worst':>7}" + (
        f" {'in prefill':>11} {'worst':>7} {'engine killed: ms':>18} {'worst':>7}"
    )
    for name, found in faults.items():
        stalled = found["stalled"]
        yield f"  {name:13}{stalled['growth_kib']:13,} {'yes' if stalled['is_flat'] else 'NO':>5}" + (
            f" {stalled['engine_sent_kib']:11,}{_delay(found, 'gone_mid_stream', 9)}"
            f"{_delay(found, 'gone_in_prefill', 11)}{_delay(found, 'engine_killed', 18)}"
        )


def _delay(found: Mapping[str, Any], fault: str, width: int) -> str:
    if fault not in found:
        return ""
    return f" {found[fault]['median_ms']:{width}.2f} {found[fault]['worst_ms']:7.1f}"


def target_table(targets: list[Target]) -> Iterator[str]:
    """Every target with what was measured."""
    yield f"\n{'targets':46} {'measured':>12} {'goal':>8} {'must':>8}"
    for each in targets:
        figure = "–" if each.figure is None else f"{each.figure:.2f} {each.unit}".strip()
        yield f"  {each.what:44} {figure:>12} {each.goal:8.2f} {each.must:8.2f}  {each.verdict}"


def comparison(measured: Measured, earlier: Mapping[str, Any]) -> Iterator[str]:
    """Ratios to nginx, then and now: those compare between runs, times do not."""
    yield f"\n{'CPU ÷ nginx':24} {earlier['revision'] or 'then':>20} {'now':>8}"
    for scenario, ways in measured.items():
        then = earlier["scenarios"].get(scenario, {})
        for name in (each for each in ways if each.startswith("vllmd")):
            yield f"  {scenario:10} {name:12}{_past_ratio(then, name):>20} {_ratio(ways[name], ways.get('nginx')):>8}"


def _past_ratio(ways: Mapping[str, Any], name: str) -> str:
    if name not in ways or "nginx" not in ways:
        return ""
    return f"{ways[name]['cpu_s_per_million_events'] / ways['nginx']['cpu_s_per_million_events']:.2f}"


def write(
    path: Path,
    facts: Mapping[str, Any],
    measured: Measured,
    faults: Mapping[str, Mapping[str, Any]],
    targets: list[Target],
) -> None:
    """The same as JSON, written whole or not at all."""
    scenarios = {name: {way: _entry(figures) for way, figures in found.items()} for name, found in measured.items()}
    lines = [{"what": each.what, "figure": each.figure, "verdict": each.verdict} for each in targets]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps({**facts, "scenarios": scenarios, "faults": faults, "targets": lines}, indent=1) + "\n")
    whole.replace(path)


def _entry(figures: Figures) -> dict[str, Any]:
    idle, kib = figures.way.idle, figures.kib_per_stream
    return {
        "cpu_s_per_million_events": round(figures.cpu, 3),
        "cpu_s_per_million_events_of_runs": [round(each.cpu_s_per_million, 3) for each in figures.runs],
        "events_per_s": round(figures.median(lambda each: each.events_per_s), 1),
        "latency_us": {"p50": round(figures.p50_us, 1), "p99": round(figures.p99_us, 1)},
        "added_latency_us": {"p50": round(figures.added_p50_us, 1), "p99": round(figures.added_p99_us, 1)},
        "kib_per_stream": None if kib is None else round(kib, 2),
        "idle_resident_kib": idle.resident_kib if idle else None,
        "reads_per_event": round(figures.median(lambda each: each.reads_per_event), 4),
        "waited_s": round(figures.median(lambda each: each.waited_s), 4),
        "runs": len(figures.runs),
        "runs_that_count": len(figures.clean),
        "discarded": [each.complaint for each in figures.runs if each.complaint],
        "is_sure": figures.is_sure,
        "is_whole": figures.is_whole,
    }
