"""The guard: stands between vllmd and one engine, so that no descendant of the engine outlives it.

vllmd runs this file as `python -I -S guard.py -- argv…`. It needs nothing but the standard library, imports nothing of
vllmd, and is small (10 MB, 15 ms of CPU), for it lives as long as the engine does.

What it holds. Standard input is the *lifeline*: its other end belongs to vllmd alone, so the kernel closes it when
vllmd dies, however it dies. Standard output and error are the log pipe, and go to the engine untouched. The guard
writes a line to the lifeline at the start, `started PID` or `failed REASON`, and one at its end, `exited STATUS`, for a
vllmd that is not its parent and cannot wait for it (a lifeline that cannot be written to is fine).

Who holds the lifeline. vllmd, and where systemd keeps descriptors for it (FDSTORE) systemd as well. It stays open then
while one vllmd follows another; when the service is stopped systemd lets go of it, and so the engine's end has come.

What it does. It makes itself the *subreaper* of everything below it (prctl(2), PR_SET_CHILD_SUBREAPER): a process
whose parent dies is handed to the guard and not to init, so that nothing leaves the tree by daemonising. Then it waits
for whichever comes first, the exit of the engine's leader or the end of the lifeline, kills what is left, and exits
with the leader's status: 128+n when signal n ended it, 127 when it could not be started.

Why the killing is complete, although processes may go on forking meanwhile. A process with a SIGKILL pending forks no
more (fork fails inside the kernel), so its children are read *after* it was struck, and that list is final. A child
that escapes a round has lost its parent before the round came to it; that parent is a zombie now, of the guard's or of
a process that was struck. So a death is still to come that wakes the guard for another round, and waitpid(2) says
ECHILD only when there is nobody left. A number read from /proc and struck microseconds later could hit a stranger only
if the kernel had gone round all its process numbers in between.
"""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

LIFELINE = 0
FORWARDED = (signal.SIGTERM, signal.SIGINT)
CANNOT_START = 127  # a shell's status for a command that it cannot run
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
OWN_CHILDREN = "/proc/thread-self/children"  # proc(5); there with CONFIG_PROC_CHILDREN, as in every distribution


def main(argv: list[str]) -> int:
    """Run `argv` as the leader of a session of its own, and outlive everything that comes of it.

    Returns: the leader's exit status, 128+n when signal n ended it, 127 when it could not be started.
    """
    try:
        wakeup = prepare()
        leader = start(argv)
    except OSError as error:
        return refuse(argv[0], error)
    forward_signals(leader)
    tell(f"started {leader}")
    code = os.waitstatus_to_exitcode(clear(leader, watch(leader, wakeup)))
    status = code if code >= 0 else 128 - code
    tell(f"exited {status}")
    return status


def prepare() -> int:
    """Leave vllmd's session, adopt the orphans to come, and hold back signals until there is a leader to have them.

    Returns: a descriptor that becomes readable with every signal.
    Raises: OSError when the kernel lacks what the guard is made of.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, FORWARDED)
    signal.signal(signal.SIGCHLD, ignore)  # were it inherited as SIG_IGN, the kernel would reap the leader unseen
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.stat(OWN_CHILDREN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    return wakeup


def start(argv: list[str]) -> int:
    """Start the leader: in a session of its own, no lifeline, no signal blocked or ignored. Raises OSError."""
    return os.posix_spawnp(
        argv[0],
        argv,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, LIFELINE, os.devnull, os.O_RDONLY, 0)],
        setsid=True,
        setsigmask=[],
        setsigdef=signal.valid_signals(),
    )


def refuse(program: str, error: OSError) -> int:
    """Say on the log and on the lifeline why the engine could not be started."""
    reason = error.strerror or str(error)
    os.write(sys.stderr.fileno(), f"vllmd guard: cannot start {program}: {reason}\n".encode(errors="replace"))
    tell(f"failed {reason}")
    return CANNOT_START


def tell(message: str) -> None:
    """Write `message` as a line to the lifeline, if it can be written to and vllmd is still there."""
    with suppress(OSError):
        os.write(LIFELINE, f"{message}\n".encode(errors="replace"))


def ignore(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing: that the signal came is told by the wake-up descriptor."""


def forward_signals(leader: int) -> None:
    """Give SIGTERM and SIGINT to the leader from now on, and those that came before."""
    for signum in FORWARDED:
        signal.signal(signum, forward_to(os.pidfd_open(leader)))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def forward_to(pidfd: int) -> Callable[[int, FrameType | None], None]:
    """A signal handler that passes the signal on. By pidfd, since the leader's number may be another's once reaped."""

    def forward(signum: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signum)

    return forward


def watch(leader: int, wakeup: int) -> int | None:
    """Wait for the leader's exit or the end of the lifeline, reaping the orphans that come by.

    Returns: the leader's wait status; None when the lifeline ended first.
    """
    poll = select.poll()
    poll.register(LIFELINE, select.POLLRDHUP)  # POLLHUP and POLLERR come unasked
    poll.register(wakeup, select.POLLIN)
    while not any(fd == LIFELINE for fd, _ in poll.poll()):
        os.read(wakeup, 4096)
        if (status := reap(leader, None)) is not None:
            return status
    return None


def clear(leader: int, status: int | None) -> int:
    """Kill everything below the guard until nothing is there; returns the leader's wait status."""
    while True:
        kill_descendants()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return status or 0  # the leader was among them, so that the status is known
        status = reap(leader, status)


def reap(leader: int, status: int | None) -> int | None:
    """Collect every child that has exited; returns the leader's wait status, `status` if it was known before."""
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == leader and status is None:
            status = ended


def kill_descendants() -> None:
    """One round: SIGKILL every descendant, a parent always before its children are read."""
    pending = children(os.getpid())
    while pending:
        pid = pending.pop()
        with suppress(OSError):  # gone by itself, or not ours to kill (set-user-ID): then its own end is waited for
            os.kill(pid, signal.SIGKILL)
        pending += children(pid)


def children(pid: int) -> list[int]:
    """The children of all threads of `pid` (proc(5), /proc/pid/task/tid/children); none if it is gone.

    A thread or process that goes away meanwhile hands its children on; they are seen in the next round.
    """
    found: list[int] = []
    with suppress(OSError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"{thread.path}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
