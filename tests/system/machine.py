"""A machine for tests: Debian in a container, with a real systemd as its process 1.

systemd-nspawn boots it in two seconds over a throw-away overlay of a root file system that mmdebstrap has made (see
debian.py: two minutes, once). Its network is its own, with nothing but lo. Tests stay outside: they run commands in it,
see its files below `path`, and reach its sockets by that path or by `connect`. All of it runs in a PID namespace whose
end is the end of everything, mounts included, however the tests end.
"""

import ctypes
import os
import re
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import alive, descendants, until_sync

BOOTS_WITHIN_S = 120.0
LONGEST_COMMAND_S = 120.0
CLONE_NEWNET = 0x40000000  # linux/sched.h

BOOT = """
mount -t tmpfs -o mode=755 tmpfs "$1" && cd "$1" && mkdir upper work root &&
mount -t overlay overlay -o "lowerdir=$2,upperdir=upper,workdir=work" root &&
mkdir -p /run/systemd/nspawn && mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn || exit
until systemd-nspawn --quiet --register=no --keep-unit --machine=vllmd-test --console=pipe --private-network \
    --directory=root --boot; [ $? != 133 ]; do :; done
"""
"""Runs in namespaces of its own. $1: an empty directory; $2: the root file system. 133 is a reboot."""


class Machine:
    """A machine that runs.

    Args:
        outer: what runs it.
        console: what it has written there.

    Attributes:
        leader: the process here that is process 1 there.
    """

    def __init__(self, outer: "subprocess.Popen[bytes]", console: Path) -> None:
        self._outer = outer
        self._console = console
        self.leader = 0

    def wait(self) -> None:
        """Returns when it has started all units."""
        try:
            until_sync(self._is_up, "the machine to be up", BOOTS_WITHIN_S)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self._console.read_text(errors='replace')[-4000:]}") from None

    def _is_up(self) -> bool:
        assert self._outer.poll() is None, "systemd-nspawn has ended"
        self.leader = next(filter(_is_first, descendants(self._outer.pid)), 0)
        return bool(self.leader) and self.run("systemctl", "is-system-running").stdout.strip() in (
            "running",
            "degraded",
        )

    def path(self, inside: str) -> Path:
        """A file of the machine's, as it is seen from here."""
        return Path(f"/proc/{self.leader}/root{inside}")

    def run(self, *argv: str, user: str = "", stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Runs a command in it, as `user` or as root."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd"]
        environ = [
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "HOME=/root",
            "SYSTEMD_PAGER=",
        ]
        who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        return subprocess.run(
            [*enter, *environ, *who, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONGEST_COMMAND_S,
            check=False,
        )

    def __call__(self, *argv: str, user: str = "", stdin: str = "") -> str:
        """Runs a command that must succeed; returns what it printed."""
        ran = self.run(*argv, user=user, stdin=stdin)
        if ran.returncode:
            raise AssertionError(
                f"{argv} ended with {ran.returncode}: {ran.stdout}{ran.stderr}\n{self.journal()[-6000:]}"
            )
        return ran.stdout.strip()

    def write(self, inside: str, text: str) -> None:
        """Writes a file in it, its directories included."""
        self.path(inside).parent.mkdir(parents=True, exist_ok=True)
        self.path(inside).write_text(text)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit's (systemctl show)."""
        return self("systemctl", "show", "--value", "--property", name, unit)

    def kill(self, pid: int, signal: str) -> None:
        """Sends a signal to a process of its, by its number there."""
        self("sh", "-c", f"kill -{signal} {pid}")

    def journal(self, *options: str) -> str:
        """The lines of its journal, with all that was said until now: journald is behind on a busy machine."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", *options).stdout

    def reboot(self) -> None:
        """Boots it anew, on the same files."""
        before = self.leader
        self.run("systemctl", "--no-block", "reboot")
        until_sync(lambda: not alive(before), "the machine to go down", BOOTS_WITHIN_S)
        self.wait()

    def connect(self, port: int) -> socket.socket:
        """A connection to a TCP port of its loopback interface, which is another one than ours."""
        made: list[socket.socket] = []
        thread = threading.Thread(target=lambda: made.append(_socket_in(self.leader)))  # a thread can move alone
        thread.start()
        thread.join()
        (found,) = made
        found.settimeout(LONGEST_COMMAND_S)
        found.connect(("127.0.0.1", port))
        return found


def _socket_in(pid: int) -> socket.socket:
    """A socket in the network of that process; the calling thread stays there (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net", "rb") as network:
        if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    return socket.socket()


@contextmanager
def booted(root: Path, folder: Path) -> Iterator[Machine]:
    """A machine for as long as the block lasts.

    Args:
        root: its root file system, which stays as it is.
        folder: an empty one, for its console and as a place to mount on.
    """
    (folder / "root").mkdir()
    with _cgroups() as groups, (folder / "console").open("wb") as console:
        unshare = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter = "".join(f"echo $$ > {each}/cgroup.procs && " for each in groups)
        boot = [
            "sh",
            "-c",
            f'{enter}exec "$@"',
            "sh",
            *unshare,
            "sh",
            "-c",
            BOOT,
            "sh",
            str(folder / "root"),
            str(root),
        ]
        environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        outer = subprocess.Popen(boot, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environ)
        try:
            machine = Machine(outer, folder / "console")
            machine.wait()
            yield machine
        finally:
            outer.kill()
            outer.wait()


@contextmanager
def _cgroups() -> Iterator[list[Path]]:
    """A cgroup of the machine's own in each hierarchy that systemd uses, so that it does not spread beside others'."""
    tree = Path("/sys/fs/cgroup")
    hierarchies = [tree / name for name in ("systemd", "unified") if (tree / name).is_dir()] or [tree]
    name = f"vllmd-test-{secrets.token_hex(4)}"
    groups = [each / name for each in hierarchies]
    for each in groups:
        each.mkdir()
    try:
        yield groups
    finally:
        for each in groups:
            until_sync(lambda each=each: _remove(each), f"{each} to be empty")  # type: ignore[misc]


def _remove(group: Path) -> bool:
    """Removes a cgroup, if all processes in and below it have gone."""
    for below, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(below)
    return not group.exists()


def _is_first(pid: int) -> bool:
    """Whether that process is process 1 of a PID namespace below nspawn's, which is below ours (proc(5), NSpid)."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = re.findall(r"^NSpid:\s(.*)$", status, re.MULTILINE)[0].split()
        return len(numbers) == 3 and numbers[-1] == "1"
    return False
