"""From what clients saw of swaps to a table in Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEAD = """| the model that is asked for | first token after | the first time | the other one keeps, GPU | main memory |
|---|---|---|---|---|"""
WAYS = {
    "1": "sleeps at level 1, the other one falls asleep",
    "2": "sleeps at level 2, the other one falls asleep",
    "0": "is not loaded, the other one ends",
}


def markdown(pairs: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, as far as it is known.

    Args:
        pairs: level → what was noted of its pair.
    """
    return "\n".join([HEAD, *_rows(pairs)])


def _rows(pairs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    warm = [pair["warm_first_s"] for pair in pairs.values() if "warm_first_s" in pair]
    if warm:
        yield f"| is in memory | {min(warm) * 1e3:.0f} ms | – | – | – |"
    for level, pair in pairs.items():
        swaps: Sequence[Mapping[str, Any]] = pair.get("swaps", ())
        first: Sequence[Mapping[str, Any]] = pair.get("first", ())
        every = swaps or [*pair.get("start_beside", ()), *first]
        if every:
            keeps = f"{_gib(every, 'gpu_out')} | {_gib(every, 'host_out')}"
            before = f"{first[0]['first_s']:.1f} s" if swaps and first else "–"
            yield f"| {WAYS[level]} | {_spread(every)} | {before} | {keeps} |"


def _spread(swaps: Sequence[Mapping[str, Any]]) -> str:
    """The median, and the least and the most of so many."""
    seconds = sorted(each["first_s"] for each in swaps)
    return f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}, {len(seconds)} swaps)"


def _gib(swaps: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{max(each[key] for each in swaps) / 1024:.1f} GiB"
