"""systemd as vllmd sees it: NOTIFY_SOCKET, sockets that stay open, and the file descriptor store."""

import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from daemons import Daemon
from waiting import until_sync

AWAY = 200
"""Descriptors that wait for the next vllmd lie above this number, so that none is in the way of another."""

PASS = """
import os, sys
count, names = int(sys.argv[1]), sys.argv[2]
fds, argv = [int(each) for each in sys.argv[3 : 3 + count]], sys.argv[3 + count :]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number, True)
os.closerange(3 + count, 400)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=names)
os.execv(argv[0], argv)
"""

SYSTEMCTL = """#!/bin/sh
# list-jobs … UNIT, wherever the tests run: it is being restarted.
for unit; do :; done
echo "1 $unit restart running"
"""


class Manager:
    """The service manager's end of NOTIFY_SOCKET. As systemd does, it reads all the time: ten words would fill it.

    Attributes:
        heard: every line that it was told.
        stored: name → descriptor, of what it was given to keep.
    """

    def __init__(self) -> None:
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind("")  # to a name of the kernel's choice (unix(7), autobind)
        name: bytes = self._inbox.getsockname()
        self.address = f"@{name[1:].decode()}"
        self.heard: list[str] = []
        self.stored: dict[str, int] = {}
        self._reads = threading.Event()
        self._reads.set()
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._inbox, 65536, 1)
            if not data:
                return
            self._reads.wait()
            lines = data.decode().splitlines()
            self._store(dict(line.split("=", 1) for line in lines), fds)
            self.heard += lines

    def _store(self, words: Mapping[str, str], fds: list[int]) -> None:
        if words.get("FDSTORE") == "1":
            self.stored[words["FDNAME"]] = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, AWAY)
        if words.get("FDSTOREREMOVE") == "1" and words["FDNAME"] in self.stored:
            os.close(self.stored.pop(words["FDNAME"]))
        for fd in fds:
            os.close(fd)

    def drop(self) -> None:
        """What it does with the store when the service has stopped."""
        while self.stored:
            os.close(self.stored.popitem()[1])

    def values(self, name: str) -> list[str]:
        """What it was told under that name."""
        return [line.partition("=")[2] for line in list(self.heard) if line.startswith(f"{name}=")]

    @contextmanager
    def reading(self) -> Iterator["Manager"]:
        """Reads, for as long as the block lasts."""
        self._reader.start()
        with self._inbox, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last_word:
            try:
                yield self
            finally:
                self._reads.set()
                last_word.sendto(b"", self._inbox.getsockname())
                self._reader.join()
                self.drop()

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Reads nothing, for as long as the block lasts."""
        self._reads.clear()
        yield
        self._reads.set()


class Service:
    """vllmd as a service whose sockets and descriptors are kept for it.

    Args:
        manager: keeps them.
        how: as for `Daemon`.
    """

    def __init__(self, manager: Manager, make: Callable[..., Daemon] = Daemon, **how: Any) -> None:
        self.manager = manager
        environ = {"NOTIFY_SOCKET": manager.address, "FDSTORE": "64", **how.pop("environ", {})}
        self.daemon = make(environ=environ, **how)
        self._answer_systemctl()
        self._sockets = [socket.socket(), socket.socket(socket.AF_UNIX)]
        tcp, unix = self._sockets
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", self.daemon.port))
        unix.bind(str(self.daemon.socket))
        for each in self._sockets:
            each.listen(1024)
        self._numbers = {f"door{at}": fcntl.fcntl(each, fcntl.F_DUPFD, AWAY) for at, each in enumerate(self._sockets)}

    def _answer_systemctl(self) -> None:
        binaries = self.daemon.folder / "bin"
        binaries.mkdir()
        (binaries / "systemctl").write_text(SYSTEMCTL)
        (binaries / "systemctl").chmod(0o755)
        self.daemon._environ["PATH"] = f"{binaries}:{os.environ['PATH']}"

    def start(self, *, ready: bool = True) -> None:
        """Starts vllmd with its sockets, and with what the store has."""
        passed = {**self._numbers, **self.manager.stored}
        words = [sys.executable, "-c", PASS, str(len(passed)), ":".join(passed), *map(str, passed.values())]
        said = self.manager.heard.count("READY=1")
        self.daemon.launch(*words, pass_fds=tuple(passed.values()))
        if ready:
            until_sync(lambda: self._is_ready(said), "READY=1")

    def _is_ready(self, said: int) -> bool:
        assert self.daemon.alive, self.daemon.log
        return self.manager.heard.count("READY=1") > said

    def stop(self) -> None:
        """systemctl stop: vllmd ends, and nothing is kept."""
        assert self.daemon.stop() == 0, self.daemon.log
        self.manager.drop()

    def restart(self) -> None:
        """systemctl restart."""
        assert self.daemon.stop() == 0, self.daemon.log
        self.start()

    def see_to_its_end(self) -> None:
        """Stops it, and asserts that nothing is left."""
        try:
            if self.daemon.alive:
                self.stop()
            self.manager.drop()
        finally:
            for number in self._numbers.values():
                os.close(number)
            for each in self._sockets:
                each.close()
            self.daemon.see_to_its_end(sockets_stay=True)


@contextmanager
def served(**how: Any) -> Iterator[Service]:
    """A service that its socket has started and that has become ready; stopped at the end."""
    with Manager().reading() as manager:
        service = Service(manager, **how)
        try:
            service.start()
            yield service
        finally:
            service.see_to_its_end()
