"""By what vllmd holds an engine: the lifeline, the log pipe, and the guard.

Whoever has these descriptors can go on with the engine, whether or not it started it. Letting go of them is not the
same as cutting the lifeline: cut, it ends for all who hold it (shutdown(2)), and the guard ends the engine; let go of,
it ends with the last who holds it.
"""

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
TOKEN = "VLLMD_ENGINE"
KEEP_ENVIRON = {"SPT_NOENV": "1"}
"""vLLM renames its processes with setproctitle, which would overwrite /proc/pid/environ, and so the token."""

LOG_BYTES = 1024 * 1024
"""What an engine may print while no vllmd reads: the most that the kernel gives without asking (pipe-max-size)."""


@dataclass(frozen=True)
class Tether:
    """What holds one engine. The descriptors are its own, except `log`, which is its reader's to close.

    Args:
        guard: the guard's process number; a pidfd says whether it still is the guard's.
        token: what `TOKEN` says in the environment of every process of the engine.
        child: the guard as our child; None if an earlier vllmd started it.
    """

    guard: int
    pidfd: int
    lifeline: socket.socket
    log: int
    token: str
    child: "subprocess.Popen[bytes] | None" = field(default=None, compare=False)

    @property
    def mark(self) -> str:
        """The token as it stands in the environment."""
        return mark(self.token)

    @property
    def is_alive(self) -> bool:
        """Whether the guard lives, and with it what it guards."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends the guard a signal; nothing happens if it has ended."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def cut(self) -> None:
        """Ends the engine and all its descendants; nothing happens if they have ended."""
        with suppress(OSError):
            self.lifeline.shutdown(socket.SHUT_WR)
        self.send_signal(signal.SIGCONT)  # one that somebody has stopped would not notice

    def status(self) -> int:
        """How the guard ended, now that it has: its exit status, or the negative number of the signal that ended it."""
        if self.child is not None:
            return self.child.wait()
        said = self._last_word()
        return int(said) if said.isdecimal() else -signal.SIGKILL  # what else could take its last word from it

    def _last_word(self) -> str:
        words = b""
        with suppress(OSError):
            while data := self.lifeline.recv(4096):
                words += data
        return words.decode(errors="replace").rpartition("exited ")[2].strip()

    def let_go(self) -> None:
        """Closes what is the tether's own. The engine lives on if somebody else holds it."""
        self.lifeline.close()
        os.close(self.pidfd)


def mark(token: str) -> str:
    """By what a sweep knows the processes of an engine."""
    return f"{TOKEN}={token}"


def start_guard(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, token: str) -> Tether:
    """Starts a guard over `argv`. Raises OSError or ValueError where it cannot be started."""
    lifeline, its_lifeline = socket.socketpair()
    log, its_log = os.pipe()
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), "--", *argv],
            stdin=its_lifeline.fileno(),
            stdout=its_log,
            stderr=its_log,
            env={**KEEP_ENVIRON, **env, TOKEN: token},
            cwd=cwd,
            start_new_session=True,  # from its first moment on no Ctrl-C of vllmd's terminal reaches it
        )
        lifeline.setblocking(False)
        _widen(log)
        return Tether(guard.pid, os.pidfd_open(guard.pid), lifeline, log, token, guard)
    except (OSError, ValueError):
        lifeline.close()
        os.close(log)
        raise
    finally:
        its_lifeline.close()
        os.close(its_log)


def _widen(pipe: int) -> None:
    with suppress(OSError):  # a user that holds many pipes is given no more room (pipe(7), pipe-user-pages-soft)
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, LOG_BYTES)
