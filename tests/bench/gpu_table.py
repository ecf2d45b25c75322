"""From what streams saw to figures, and from figures to a table in Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from bench.gpu_load import Played, Seen

HEAD = """| streams | way | tokens/s | ÷ direct | first token p50, p99 ms | gap p50, p99 ms | vllmd, % of a core | vllmd, CPU s per million tokens |
|---|---|---|---|---|---|---|---|"""  # noqa: E501


@dataclass(frozen=True)
class Round:
    """One round of one way.

    Args:
        played: what the processes of clients saw.
        vllmd_cpu_s, engine_cpu_s: what vllmd and vLLM's API server used.
    """

    played: Sequence[Played]
    vllmd_cpu_s: float
    engine_cpu_s: float

    @property
    def seen(self) -> list[Seen]:
        return [seen for played in self.played for seen in played.seen]

    @property
    def failures(self) -> list[str]:
        return [seen.failure for seen in self.seen if seen.failure]

    @property
    def wall_s(self) -> float:
        """From the first request to the last event."""
        return max(seen.last_at for seen in self.seen) - min(seen.asked_at for seen in self.seen)

    @property
    def tokens(self) -> int:
        return sum(seen.tokens for seen in self.seen)

    @property
    def events(self) -> int:
        return sum(seen.events for seen in self.seen)

    @property
    def first_s(self) -> float:
        """The median time to the first token."""
        return statistics.median(seen.first_at - seen.asked_at for seen in self.seen)


@dataclass(frozen=True)
class Figures:
    """What all clean rounds of one way say together; a time is in ms, a percentage that of one core."""

    streams: int
    way: str
    rounds: int
    failed_streams: int
    failure: str
    tokens_per_s: float = 0.0
    rates: tuple[float, ...] = ()
    to_direct: float = 1.0
    first_p50: float = 0.0
    first_p99: float = 0.0
    first_max: float = 0.0
    gap_p50: float = 0.0
    gap_p99: float = 0.0
    gap_max: float = 0.0
    tokens_per_event: float = 0.0
    vllmd_percent: float = 0.0
    vllmd_s_per_million_tokens: float = 0.0
    vllmd_s_per_million_events: float = 0.0
    engine_percent: float = 0.0
    busiest_client_percent: float = 0.0

    def row(self) -> str:
        """A line of the table."""
        if not self.rounds:
            return f"| {self.streams} | {self.way} | failed: {self.failure[:100]} | | | | | |"
        cpu = f"{self.vllmd_percent:.1f} | {self.vllmd_s_per_million_tokens:.1f}" if self.way != "direct" else "– | –"
        ratio = "–" if self.way == "direct" else f"{self.to_direct:.3f}"
        first, gap = f"{self.first_p50:.2f}, {self.first_p99:.2f}", f"{self.gap_p50:.2f}, {self.gap_p99:.2f}"
        return f"| {self.streams} | {self.way} | {self.tokens_per_s:,.0f} | {ratio} | {first} | {gap} | {cpu} |"


def compare(streams: int, found: Mapping[str, Sequence[Round]]) -> list[Figures]:
    """The figures of each way, `direct` first."""
    direct = figures(streams, "direct", found["direct"], 0.0)
    through = [figures(streams, way, found[way], direct.tokens_per_s) for way in found if way != "direct"]
    return [direct, *through]


def figures(streams: int, way: str, rounds: Sequence[Round], direct: float) -> Figures:
    """One way's figures, of its clean rounds; `direct` is the rate to compare with, 0 where there is none."""
    clean = [each for each in rounds if not each.failures]
    failures = [failure for each in rounds for failure in each.failures]
    told = (streams, way, len(clean), len(failures), failures[0] if failures else "")
    return Figures(*told, **_measured(clean, direct)) if clean else Figures(*told)


def _measured(rounds: Sequence[Round], direct: float) -> dict[str, Any]:
    rates = [each.tokens / each.wall_s for each in rounds]
    rate = statistics.median(rates)
    firsts = sorted((seen.first_at - seen.asked_at) * 1e3 for each in rounds for seen in each.seen)
    gaps = sorted(gap * 1e3 for gap in chain.from_iterable(seen.gaps for each in rounds for seen in each.seen))
    return {
        "tokens_per_s": rate,
        "rates": tuple(round(each, 1) for each in rates),
        "to_direct": rate / direct if direct else 1.0,
        **_spread("first", firsts),
        **_spread("gap", gaps),
        **_cpu(rounds),
    }


def _cpu(rounds: Sequence[Round]) -> dict[str, float]:
    wall_s, tokens = sum(each.wall_s for each in rounds), sum(each.tokens for each in rounds)
    events = sum(each.events for each in rounds)
    vllmd_s, engine_s = sum(each.vllmd_cpu_s for each in rounds), sum(each.engine_cpu_s for each in rounds)
    return {
        "tokens_per_event": tokens / events,
        "vllmd_percent": 100 * vllmd_s / wall_s,
        "vllmd_s_per_million_tokens": vllmd_s / tokens * 1e6,
        "vllmd_s_per_million_events": vllmd_s / events * 1e6,
        "engine_percent": 100 * engine_s / wall_s,
        "busiest_client_percent": max(100 * played.cpu_s / each.wall_s for each in rounds for played in each.played),
    }


def _spread(name: str, ordered: Sequence[float]) -> dict[str, float]:
    parts = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name}_{label}": quantile(ordered, part) for label, part in parts.items()}


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which that part of them lies; 0 where there is none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def added_ms(direct: Sequence[Round], through: Sequence[Round]) -> list[float]:
    """Quartiles of what the way through adds to the first token, each round against the direct one beside it."""
    pairs = [(a, b) for a, b in zip(direct, through, strict=True) if not (a.failures or b.failures)]
    differences = sorted((b.first_s - a.first_s) * 1e3 for a, b in pairs)
    return [quantile(differences, part) for part in (0.25, 0.5, 0.75)]


def markdown(rows: Iterable[Figures]) -> str:
    """The table."""
    return "\n".join([HEAD, *(each.row() for each in rows)])


def as_json(rows: Iterable[Figures]) -> list[dict[str, Any]]:
    """The same and more, for a file."""
    return [asdict(each) for each in rows]
