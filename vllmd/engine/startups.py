"""How long earlier starts took, so that the next one can say when it will be done.

A start is remembered as a timeline: when each phase began, and when the first token came. The same model with the same
arguments in the same environment takes about as long again, so the place of the present phase in the old timeline says
what is left. Starts that installed or downloaded something are not remembered: they will not be repeated. How long one
waited for memory is the others' doing, and left out.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllmd.engine.phases import Phase, Progress
from vllmd.statuses import PhaseSpan

log = logging.getLogger(__name__)

KEEP = 64
"""Timelines in the file; the oldest make way."""

ONCE_ONLY = (Phase.WAITING, Phase.INSTALLING, Phase.DOWNLOADING)


@dataclass(frozen=True)
class Timeline:
    """One start.

    Args:
        begun_s: phase → seconds from the start of the process to the phase's first sign.
        total_s: seconds from the start of the process to the first token.
    """

    begun_s: Mapping[str, float]
    total_s: float

    def left_s(self, progress: Progress, in_phase_s: float) -> float | None:
        """Seconds until the first token, judged by this timeline; None for a phase that it does not know.

        Args:
            progress: where the present start is.
            in_phase_s: how long it has been in that phase.
        """
        begun = self.begun_s.get(progress.phase)
        if begun is None:
            return None
        ends = min((each for each in self.begun_s.values() if each > begun), default=self.total_s)
        length = ends - begun
        done = min(in_phase_s, length) if progress.percent is None else length * progress.percent / 100
        return max(0.0, self.total_s - begun - done)


class Recorder:
    """Notes one start as it happens. Times are the event loop's, in seconds."""

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._begun_s: dict[str, float] = {}
        self._phase_at = now
        self._ended_at: float | None = None

    def note(self, phase: Phase, now: float) -> None:
        """A phase was seen; only its first sign counts."""
        if phase not in self._begun_s:
            self._begun_s[phase] = now - self._began_at
            self._phase_at = now

    def in_phase_s(self, now: float) -> float:
        """How long the present phase has lasted."""
        return now - self._phase_at

    def end(self, now: float) -> None:
        """The start is over, well or not; only the first end counts."""
        if self._ended_at is None:
            self._ended_at = now

    def spans(self) -> tuple[PhaseSpan, ...]:
        """Its phases in their order, each as long as it took; the last one has no length while the start goes on."""
        ended_s = None if self._ended_at is None else self._ended_at - self._began_at
        # Where nothing has begun there is an end too many.
        ends = [*list(self._begun_s.values())[1:], ended_s]
        return tuple(
            PhaseSpan(str(phase), round(begun_s, 3), None if end_s is None else round(end_s - begun_s, 3))
            for (phase, begun_s), end_s in zip(self._begun_s.items(), ends, strict=False)
        )

    def finish(self, now: float) -> Timeline | None:
        """The whole start, without the wait for memory; None if it did what is done only once."""
        if any(phase in self._begun_s for phase in ONCE_ONLY):
            return None
        waited_s = self._begun_s.get(Phase.STARTING_UP, 0.0) if Phase.WAITING_FOR_MEMORY in self._begun_s else 0.0
        own = {phase: at - waited_s for phase, at in self._begun_s.items() if phase != Phase.WAITING_FOR_MEMORY}
        return Timeline(own, now - self._began_at - waited_s)


class Startups:
    """The timelines in a file. A file that cannot be read or written costs the estimate and nothing else.

    Args:
        path: a JSON file; its directory is made when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, key: str) -> Timeline | None:
        """The last timeline of starts like this one."""
        try:
            entry = self._read()[key]
            begun_s = {str(phase): float(seconds) for phase, seconds in entry["begun_s"].items()}
            return Timeline(begun_s, float(entry["total_s"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def remember(self, key: str, timeline: Timeline) -> None:
        """Keeps a timeline; the file is replaced as a whole."""
        kept = {**{each: value for each, value in self._read().items() if each != key}, key: asdict(timeline)}
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(dict(list(kept.items())[-KEEP:]), indent=1))
            fresh.replace(self._path)
        except OSError as error:
            log.warning("cannot remember how long the start took: %s", error)

    def _read(self) -> dict[str, Any]:
        try:
            table = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}


def key_of(*what: object) -> str:
    """A name for starts that will take about as long: a digest of everything that shapes them."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
