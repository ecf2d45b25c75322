"""The runtime directory: private to one user, and to one daemon at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmd.errors import AddressError

_ANOTHER = "choose another directory for paths.runtime"


def make_private(path: Path) -> None:
    """Makes `path` (0700) with its parents, or closes one that exists to everybody else.

    Raises:
        AddressError: it cannot be made, or it or the directory it lies in belongs to somebody who could then take the
            engine's place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        for each in (path.parent, path):
            if each.lstat().st_uid not in (0, os.getuid()):
                raise AddressError(f"{each} belongs to another user", _ANOTHER)
        if path.lstat().st_uid == os.getuid():
            path.chmod(0o700)
    except OSError as error:
        raise AddressError(f"cannot use {path}: {error.strerror or error}", _ANOTHER) from None


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
