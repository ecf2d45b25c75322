"""Sends log records to systemd's journal, from a thread of its own: whoever logs never waits for journald."""

import errno
import fcntl
import logging
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from vllmd.about import fields_of
from vllmd.journal.backlog import Backlog
from vllmd.journal.lines import TextLines
from vllmd.journal.protocol import encode, priority_of

JOURNAL = Path("/run/systemd/journal/socket")

PATIENCE_S = 0.5
"""How long one try to send may take; between two of them the thread looks whether it is to end."""

FAREWELL_S = 5.0
"""How long the last lines may take."""

_TOO_LONG = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_the_journal(fd: int, journal_stream: str) -> bool:
    """Whether `fd` is what `JOURNAL_STREAM` names by device and inode (systemd.exec(5)); the variable is inherited."""
    with suppress(OSError):
        stat = os.fstat(fd)
        return journal_stream == f"{stat.st_dev}:{stat.st_ino}"
    return False


class JournalHandler(logging.Handler):
    """A handler for `logging`.

    Args:
        path: journald's socket.
        backlog: what waits.
    """

    def __init__(self, path: Path = JOURNAL, backlog: Backlog | None = None) -> None:
        super().__init__()
        self.setFormatter(TextLines("%(message)s", indent=""))  # records are entries there, whatever their lines
        self._path = path
        self._backlog = backlog if backlog is not None else Backlog()
        self._change = threading.Condition()
        self._ends_at: float | None = None
        self._thread = threading.Thread(target=self._send_all, name="journal", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record; it is sent soon."""
        try:
            entry = encode(self._fields(record))
        except Exception:
            self.handleError(record)
            return
        with self._change:
            self._backlog.put(entry, matters=record.levelno >= logging.WARNING)
            self._change.notify()

    def close(self) -> None:
        """Sends what waits, for as long as `FAREWELL_S`, and ends the thread."""
        with self._change:
            self._ends_at = self._ends_at or time.monotonic() + FAREWELL_S
            self._change.notify()
        self._thread.join(FAREWELL_S + PATIENCE_S)
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        told = {f"VLLMD_{name.upper()}": value for name, value in fields_of(record).items()}
        return {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority_of(record.levelno)),
            "SYSLOG_IDENTIFIER": "vllmd",
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
            **told,
        }

    # ── the thread ──

    def _send_all(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            patience = struct.pack("ll", int(PATIENCE_S), int(PATIENCE_S % 1 * 1_000_000))
            out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
            while (entry := self._next()) is not None:
                while not self._sent(out, entry) and not self._is_over:
                    pass

    def _next(self) -> bytes | None:
        """Waits for an entry; None at the end."""
        with self._change:
            while not len(self._backlog):
                if self._ends_at is not None:
                    return None
                self._change.wait()
            if dropped := self._backlog.dropped:
                self._backlog.dropped = 0
                return encode(_confession(dropped))
            return None if self._is_over else self._backlog.take()

    @property
    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() > self._ends_at

    def _sent(self, out: socket.socket, entry: bytes) -> bool:
        """One try; False if there is to be another."""
        try:
            out.sendto(entry, str(self._path))
        except (BlockingIOError, InterruptedError):
            return False
        except (ConnectionError, FileNotFoundError):
            time.sleep(PATIENCE_S)  # journald is being restarted
            return False
        except OSError as error:
            return error.errno not in _TOO_LONG or _sent_as_file(out, entry, self._path)
        return True


def _sent_as_file(out: socket.socket, entry: bytes, path: Path) -> bool:
    """What no datagram can carry goes in a sealed file without a name. Returns whether that is over with."""
    file = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(entry)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
        out.sendmsg([b""], rights, 0, str(path))
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True  # not even so: it is given up
    finally:
        os.close(file)
    return True


def _confession(dropped: int) -> dict[str, str]:
    text = f"{dropped} lines of the log were lost: there were more than the journal has taken"
    return {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "vllmd"}
