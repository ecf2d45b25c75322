"""What can be learned of an engine while it still lies there: its processes, their stacks, and the GPUs.

Everything here is optional and bounded in time: an examination that fails leaves a sentence instead of a finding, and
never delays the end of the engine by more than `LIMIT_S`.
"""

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vllmd.engine import gpu
from vllmd.engine.gpu import NO_GPUS, Gpus
from vllmd.engine.guard import children
from vllmd.engine.run import run
from vllmd.incident import ProcessFacts

LIMIT_S = 10.0
STACK_LINES = 200
"""Lines of one process's stacks that are kept."""


@dataclass(frozen=True)
class Evidence:
    """The findings.

    Args:
        processes: the engine's processes, the guard first, with their stacks.
        gpus: what the driver says.
    """

    processes: tuple[ProcessFacts, ...] = ()
    gpus: Gpus = NO_GPUS


async def examine(guard: int) -> Evidence:
    """Looks at the engine below that guard; returns what there is after at most `LIMIT_S` seconds."""
    processes = tuple(facts for pid in family(guard) if (facts := process_facts(pid)))
    pythons = [each.pid for each in processes if each.pid != guard]
    stacks: dict[int, str] = {}
    gpus: list[Gpus] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(_keep_gpus(gpus), *(_keep_stack(pid, stacks) for pid in pythons))
    told = tuple(replace(each, stack=stacks.get(each.pid, "")) for each in processes)
    return Evidence(told, gpus[0] if gpus else NO_GPUS)


def family(root: int) -> list[int]:
    """A process and all its descendants, parents first."""
    found = [root]
    for pid in found:
        found += children(pid)
    return found


def cpu_s(root: int) -> float:
    """CPU seconds that a process and its living descendants have used: whatever they are doing, it is work."""
    return sum(facts.cpu_s for pid in family(root) if (facts := process_facts(pid)))


def process_facts(pid: int) -> ProcessFacts | None:
    """What /proc says of a process; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    field = rest.split()  # field[0] is number 3 of proc_pid_stat(5)
    return ProcessFacts(
        pid=pid,
        name=name,
        state=field[0],
        cpu_s=(int(field[11]) + int(field[12])) / os.sysconf("SC_CLK_TCK"),
        rss_mib=int(field[21]) * os.sysconf("SC_PAGE_SIZE") >> 20,
        waits_in=_read(f"/proc/{pid}/wchan").strip("0"),
    )


def lived_s(pid: int) -> float:
    """Seconds since a process was started (field 22 of proc_pid_stat(5), against proc_uptime(5)); 0 if it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    except OSError:
        return 0.0


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text()
    return ""


async def _keep_gpus(found: list[Gpus]) -> None:
    found.append(await gpu.facts())


async def _keep_stack(pid: int, stacks: dict[int, str]) -> None:
    stacks[pid] = "py-spy did not finish in time"
    stacks[pid] = await _stack(pid)


async def _stack(pid: int) -> str:
    """The stacks of a Python process, each thread's. py-spy must be allowed to read its memory (ptrace(2))."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        return "py-spy is not installed"
    lines: list[str] = []
    # Not blocking: a process must not be paused by a look at it.
    try:
        status = await run([spy, "dump", "--nonblocking", "--pid", str(pid)], os.environ, lines.append)
    except (OSError, ValueError) as error:
        return f"py-spy could not be run: {error}"
    return "\n".join(lines[:STACK_LINES]) if status == 0 else f"py-spy could not read it: {' '.join(lines[-2:])}"
