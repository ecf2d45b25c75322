"""Who holds how much: of the GPU as its driver says, of main memory as the kernel says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import descendants

MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """One moment; all in MiB.

    Args:
        gpu_used: of the first GPU, by whomever.
        gpu: of it, by each process.
        available: main memory that whoever comes next could have.
    """

    gpu_used: int
    gpu: dict[int, int]
    available: int

    def held_by(self, pid: int | None) -> int:
        """What a process and those below it hold of the GPU."""
        pids = {pid, *descendants(pid)} if pid else set()
        return sum(size for holder, size in self.gpu.items() if holder in pids)


def look() -> Memory:
    """As it is now."""
    nvml = _nvml()
    card = nvml.nvmlDeviceGetHandleByIndex(0)
    holders = {each.pid: (each.usedGpuMemory or 0) // MIB for each in nvml.nvmlDeviceGetComputeRunningProcesses(card)}
    return Memory(nvml.nvmlDeviceGetMemoryInfo(card).used // MIB, holders, _kib("/proc/meminfo", "MemAvailable") >> 10)


def resident(pid: int | None) -> int:
    """Main memory of a process and those below it that no file stands for, in MiB; what vLLM pins is `RssShmem`."""
    pids = {pid, *descendants(pid)} if pid else set()
    return sum(_kib(f"/proc/{each}/status", name) for each in pids for name in ("RssAnon", "RssShmem")) >> 10


def _kib(file: str, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path(file).read_text(), re.M)
    except OSError:  # it ended meanwhile
        return 0
    return int(found[1]) if found else 0


def _nvml() -> Any:
    import pynvml  # only where there is a GPU, real or not

    pynvml.nvmlInit()
    return pynvml
