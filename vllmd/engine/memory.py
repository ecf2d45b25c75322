"""What the kernel says of memory: how much there is, and whether it has killed for it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number above it where there is no limit."""


@dataclass(frozen=True)
class Host:
    """Main memory and swap, as far as vllmd's own control group may have them, in bytes."""

    total: int
    free: int


def host(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> Host | None:
    """How much there is, and how much of it nobody holds; None if the kernel does not say.

    Swap counts on both sides: what could be there is asked for, and nobody is to be refused too early.
    """
    try:
        pairs = (line.split()[:2] for line in (proc / "meminfo").read_text().splitlines())
        kib = {name.rstrip(":"): int(number) for name, number in pairs}
        total, free = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
        swap, unswapped = kib.get("SwapTotal", 0) << 10, kib.get("SwapFree", 0) << 10
    except (OSError, ValueError, KeyError):
        return None
    limits = [each for group in _groups(proc, cgroups) if (each := _limit(group))]
    total, free = min([total, *(limit for limit, _ in limits)]), min([free, *(left for _, left in limits)])
    return Host(total + swap, free + unswapped)


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The directories of vllmd's own control group and of those above it, of either version."""
    with suppress(OSError, ValueError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                root = cgroups / "memory" if controllers else cgroups
                own = root / path.lstrip("/")
                yield from (each for each in (own, *own.parents) if each.is_relative_to(root))


def _limit(group: Path) -> tuple[int, int] | None:
    """The most that a group may have, and how much of that is left; files in memory give way, so that they count as
    left. None if it has no limit."""
    for limit, usage, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with suppress(OSError, ValueError):
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
            words = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            files = sum(int(words.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
            return (most, max(0, most - used + files)) if most < NO_LIMIT else None
    return None


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
