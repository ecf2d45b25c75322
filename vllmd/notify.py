"""What systemd is told (sd_notify(3)), in a few words. Without systemd every word is silently none."""

import logging
import os
import struct
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from sdnotify import SystemdNotifier

log = logging.getLogger(__name__)

SOL_SOCKET = SCM_RIGHTS = 1
"""unix(7): with these a descriptor goes along. The core imports no `socket`, as it opens none."""

UNSAID = 100
"""Words that wait for a manager that does not read; the oldest make way."""


@dataclass(frozen=True)
class Word:
    """What is to be said, and a descriptor that goes with it: the word's own, closed once it is said or given up."""

    text: str
    fd: int | None = None

    def close(self) -> None:
        """It will not be said (again)."""
        if self.fd is not None:
            os.close(self.fd)


WATCHDOG = Word("WATCHDOG=1")


class Notifier:
    """Speaks to the service manager that started the daemon, if one did. A context manager, which ends the talk.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `FDSTORE` are looked up (SystemdNotifier looks into
            `os.environ` itself to find the socket).
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._notifier = _connect() if environ.get("NOTIFY_SOCKET") else None
        self._watchdog_usec = _watchdog_usec(environ)
        self._has_store = environ.get("FDSTORE", "0") not in ("", "0")
        self._unsaid: deque[Word] = deque()
        self._was_ready = False

    @property
    def is_behind(self) -> bool:
        """Whether words are left for which there was no room; the next one that is said takes them along."""
        return bool(self._unsaid)

    @property
    def watchdog_interval_s(self) -> float | None:
        """Seconds between two signs of life, half of what systemd waits; None when nobody waits for them."""
        return self._watchdog_usec / 2_000_000 if self._watchdog_usec else None

    @property
    def has_store(self) -> bool:
        """Whether descriptors can outlive this process (`FDSTORE`, which the unit sets for systemd before 254)."""
        return self._has_store and self._notifier is not None

    def ready(self) -> None:
        """A token came out of the engine: units ordered after this one may start."""
        self._was_ready = True
        self._say("READY=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._say(f"STATUS={' '.join(text.split())}")

    def extend(self, seconds: float) -> None:
        """The start goes on: the start-up timeout begins anew and lasts `seconds`."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """The event loop still turns. Where that waits to be said it need not be said twice, and make others way."""
        if WATCHDOG in self._unsaid:
            self._say_all()
        else:
            self._say(WATCHDOG.text)

    def reloading(self) -> None:
        """The configuration is being read anew. Before the first token nothing is told of it: the start goes on."""
        if self._was_ready:
            self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """It was read."""
        if self._was_ready:
            self.ready()

    def stopping(self) -> None:
        """The daemon has begun to end."""
        self._say("STOPPING=1")

    def keep(self, name: str, fd: int) -> None:
        """Puts a copy of `fd` into the store, also one whose other end is closed already (FDPOLL=0)."""
        self._say(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", os.dup(fd))

    def forget(self, name: str) -> None:
        """Closes what the store has under that name."""
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for word in self._unsaid:
            word.close()
        self._unsaid.clear()
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _say(self, text: str, fd: int | None = None) -> None:
        self._unsaid.append(Word(text, fd))
        if len(self._unsaid) > UNSAID:
            self._unsaid.popleft().close()
        self._say_all()

    def _say_all(self) -> None:
        while self._unsaid:
            try:
                _send(self._notifier, self._unsaid[0])
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("systemd did not take %s: %s", self._unsaid[0].text.partition("=")[0], error)
            self._unsaid.popleft().close()


def _send(notifier: SystemdNotifier | None, word: Word) -> None:
    if notifier is None:
        return
    # systemd reads UTF-8, and SystemdNotifier writes Latin-1 and passes no descriptors; its socket does both.
    data = word.text.encode(errors="replace")
    rights = [] if word.fd is None else [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", word.fd))]
    notifier.socket.sendmsg([data], rights)


def _connect() -> SystemdNotifier | None:
    try:
        notifier = SystemdNotifier(debug=True)
        notifier.socket.setblocking(False)  # a manager that is busy must not stop the event loop
        return notifier  # noqa: TRY300 (what is between can fail as well)
    except OSError as error:
        log.warning("systemd cannot be told anything: NOTIFY_SOCKET: %s", error)
        return None


def _watchdog_usec(environ: Mapping[str, str]) -> int:
    """`WATCHDOG_USEC`, if it is meant for this process (sd_watchdog_enabled(3))."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    usec = environ.get("WATCHDOG_USEC", "0")
    return int(usec) if usec.isdecimal() else 0
