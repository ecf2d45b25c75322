"""The processes of a daemon's engines, told apart by generation, and a witness who watches them all the time."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from daemons import Daemon
from waiting import alive

LOOKS_EVERY_S = 0.1
"""A process that lives for less than this may go unseen."""

GONE_WITHIN_S = 5.0
"""From the end of a generation's leader or guard to the end of its last process (promise 2)."""

_TMPDIR = re.compile(rb"\0TMPDIR=[^\0]*\.(\d+)/tmp\0")
GUARD = "guard"


def processes(daemon: Daemon) -> dict[int, set[int]]:
    """Generation → its living processes, wherever they are in the tree; each inherited its generation's TMPDIR."""
    found: dict[int, set[int]] = {}
    for pid in daemon.everybody():
        with suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if match := _TMPDIR.search(b"\0" + environ):
                found.setdefault(int(match[1]), set()).add(pid)
    return found


def name_of(pid: int) -> str:
    """What a process is: `guard`, or the name it gave itself; empty if it is gone."""
    with suppress(OSError):
        is_guard = b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return GUARD if is_guard else Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def find(daemon: Daemon, generation: int, name: str) -> int | None:
    """A process of that generation whose name begins so; None if it has none (any more)."""
    family = processes(daemon).get(generation, ())
    return next((pid for pid in family if name_of(pid).startswith(name)), None)


def is_head(pid: int) -> bool:
    """Whether it is a guard or an API server: each leads a session, and has not renamed itself as those below do."""
    with suppress(OSError):
        return os.getsid(pid) == pid and not name_of(pid).startswith("VLLM::")
    return False


@dataclass
class Witness:
    """Looks at a daemon's engines again and again.

    Attributes:
        wrong: what must not be, as sentences.
        slowest_s: the longest time from the end of a leader or guard to the end of the last process.
    """

    daemon: Daemon
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _heads: dict[int, set[int]] = field(default_factory=dict)
    _headless_since: dict[int, float] = field(default_factory=dict)

    async def watch(self) -> None:
        """Looks for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOKS_EVERY_S)

    def look(self) -> None:
        """Looks once."""
        found = processes(self.daemon)
        self._check_alone(found)
        self._check_ends(found)

    def _check_alone(self, found: dict[int, set[int]]) -> None:
        """A look takes time: only who is alive after a later generation was seen has outlived its own."""
        *earlier, _ = sorted(found) or [0]
        for generation in earlier:
            if living := [f"{name_of(pid)} ({pid})" for pid in found[generation] if alive(pid)]:
                self.wrong.append(f"{living} of generation {generation} live beside generation {max(found)}")

    def _check_ends(self, found: dict[int, set[int]]) -> None:
        """Heads are the guard and the API server: when one of them has gone, the others have to follow soon."""
        now = time.monotonic()
        for generation, living in found.items():
            heads = self._heads.setdefault(generation, set())
            heads |= set(filter(is_head, living))
            if heads - living:
                self._check_time(generation, now - self._headless_since.setdefault(generation, now))

    def _check_time(self, generation: int, lingers_s: float) -> None:
        self.slowest_s = max(self.slowest_s, lingers_s)
        if lingers_s > GONE_WITHIN_S:
            self.wrong.append(f"generation {generation} has processes {lingers_s:.1f} s after its end")


@asynccontextmanager
async def watched(daemon: Daemon) -> AsyncIterator[Witness]:
    """A witness, for as long as the block lasts."""
    witness = Witness(daemon)
    task = asyncio.create_task(witness.watch())
    try:
        yield witness
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error
