"""The short form of the load test, and the limits of what a process may open."""

import resource
import socket
from argparse import Namespace
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from asking import request
from bench import load
from daemons import Daemon, running
from waiting import until

PROMPT = "/api/prompt"


@pytest.mark.timeout(300)
async def test_three_hundred_streams_whose_clients_die_lose_nothing_and_leave_nothing() -> None:
    """`make load` runs the long form."""
    wanted = Namespace(streams=300, seconds=8.0, rate=8.0, seed=1)
    with running(load.make_daemon(wanted.streams, fake=True, rate_per_s=wanted.rate)) as daemon:
        assert await load.load(daemon, wanted) == []


def limits(pid: int) -> tuple[str, str]:
    """The soft and the hard limit of a process's open files."""
    (line,) = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in each]
    soft, hard = line.split()[3:5]
    return soft, hard


@pytest.mark.parametrize(("given", "taken"), [("1024:4096", "4096"), ("300:300", "300")])
def test_it_may_open_as_many_files_as_the_hard_limit_allows(given: str, taken: str) -> None:
    """Services, shells and containers begin with 1024 mostly; a running stream is two of them."""
    daemon = Daemon()
    try:
        daemon.start("prlimit", f"--nofile={given}")
        assert limits(daemon.pid) == (taken, given.partition(":")[2])
    finally:
        daemon.see_to_its_end()


def test_a_limit_that_is_higher_already_stays() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    daemon = Daemon()
    try:
        daemon.start("prlimit", f"--nofile={hard}:{hard}")
        assert limits(daemon.pid) == (str(hard), str(hard))
    finally:
        daemon.see_to_its_end()


def cpu_s(pid: int) -> float:
    """CPU time of a process (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_more_clients_than_descriptors_do_no_harm(loop: str) -> None:
    """Who came first is served, the engine is asked and stays, and nothing spins."""
    daemon = Daemon(loop=loop, supervision={"probe_interval_s": 0.2, "failure_threshold": 1})
    try:
        daemon.start("prlimit", "--nofile=160:160")
        with ExitStack() as stack:
            first = stack.enter_context(closing(socket.create_connection(("127.0.0.1", daemon.port))))
            for _ in range(400):
                stack.enter_context(closing(socket.create_connection(("127.0.0.1", daemon.port))))
            used_s, probes = cpu_s(daemon.pid), len(daemon.journal("request"))
            await until(lambda: len(daemon.journal("request")) >= probes + 10, "two seconds of health checks to pass")
            assert cpu_s(daemon.pid) - used_s < 1
            first.settimeout(30)
            first.sendall(request(PROMPT, {"prompt": "x", "stream": False}))
            assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        daemon.wait_for("ready")  # and clients
        assert (await daemon.unix.ask(PROMPT, {"prompt": "x"})).whole
        assert daemon.model().generation == 1
        assert daemon.log.count("more are turned away") == 1
    finally:
        daemon.see_to_its_end()
