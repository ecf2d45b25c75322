"""Memory, as the kernel and the GPU's driver count it: who was killed for it, and whether it is back."""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from vllmd.engine.evidence import gpu_memory_of

log = logging.getLogger(__name__)

GPU_BACK_WITHIN_S = 30.0
PAUSE_S = 0.2


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


def _count(file: Path) -> int | None:
    with suppress(OSError):
        words = dict(line.split() for line in file.read_text().splitlines() if len(line.split()) == 2)
        return int(words["oom_kill"]) if "oom_kill" in words else None
    return None


async def gpu_is_back(pids: set[int]) -> None:
    """Waits until the driver counts no memory for these dead processes any more; the next engine may need it.

    Returns at once where NVML cannot be asked, and after `GPU_BACK_WITHIN_S` seconds with a line in the log.
    """
    deadline = asyncio.get_running_loop().time() + GPU_BACK_WITHIN_S
    while held := gpu_memory_of(pids):
        if asyncio.get_running_loop().time() > deadline:
            log.warning("the GPU's driver still counts %d MiB for an engine that has ended", held >> 20)
            return
        await asyncio.sleep(PAUSE_S)
