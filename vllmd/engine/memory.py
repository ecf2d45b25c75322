"""What the kernel says of memory: whether it has killed for it."""

from contextlib import suppress
from pathlib import Path


def oom_kills() -> int | None:
    """How many processes of vllmd's own control group the kernel has killed for memory; None if nobody counts.

    cgroups(7): version 2 counts in `memory.events`, version 1 in `memory.oom_control`.
    """
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" and (count := _count(Path(f"/sys/fs/cgroup{path}/memory.events"))) is not None:
                return count
            if "memory" in controllers.split(","):
                return _count(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    return None


def kills_since(before: int | None) -> int | None:
    """How many more there are than `before`; None unless somebody counted then and counts now."""
    now = oom_kills()
    return None if before is None or now is None else now - before


def _count(file: Path) -> int | None:
    with suppress(OSError):
        words = dict(line.split() for line in file.read_text().splitlines() if len(line.split()) == 2)
        return int(words["oom_kill"]) if "oom_kill" in words else None
    return None
