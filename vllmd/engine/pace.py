"""How fast long work goes and what is left of it, by what was done of late: arithmetic, without a clock."""

from dataclasses import dataclass

WINDOW_S = 20.0
"""What counts as of late: long enough for a stutter, short enough for a line that has become slower."""

SAMPLE_S = 0.5
"""Counts closer together than this are one."""

LEAST_S = 2.0
"""A guess from less is none."""


@dataclass(frozen=True)
class Pace:
    """What was done when, as far as it says something about the future.

    Args:
        samples: (seconds, done) in the order in which they were seen.
    """

    samples: tuple[tuple[float, int], ...] = ()

    def after(self, now: float, done: int) -> "Pace":
        """The pace once `done` is done at `now` seconds. Less than before is a new beginning."""
        if self.samples and done < self.samples[-1][1]:
            return Pace(((now, done),))
        kept = self.samples
        if len(kept) > 1 and kept[-1][0] - kept[-2][0] < SAMPLE_S:
            kept = kept[:-1]
        # One sample before the window stays: a rate is measured from somewhere.
        first = max((at for at, (when, _) in enumerate(kept) if when <= now - WINDOW_S), default=0)
        return Pace((*kept[first:], (now, done)))

    def per_s(self, now: float) -> float | None:
        """How much a second is done; None while nobody can know.

        Args:
            now: what came since the last sample is nothing, and counts.
        """
        if not self.samples:
            return None
        (began_at, at_first), (_, at_last) = self.samples[0], self.samples[-1]
        return (at_last - at_first) / (now - began_at) if now - began_at >= LEAST_S else None

    def left_s(self, now: float, total: int | None) -> float | None:
        """Seconds until `total` is done; None while nobody can know, and while nothing moves."""
        rate = self.per_s(now)
        if not rate or total is None:
            return None
        return max(0.0, (total - self.samples[-1][1]) / rate)
