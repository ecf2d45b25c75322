"""Directories that are there whole or not at all: built beside by one process at a time, and renamed into place."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from vllmd.engine.run import Report, run


@contextlib.asynccontextmanager
async def locked(root: Path, report: Report) -> AsyncIterator[int]:
    """Hold the lock of the directory `root`, which need not exist; yields the lock's descriptor.

    A child that inherits the descriptor holds the lock as well, flock(2). The file stays: to remove it is a race.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(root.with_name(f".{root.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that makes {root.name}")
            # Waits in a child, which unlike a thread can be cancelled, and locks what both have open.
            wait = f"import fcntl; fcntl.flock({lock}, fcntl.LOCK_EX)"
            if await run([sys.executable, "-I", "-c", wait], os.environ, report, [lock]) != 0:
                raise OSError(f"the lock of {root} cannot be had") from None
        yield lock
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def built_beside(root: Path) -> AsyncIterator[Path]:
    """Yield a path beside `root` to build at; it takes the place of `root` if all goes well, else it is removed."""
    building = root.with_name(f"{root.name}.building")
    for leftover in (building, root):
        await asyncio.to_thread(_remove, leftover)
    try:
        yield building
        os.rename(building, root)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
        raise


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)
