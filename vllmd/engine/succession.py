"""One vllmd follows another: engines are taken over from the one before, and left to the one that comes.

A vllmd that ends is not told whether another one follows. For promise 2 it need not know (see `kept`): what it leaves
is ended by systemd's letting go of it, at once and whatever systemd was about to do. But an engine that will not be
needed should be asked to end, and be gone when `systemctl stop` returns. So systemd is asked which job it works on; who
gets no answer leaves the engine, which is always safe.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from vllmd.engine.kept import Kept, Store
from vllmd.engine.plan import Plan
from vllmd.engine.run import output
from vllmd.engine.supervisor import Supervisor

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""How long systemd may take to say what it does."""

_UNIT = re.compile(r"^(?:0:|\d+:name=systemd):(.*/([^/\n]+\.service))(?:/|$)", re.MULTILINE)


async def take_over(kept: Iterable[Kept], supervisors: Mapping[str, Supervisor], store: Store) -> None:
    """Gives each engine that systemd has kept to its supervisor, or ends it; then the others begin.

    Returns when those that nobody wants are gone: the next engine may need their memory.
    """
    heirs = assign(kept, {name: each.plan for name, each in supervisors.items()})
    await asyncio.gather(*(_end(each, reason, store) for each, reason in heirs if reason))
    for each, reason in heirs:
        if not reason and each.record:
            log.info("%s: goes on with engine %d, process %d", *_facts(each))
            supervisors[each.record.model].adopt(each)
    adopted = {each.record.model for each, reason in heirs if each.record and not reason}
    for name in supervisors.keys() - adopted:
        supervisors[name].begin()


def assign(kept: Iterable[Kept], plans: Mapping[str, Plan]) -> list[tuple[Kept, str]]:
    """Each engine, the newest first, with the reason why it has to end; empty for those that go on."""
    heirs: list[tuple[Kept, str]] = []
    taken: set[str] = set()
    for each in sorted(kept, key=lambda kept: kept.record.generation if kept.record else 0, reverse=True):
        reason = each.obstacle(plans)
        if each.record and not reason:
            reason = "a newer one serves its model" if each.record.model in taken else ""
            taken.add(each.record.model)
        heirs.append((each, reason))
    return heirs


async def _end(kept: Kept, reason: str, store: Store) -> None:
    log.warning("%s: engine %d, process %d, cannot be adopted and ends: %s", *_facts(kept), reason)
    await kept.end(store)


def _facts(kept: Kept) -> tuple[str, int, int]:
    record = kept.record
    return (record.model, record.generation, record.leader) if record else (kept.stem, 0, 0)


async def hand_over(supervisors: Iterable[Supervisor], is_followed: bool) -> None:
    """Leaves every engine that can be left to the vllmd that follows, if one does; ends the others in order."""
    await asyncio.gather(*(each.close() for each in supervisors if not (is_followed and _leave(each))))


def _leave(supervisor: Supervisor) -> bool:
    pid = supervisor.status.pid
    if is_left := supervisor.leave():
        log.info(
            "%s: engine %d, process %s, stays for the next vllmd", supervisor.name, supervisor.engine.generation, pid
        )
    return is_left


async def is_followed(store: Store) -> bool:
    """Whether another vllmd will adopt the engines that this one leaves: systemd restarts us, as far as it says."""
    if not store.has_store:
        return False
    cgroup, unit = own_unit(Path("/proc/self/cgroup").read_text())
    if not unit:
        return True
    scope = ["--user"] if "/user@" in cgroup else []
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            status, lines = await output(["systemctl", *scope, "list-jobs", "--no-legend", "--plain", unit])
            return status != 0 or is_restarting(unit, lines)
    return True


def own_unit(cgroups: str) -> tuple[str, str]:
    """From /proc/self/cgroup (cgroups(7)), the cgroup that systemd has made and its unit; empty if it made none."""
    match = _UNIT.search(cgroups)
    return (match[1], match[2]) if match else ("", "")


def is_restarting(unit: str, jobs: Iterable[str]) -> bool:
    """Whether the lines of `systemctl list-jobs` (number, unit, type, state) say that the unit is being restarted."""
    words = (line.split() for line in jobs)
    return any(len(each) >= 3 and each[1] == unit and each[2].endswith("restart") for each in words)
