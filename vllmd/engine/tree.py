"""An end to every process that carries a mark in its environment.

The guard kills its own tree. What is left to do here is the case in which the guard itself was killed: its descendants
have then gone to init, and what still ties them to their engine is a variable that they all inherited.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

BATCH = 256
"""Processes struck before their deaths are awaited; bounds the descriptors in use."""


def sweep(mark: str) -> int:
    """SIGKILL every process whose environment holds `mark`, until there is none; blocks until they are dead.

    It sees the processes whose /proc/pid/environ it may read (proc(5)): those of our own user, or all if we are root.

    Args:
        mark: `NAME=value`, with a value that nobody else has.

    Returns:
        How many processes were killed.
    """
    killed = 0
    while struck := list(islice(_strike(mark.encode()), BATCH)):
        for pidfd in struck:
            _bury(pidfd)
        killed += len(struck)
    return killed


def _strike(mark: bytes) -> Iterator[int]:
    """Kill each marked process; yields a pidfd for each, which is the caller's to close."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        if mark in _environ(name):
            with suppress(OSError):
                pidfd = os.pidfd_open(int(name))
                if _kill_if_marked(pidfd, name, mark):
                    yield pidfd
                else:
                    os.close(pidfd)


def _kill_if_marked(pidfd: int, name: str, mark: bytes) -> bool:
    """Look a second time, now that the number cannot be another's without the pidfd's knowing, and kill."""
    with suppress(OSError):
        if mark in _environ(name):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
    return False


def _environ(name: str) -> bytes:
    """The environment that a process was started with; nothing if it is a zombie, gone, or not ours to read."""
    with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
        return file.read()
    return b""


def _bury(pidfd: int) -> None:
    """Wait until the last thread of a killed process is gone, and reap it if it has become our child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    with suppress(ChildProcessError):  # init's child, as a rule; ours where vllmd is itself process 1 of a container
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)
