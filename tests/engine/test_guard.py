"""The guard against real processes: whatever comes of its command, nothing of it is left."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import FOREVER, python
from waiting import alive, descendants, processes_with_environ, until_sync

from vllmd.engine import guard

MARK = "TEST_GUARD"
DIES_WITHIN_S = 30.0


@dataclass
class Guarded:
    """A running guard and what the test holds of it."""

    popen: subprocess.Popen[bytes]
    lifeline: socket.socket
    mark: str

    def line(self) -> str:
        """The next line of the log."""
        assert self.popen.stdout
        return self.popen.stdout.readline().decode().strip()

    def cut(self) -> None:
        """What the kernel does when vllmd dies."""
        self.lifeline.close()

    def left(self) -> set[int]:
        """The engine's living processes, wherever they are; not the guard itself."""
        return processes_with_environ(MARK, self.mark) - {self.popen.pid}

    def ended(self, within_s: float = DIES_WITHIN_S) -> int:
        """Waits for the guard; returns its exit status, after nothing of the engine was left."""
        status = self.popen.wait(within_s)
        assert self.left() == set()
        return status


@contextmanager
def guarded(*argv: str, **more: object) -> Iterator[Guarded]:
    """Runs a command behind a guard; cleans up behind one that failed."""
    ours, theirs = socket.socketpair()
    mark = uuid.uuid4().hex
    command = [sys.executable, "-I", "-S", guard.__file__, "--", *argv]
    environ = {**os.environ, MARK: mark}
    options = {"stdin": theirs.fileno(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environ} | more
    with ours, subprocess.Popen(command, **options) as popen:  # type: ignore[call-overload]
        theirs.close()
        process = Guarded(popen, ours, mark)
        try:
            yield process
        finally:
            popen.kill()
            for pid in process.left():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "status"),
    [("0", 0), ("3", 3), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getpid(), 15)", 143)],
)
def test_the_leaders_status_is_the_guards(end: str, status: int) -> None:
    with guarded(*python(f"sys.exit({end})")) as process:
        assert process.ended() == status


def test_the_leader_is_told_of_on_the_lifeline() -> None:
    with guarded(*python("say(os.getpid())" + FOREVER)) as process:
        assert process.lifeline.recv(100).decode() == f"started {process.line()}\n"


def test_the_guards_last_word_is_how_the_leader_ended() -> None:
    with guarded(*python("sys.exit(3)")) as process:
        process.ended()
        assert process.lifeline.recv(100).decode().splitlines()[1:] == ["exited 3"]


def test_a_lifeline_that_is_cut_is_cut_for_all_who_hold_it_and_still_carries_the_last_word() -> None:
    with guarded(*python("say(1)" + FOREVER)) as process, process.lifeline.dup() as held_by_another:
        assert process.line() == "1"
        process.lifeline.shutdown(socket.SHUT_WR)
        assert process.ended() == 128 + signal.SIGKILL
        assert held_by_another.recv(100).decode().splitlines()[1:] == ["exited 137"]


def test_a_lifeline_that_another_holds_keeps_the_engine_when_vllmd_is_gone() -> None:
    with guarded(*python("say(1)" + FOREVER)) as process, process.lifeline.dup() as held_by_another:
        assert process.line() == "1"
        process.cut()
        held_by_another.settimeout(DIES_WITHIN_S)
        assert held_by_another.recv(100).startswith(b"started")
        assert process.popen.poll() is None
        held_by_another.close()
        assert process.ended() == 128 + signal.SIGKILL


def test_the_leader_gets_a_clean_place() -> None:
    code = """
say(os.getsid(0) == os.getpid())
say(os.readlink("/proc/self/fd/0"), *sorted(os.listdir("/proc/self/fd")))  # 3 is the listing itself
"""
    with guarded(*python(code)) as process:
        assert process.line() == "True"
        assert process.line() == "/dev/null 0 1 2 3"
        assert process.ended() == 0


def test_blocked_and_ignored_signals_are_not_handed_on() -> None:
    ignoring = "for number in {1, 2, 13, 15, 17}: signal.signal(number, signal.SIG_IGN)\n"
    blocking = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
    program = ["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    guard_argv = [sys.executable, "-I", "-S", guard.__file__, "--", *program]
    with subprocess.Popen(
        python(f"{ignoring}{blocking}os.execv({sys.executable!r}, {guard_argv!r})"), stdout=subprocess.PIPE
    ) as popen:
        output, _ = popen.communicate(timeout=DIES_WITHIN_S)
    internal = 1 << 31 | 1 << 32  # glibc's own two, which posix_spawn(3) ignores in every child
    assert [int(line.split()[1], 16) & ~internal for line in output.splitlines()] == [0, 0]
    assert popen.returncode == 0


def test_the_guard_is_out_of_the_terminals_reach() -> None:
    with guarded(*python(FOREVER)) as process:
        process.lifeline.recv(100)
        assert os.getsid(process.popen.pid) == process.popen.pid


def test_the_log_holds_nothing_but_the_engines_words() -> None:
    with guarded("/bin/echo", "hello") as process:
        assert process.line() == "hello"
        assert process.line() == ""


@pytest.mark.parametrize("program", ["/nowhere/vllm", "no-such-program-anywhere", "/etc/passwd"])
def test_a_command_that_cannot_be_run(program: str) -> None:
    with guarded(program, "serve") as process:
        verb, _, reason = process.lifeline.recv(200).decode().splitlines()[0].partition(" ")
        assert verb == "failed"
        assert process.line() == f"vllmd guard: cannot start {program}: {reason}"
        assert process.line() == ""
        assert process.ended() == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_guard_is_for_the_leader_to_answer(number: signal.Signals) -> None:
    code = f"signal.signal({number:d}, lambda *_: sys.exit(7)); say('up')" + FOREVER
    with guarded(*python(code)) as process:
        process.line()
        process.popen.send_signal(number)
        assert process.ended() == 7


def test_a_leader_may_ignore_signals_but_not_the_lifelines_end() -> None:
    code = "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\nsay('up')" + FOREVER
    with guarded(*python(code)) as process:
        process.line()
        for _ in range(100):
            process.popen.send_signal(signal.SIGTERM)
        process.cut()
        assert process.ended() == 137


def test_the_lifeline_may_be_a_pipe() -> None:
    read_end, write_end = os.pipe()
    with guarded(*python("say('up')" + FOREVER), stdin=read_end) as process:
        os.close(read_end)
        process.line()
        os.close(write_end)
        assert process.ended() == 137


def test_a_lifeline_that_was_cut_before_the_start() -> None:
    with guarded(*python(FOREVER)) as process:
        process.cut()
        assert process.ended() == 137


def test_the_engine_does_not_hold_the_lifeline() -> None:
    with guarded(*python(FOREVER)) as process:
        process.lifeline.recv(100)
        process.popen.kill()
        assert process.lifeline.recv(100) == b"", "end of file although the leader lives on"


def test_a_stopped_engine_dies_too() -> None:
    code = "child = os.fork()\nif child: say(child, os.getpid())" + FOREVER
    with guarded(*python(code)) as process:
        for pid in map(int, process.line().split()):
            os.kill(pid, signal.SIGSTOP)
        process.cut()
        assert process.ended() == 137


@pytest.mark.parametrize("strike", ["the leader", "the lifeline"])
def test_daemons_do_not_get_away(strike: str) -> None:
    code = "for _ in range(3): daemon()\nos.fork()\nos.fork()\nsay('up', os.getpid())" + FOREVER
    with guarded(*python(code)) as process:
        said = [process.line() for _ in range(3 + 4)]
        daemons = [int(line) for line in said if line.isdigit()]
        assert all(map(alive, daemons))
        leader = int(process.lifeline.recv(100).split()[1])
        if strike == "the leader":
            os.kill(leader, signal.SIGKILL)
        else:
            process.cut()
        assert process.ended() == 137
        assert not any(map(alive, daemons))


def test_a_daemon_that_hides_its_environment_does_not_get_away() -> None:
    code = "if os.fork() == 0:\n os.setsid()\n os.execve('/bin/sleep', ['sleep', '600'], {})\nsay('up')" + FOREVER
    with guarded(*python(code)) as process:
        process.line()
        until_sync(lambda: len(descendants(process.popen.pid)) == 2, "both processes")
        below = descendants(process.popen.pid)
        process.cut()
        assert process.ended() == 137
        assert not any(map(alive, below))


def test_orphans_are_reaped_while_the_engine_runs() -> None:
    code = (
        """
for _ in range(200):
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(0.05)
        os._exit(0)
    os.wait()
say('up')
"""
        + FOREVER
    )
    with guarded(*python(code)) as process:
        process.line()
        own = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children")
        until_sync(lambda: len(own.read_text().split()) == 1, "the orphans to be reaped, zombies and all")
        process.cut()
        assert process.ended() == 137


def test_a_leader_that_ends_in_good_order_leaves_nobody_behind() -> None:
    with guarded(*python("daemon()\ntime.sleep(0.2)\nsys.exit(0)")) as process:
        assert alive(daemon := int(process.line()))
        assert process.ended() == 0
        assert not alive(daemon)


STORM = (
    """
end = time.monotonic() + 20  # should the guard fail
def comet(new_session):
    while time.monotonic() < end:
        if new_session: os.setsid()
        if os.fork(): os._exit(0)
def fan():
    while time.monotonic() < end:
        if os.fork() == 0: time.sleep(20); os._exit(0)
        time.sleep(0.005)
for body in (lambda: comet(False), lambda: comet(True), fan) * 2:
    if os.fork() == 0: body()
say('up')
"""
    + FOREVER
)


@pytest.mark.parametrize("storm_s", [0.0, 0.3, 1.0])
def test_a_fork_storm_is_stilled(storm_s: float) -> None:
    with guarded(*python(STORM)) as process:
        process.line()
        time.sleep(storm_s)
        process.cut()
        assert process.ended(15) == 137


def test_a_deep_tree_is_felled() -> None:
    code = "for depth in range(100):\n if os.fork(): break\nif depth == 99: say('up')" + FOREVER
    with guarded(*python(code)) as process:
        process.line()
        process.cut()
        assert process.ended(15) == 137


def test_children_of_every_thread_are_seen() -> None:
    code = (
        """
import threading
def parent():
    if os.fork() == 0:
        os.setsid()
        while True: signal.pause()
    say('up')
    time.sleep(600)
for _ in range(3): threading.Thread(target=parent, daemon=True).start()
"""
        + FOREVER
    )
    with guarded(*python(code)) as process:
        for _ in range(3):
            process.line()
        process.cut()
        assert process.ended() == 137
