"""The descriptors that systemd passes to this process: open sockets, and what it has kept for us (sd_listen_fds(3)).

Both come in one row and are told apart by their names. What vllmd has put into systemd's file descriptor store
(FDSTORE=1 in sd_notify(3)) bears a name that begins with `engine.`; everything else is a socket that clients come to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_FD = 3
STORED = "engine."


@dataclass(frozen=True)
class Passed:
    """One descriptor.

    Args:
        name: the socket unit's, or the one under which it was put into the store; empty if systemd says none.
    """

    fd: int
    name: str

    @property
    def is_stored(self) -> bool:
        """Whether it comes from the store, and so from a vllmd before us."""
        return self.name.startswith(STORED)


def passed(environ: Mapping[str, str], pid: int) -> tuple[Passed, ...]:
    """What is meant for this process.

    Args:
        environ: where `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are looked up.
        pid: this process's number.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return ()
    count, names = int(environ.get("LISTEN_FDS", "0")), environ.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * (count - len(names))
    return tuple(Passed(FIRST_FD + number, names[number]) for number in range(count))
