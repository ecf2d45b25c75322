"""Directories that are there whole or not at all: built beside by one process at a time, and renamed into place."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from vllmd.engine.run import Report, run

BUILDING, REMOVING, SCRATCH = ".building", ".removing", ".scratch"
PASSING = (BUILDING, REMOVING, SCRATCH)
"""What the names end in of directories that are not there yet, not any more, or only for a while."""

WAITING = "waiting for"
"""What the line begins with that tells whose work is waited for."""

ALIVE_S = 1.0
"""How often it is told that whoever has the lock is alive."""


@contextlib.asynccontextmanager
async def locked(
    root: Path, report: Report, work: str = "", alive: Callable[[], None] = lambda: None
) -> AsyncIterator[int]:
    """Hold the lock of the directory `root`, which need not exist; yields the lock's descriptor.

    A child that inherits the descriptor holds the lock as well, flock(2). The file stays: to remove it is a race.

    Args:
        report: is told who has it, if somebody has.
        work: what is done under it, in words for those who wait meanwhile.
        alive: called once a second while it is waited for: who has the lock is alive, else nobody would have it.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(root.with_name(f".{root.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{WAITING} {_read(lock) or f'another process that makes {root.name}'}")
            await _wait(lock, root, report, alive)
        _write(lock, work)
        yield lock
    finally:
        os.close(lock)


async def _wait(lock: int, root: Path, report: Report, alive: Callable[[], None]) -> None:
    """Waits in a child, which unlike a thread can be cancelled, and locks what both have open."""
    wait = f"import fcntl; fcntl.flock({lock}, fcntl.LOCK_EX)"
    waiting = asyncio.ensure_future(run([sys.executable, "-I", "-c", wait], os.environ, report, [lock]))
    try:
        while not waiting.done():
            alive()
            await asyncio.wait([waiting], timeout=ALIVE_S)
        if waiting.result() != 0:
            raise OSError(f"the lock of {root} cannot be had")
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


def _read(lock: int) -> str:
    return os.pread(lock, 500, 0).decode(errors="replace")


def _write(lock: int, work: str) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, work.encode()[:500], 0)


@contextlib.asynccontextmanager
async def built_beside(root: Path) -> AsyncIterator[Path]:
    """Yield a path beside `root` to build at; it takes the place of `root` if all goes well, else it is removed."""
    building = root.with_name(f"{root.name}{BUILDING}")
    for leftover in (building, root):
        await asyncio.to_thread(_remove, leftover)
    try:
        yield building
        os.rename(building, root)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
        raise


async def removed(root: Path, report: Report) -> None:
    """Removes the directory `root`; it is gone at once for all who look, and its files in a while."""
    async with locked(root, report, f"the removal of {root.name}"):
        removing = root.with_name(f"{root.name}{REMOVING}")
        await asyncio.to_thread(_remove, removing)
        os.rename(root, removing)
        await asyncio.to_thread(shutil.rmtree, removing, ignore_errors=True)


async def sweep(folder: Path, report: Report) -> None:
    """Removes what was left in `folder` by who was killed over it, as soon as nobody works on it any more."""
    for leftover in sorted(folder.glob("*")):
        if leftover.suffix in PASSING:
            async with locked(leftover.with_suffix(""), report):
                await asyncio.to_thread(_remove, leftover)


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)
