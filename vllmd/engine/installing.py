"""How far an installer is, from what uv or pip says. Pure.

Neither tells bytes as they come, but uv names the size of each large download when it begins, and says when it has
ended; pip does one after the other. So what is told here moves in steps, and the sum grows as downloads begin.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_RESOLVED = re.compile(r"Resolved (\d+) packages?")
_BEGINS = re.compile(r"Downloading (\S+) \(([\d.]+) ?([KMGT]i?)?B\)", re.I)
_ENDS = re.compile(r"Downloaded (\S+)$")
_PIP_COLLECTED = re.compile(r"Installing collected packages: (.+)")
_PHASES = (
    *("creating the environment", "resolving", "taking out", "copying into", "compiling", "checking", "reading"),
    *("flushing", "waiting for"),
)
"""What the builder's own words begin with."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Tally:
    """An installation so far.

    Args:
        phase: what is being done, in a few words.
        packages: how many it consists of; None before that is known.
        sizes: of each large download that has begun, its bytes.
        ended: the downloads that are there.
    """

    phase: str = ""
    packages: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()

    @property
    def done(self) -> int | None:
        """Bytes that are there; None while nothing large is downloaded."""
        return sum(self.sizes[each] for each in self.ended) if self.is_downloading else None

    @property
    def total(self) -> int | None:
        """Bytes of all downloads that have begun."""
        return sum(self.sizes.values()) if self.is_downloading else None

    @property
    def is_downloading(self) -> bool:
        """Whether bytes mean anything now."""
        return bool(self.sizes) and self.phase.startswith("downloading")

    def after(self, line: str) -> "Tally":
        """What one more line of the builder's or the installer's makes of it."""
        text = line.strip()
        if match := _RESOLVED.match(text):
            count = int(match[1])
            return replace(self, packages=count, phase=f"downloading {count} packages")
        if match := _BEGINS.match(text):
            size = round(float(match[2]) * _UNITS[(match[3] or "").lower()])
            return replace(self._begun(match[1]), sizes={**self.sizes, match[1]: size})
        if match := _ENDS.match(text):
            return replace(self, ended=self.ended | ({match[1]} & self.sizes.keys()))
        if match := _PIP_COLLECTED.match(text):
            return replace(self, packages=len(match[1].split(",")), phase="installing")
        return replace(self, phase=text) if text.startswith(_PHASES) else self

    def _begun(self, name: str) -> "Tally":
        """pip downloads one after the other, and does not say when one is there."""
        if self.packages is not None:
            return self
        return replace(self, phase="downloading", ended=frozenset(self.sizes))
