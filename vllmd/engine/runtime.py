"""The runtime directory: private to one user, and to one daemon at a time."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmd.errors import AddressError


def make_private(path: Path) -> None:
    """Makes `path` (0700) with its parents, or closes one that exists to everybody else.

    Raises:
        AddressError: it, or the directory it lies in, belongs to somebody who could then take the engine's place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    for each in (path.parent, path):
        facts = each.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (0, os.getuid()):
            raise AddressError(f"{each} belongs to another user", "choose another directory for paths.runtime")
    if path.lstat().st_uid == os.getuid():
        path.chmod(0o700)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the directory `path` for this daemon alone: another one would sweep up our engines as leftovers.

    Raises:
        AddressError: another vllmd holds it.
    """
    make_private(path)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(directory, path)
        yield
    finally:
        os.close(directory)


def _lock(directory: int, path: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        taken = f"another vllmd keeps its engines in {path}"
        raise AddressError(taken, "stop it, or give this one another paths.runtime") from None
