"""What systemd is told (sd_notify(3)), in a few words. Without systemd every word is silently none."""

import logging
import os
from collections import deque
from collections.abc import Mapping
from typing import Self

from sdnotify import SystemdNotifier

log = logging.getLogger(__name__)

UNSAID = 100
"""Words that wait for a manager that does not read; the oldest make way."""


class Notifier:
    """Speaks to the service manager that started the daemon, if one did. A context manager, which ends the talk.

    Args:
        environ: where `NOTIFY_SOCKET` and `WATCHDOG_USEC` are looked up (SystemdNotifier looks into `os.environ` itself
            to find the socket).
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._notifier = _connect() if environ.get("NOTIFY_SOCKET") else None
        self._watchdog_usec = _watchdog_usec(environ)
        self._unsaid: deque[str] = deque(maxlen=UNSAID)

    @property
    def is_behind(self) -> bool:
        """Whether words are left for which there was no room; the next one that is said takes them along."""
        return bool(self._unsaid)

    @property
    def watchdog_interval_s(self) -> float | None:
        """Seconds between two signs of life, half of what systemd waits; None when nobody waits for them."""
        return self._watchdog_usec / 2_000_000 if self._watchdog_usec else None

    def ready(self) -> None:
        """A token came out of the engine: units ordered after this one may start."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._say(f"STATUS={' '.join(text.split())}")

    def extend(self, seconds: float) -> None:
        """The start goes on: the start-up timeout begins anew and lasts `seconds`."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """The event loop still turns."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon has begun to end."""
        self._say("STOPPING=1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _say(self, state: str) -> None:
        self._unsaid.append(state)
        while self._notifier is not None and self._unsaid:
            try:
                # systemd reads UTF-8, SystemdNotifier writes Latin-1: so each byte goes as the character of its number.
                self._notifier.notify(self._unsaid[0].encode(errors="replace").decode("latin-1"))
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("systemd did not take %s: %s", self._unsaid[0].partition("=")[0], error)
            self._unsaid.popleft()


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
