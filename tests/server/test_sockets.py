"""The doors: modes and groups, stale and live sockets, sockets from systemd, and a clean end."""

import asyncio
import grp
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Door
from conftest import Start
from daemons import Daemon, free_port
from waiting import until, until_sync

PROMPT = "/api/prompt"


@pytest.fixture
def idle() -> Iterator[Daemon]:
    """A daemon that is configured and not started."""
    daemon = Daemon()
    yield daemon
    daemon.see_to_its_end()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("configured", "wanted"), [("", 0o660), ("0600", 0o600), ("0666", 0o666), ("777", 0o777)])
def test_the_socket_has_the_mode_that_is_configured(start: Start, configured: str, wanted: int) -> None:
    daemon = start(ready=False, listen={"unix_mode": configured} if configured else {})
    assert mode(daemon.socket) == wanted


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give things to any group")
def test_the_socket_belongs_to_the_group_that_is_configured(start: Start) -> None:
    daemon = start(ready=False, listen={"unix_group": "nogroup"})
    assert daemon.socket.stat().st_gid == grp.getgrnam("nogroup").gr_gid
    assert start(ready=False).socket.stat().st_gid == os.getgid()


def assert_refuses(daemon: Daemon, *words: str) -> None:
    daemon.start_in_vain()
    for word in words:
        assert word in daemon.log, daemon.log
    assert "Traceback" not in daemon.log
    assert not list(daemon.folder.glob("r/*"))


def test_an_unknown_group_is_named_and_leaves_no_socket(idle: Daemon) -> None:
    idle.configure({}, {"listen": {"unix_group": "no-such-group"}})
    assert_refuses(idle, "no-such-group", "groupadd")
    assert not idle.socket.exists()


def test_the_directory_of_the_socket_is_made(idle: Daemon) -> None:
    path = idle.folder / "a" / "b" / "d.sock"
    idle.configure({}, {"listen": {"unix": str(path)}})
    idle.socket = path
    idle.start(ready=False)
    assert mode(path.parent) == 0o755
    idle.stop()
    assert not path.exists()


def test_a_stale_socket_is_replaced(idle: Daemon) -> None:
    idle.start(ready=False)
    idle.signal(signal.SIGKILL)
    idle.wait()
    assert idle.socket.is_socket(), "nobody cleaned up"
    until_sync(lambda: not idle.everybody(), "the engine to go with it")
    idle.start()
    assert idle.fetch("/health")[0] == 200


def test_what_is_no_socket_is_left_alone(idle: Daemon) -> None:
    idle.socket.write_text("precious")
    assert_refuses(idle, str(idle.socket), "no socket")
    assert idle.socket.read_text() == "precious"
    idle.socket.unlink()


def test_a_socket_whose_owner_is_busy_is_not_taken(idle: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(idle.socket))
        owner.listen(0)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(idle.socket))  # the backlog is full now, and the owner accepts nobody
            assert_refuses(idle, str(idle.socket))
    assert idle.socket.is_socket()
    idle.socket.unlink()


async def test_of_two_that_start_together_one_wins_and_serves(idle: Daemon) -> None:
    other = Daemon()
    try:
        other.configure({}, {"listen": {"unix": str(idle.socket), "tcp": f"127.0.0.1:{idle.port}"}})
        idle.launch()
        other.launch()
        await until(lambda: idle.alive != other.alive, "one to give way")
        winner = idle if idle.alive else other
        winner.socket = idle.socket
        winner.wait_for("ready")
        assert (await Door(idle.socket).ask(PROMPT, {"prompt": "x"})).whole
        assert (await Door(idle.port).ask(PROMPT, {"prompt": "x"})).whole
    finally:
        other.see_to_its_end()


def test_without_tcp_there_is_only_the_socket(start: Start) -> None:
    daemon = start(ready=False, listen={"tcp": ""})
    assert daemon.status().addresses == (f"unix://{daemon.socket}",)
    assert listening_ports(daemon.everybody()) == set()


def test_ipv6_is_served(start: Start) -> None:
    port = free_port()
    daemon = start(ready=False, listen={"tcp": f"[::1]:{port}"})
    with socket.create_connection(("::1", port)) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b"alive" in b"".join(iter(lambda: connection.recv(65536), b""))
    assert f"http://[::1]:{port}" in daemon.status().addresses


def listening_ports(pids: set[int]) -> set[int]:
    """The TCP ports on which any of those processes listens, from /proc/net/tcp and their descriptors."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return {inodes[name] for link in links if (name := os.readlink(link)) in inodes}


def test_the_engine_has_no_tcp_port(start: Start) -> None:
    daemon = start(knobs={"tree": 1})
    assert listening_ports({daemon.pid}) == {daemon.port}
    assert listening_ports(daemon.everybody()) == {daemon.port}
    assert listening_ports(daemon.everybody() - {daemon.pid}) == set()


def test_the_engine_s_socket_is_private_and_new_each_time(start: Start) -> None:
    daemon = start()
    paths = []
    for _ in range(2):
        path = daemon.engine_socket
        paths.append(path)
        assert mode(path.parent) == 0o700
        assert mode(path.parent.parent) == 0o700
        assert path.parent.stat().st_uid == os.getuid()
        daemon.order("restart", wait=True)
        assert not path.parent.exists()
    assert len(set(paths)) == 2


# ── sockets from systemd ──


@pytest.fixture
def activated() -> Iterator[Daemon]:
    """A daemon that is to be started with two open sockets, as by vllmd.socket."""
    idle = Daemon()
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", idle.port))
        unix.bind(str(idle.socket))
        for each in (tcp, unix):
            each.listen(100)
        os.dup2(tcp.fileno(), 203)
        os.dup2(unix.fileno(), 204)
        idle.configure({}, {"listen": {"tcp": "127.0.0.1:1", "unix": "/nonexistent/at/all.sock"}})
        yield idle
        idle.see_to_its_end(sockets_stay=True)
        os.close(203)
        os.close(204)


def activate(daemon: Daemon, *, ready: bool = True, pid: str = "str(os.getpid())") -> None:
    """Starts it with the descriptors at 3 and 4, and LISTEN_PID set in the process itself."""
    code = (
        "import os, sys; os.dup2(203, 3, True); os.dup2(204, 4, True); os.closerange(5, 300);"
        f"os.environ.update(LISTEN_PID={pid}, LISTEN_FDS='2', LISTEN_FDNAMES='a:b');"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    daemon.start(sys.executable, "-c", code, ready=ready, pass_fds=(203, 204))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_sockets_that_systemd_passes_are_served(activated: Daemon, loop: str) -> None:
    activated.loop = loop
    early = [asyncio.create_task(door.ask(PROMPT, {"prompt": "early"})) for door in (activated.tcp, activated.unix)]
    await asyncio.sleep(0)
    await asyncio.to_thread(activate, activated)
    for task in early:
        answer = await task
        assert answer.status == 200, answer.body
        assert answer.whole, "whoever connected before vllmd ran is served"
    assert set(activated.status().addresses) == {f"unix://{activated.socket}", activated.url}
    assert (await activated.unix.ask("/api/models/tiny/load", b"")).status == 202
    assert (await activated.tcp.ask("/api/models/tiny/load", b"")).status == 403


async def test_they_outlive_a_restart_and_nobody_is_refused(activated: Daemon) -> None:
    await asyncio.to_thread(activate, activated)
    activated.signal(signal.SIGTERM)
    assert await asyncio.to_thread(activated.wait) == 0
    assert activated.socket.is_socket(), "it is systemd's"
    waiting = [asyncio.create_task(door.ask(PROMPT, {"prompt": "x"})) for door in (activated.tcp, activated.unix)]
    await asyncio.sleep(0)
    await asyncio.to_thread(activate, activated)
    for task in waiting:
        assert (await task).whole


async def test_sockets_for_somebody_else_are_not_taken(activated: Daemon) -> None:
    port = free_port()
    activated.configure({}, {"listen": {"tcp": f"127.0.0.1:{port}", "unix": str(activated.folder / "e.sock")}})
    activated.socket, activated.port = activated.folder / "e.sock", port
    await asyncio.to_thread(activate, activated, ready=False, pid="'1'")
    assert activated.status().addresses == (f"http://127.0.0.1:{port}", f"unix://{activated.socket}")


def test_the_engine_inherits_no_socket(activated: Daemon) -> None:
    activate(activated)
    engine = activated.engine_pid
    listening = subprocess.run(["ls", "-l", f"/proc/{engine}/fd"], capture_output=True, text=True, check=True).stdout
    assert listening_ports({engine}) == set()
    environ = Path(f"/proc/{engine}/environ").read_bytes()
    assert b"LISTEN_" not in environ, listening
