"""How vllmctl ends when somebody else does: a reader that leaves, a user who presses Ctrl-C."""

import array
import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from ctl.shell import CTRL_C, Shell, screen
from ctl.stub_daemon import DONE, StubDaemon, chat, chunk, held_until, reply, stream, until_gone
from waiting import until_sync

from vllmd import sse

CHAT = "POST /v1/chat/completions"
LINES = [f"{number}\n" for number in range(20_000)]


def test_a_reader_that_leaves_ends_it_with_141_and_without_a_word(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat(*LINES))
    result = shell.script('"$@" chat "count" | head -1; echo "${PIPESTATUS[0]}"')
    assert (result.stdout, result.stderr) == ("0\n141\n", "")
    until_sync(daemon.gone.is_set, "the daemon to see that vllmctl has left")


@pytest.mark.parametrize("arguments", ["--help", "--version", "models", "status --json"])
def test_so_do_the_other_verbs(daemon: StubDaemon, shell: Shell, arguments: str) -> None:
    daemon.on("GET /v1/models", reply({"data": [{"id": "m"}]}))
    daemon.on("GET /api/status", reply({"version": "1", "state": "ready", "model": "m", "since": 0}))
    with shell.start(*arguments.split()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_ctrl_c_kills_it_by_the_signal_and_leaves_the_partial_answer(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("par\ntial"), until_gone))
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"par\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"tial"
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGINT
    until_sync(daemon.gone.is_set, "the daemon to see that vllmctl has left")


def test_the_shell_sees_130(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on(CHAT, stream(chunk("a\n"), until_gone))
    os.mkfifo(tmp_path / "out")
    # With job control (-m), a job in the background does not ignore SIGINT.
    text = f'set -m; "$@" chat hi > {tmp_path}/out & read -r < {tmp_path}/out; kill -INT $!; wait $!; echo "$?"'
    assert shell.script(text).stdout == "130\n"


def test_ctrl_c_ends_the_line_on_a_terminal(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("partial"), until_gone))
    with screen(shell, "chat", "hi") as seen:
        seen.read_until("partial")
        seen.process.send_signal(signal.SIGINT)
        assert seen.end() == -signal.SIGINT
        assert seen.written == b"partial\r\n"


def test_ctrl_c_while_waiting_leaves_an_empty_line(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("starting, 3 s"), until_gone))
    with screen(shell, "chat", "hi") as seen:
        seen.read_until("starting")
        seen.process.send_signal(signal.SIGINT)
        assert seen.end() == -signal.SIGINT
        assert seen.lines == [""]


def test_a_daemon_that_dies_is_no_closed_pipe(daemon: StubDaemon, shell: Shell) -> None:
    cut = threading.Event()
    daemon.on(CHAT, stream(chunk("partial"), held_until(cut), cut=True))
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.read(7) == b"partial"
        cut.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"vllmctl: the answer broke off")


INTERRUPT_AT_IMPORT = """
import os, signal, sys
left = [int(sys.argv.pop(1))]
def hook(event, arguments):
    if event == "import" and main_has_begun():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
def main_has_begun():
    return "vllmd.ctl.main" in sys.modules and hasattr(sys.modules["vllmd.ctl.main"], "main")
sys.addaudithook(hook)
from vllmd.ctl.main import main
main()
"""


@pytest.mark.parametrize("number", range(1, 95, 6))
def test_ctrl_c_at_any_import_kills_it_without_a_word(daemon: StubDaemon, shell: Shell, number: int) -> None:
    daemon.on(CHAT, stream(until_gone))
    command = [sys.executable, "-c", INTERRUPT_AT_IMPORT, str(number), "chat", "hi"]
    done = subprocess.run(command, env={**os.environ, **shell.environ}, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_works_while_stdout_is_full(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(*(chunk("x" * 1000) for _ in range(1000)), until_gone))
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        until_sync(lambda: is_full(process.stdout), "the pipe to be full")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


def is_full(pipe: IO[bytes] | None) -> bool:
    """Whether a pipe holds all that it can (ioctl_fionread(2), pipe(7))."""
    assert pipe is not None
    held = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, held)
    return held[0] >= fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - 4096


def test_a_shell_that_ignores_ctrl_c_is_obeyed(daemon: StubDaemon, shell: Shell) -> None:
    signalled = threading.Event()
    daemon.on(CHAT, stream(chunk("one\n"), held_until(signalled), chunk("two", "stop"), DONE))
    ignoring = replace(shell, before=("bash", "-c", 'trap "" INT; exec "$@"', "bash"))
    with ignoring.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        signalled.set()
        assert process.communicate(timeout=60) == (b"two\n", b"")
    assert process.returncode == 0


def test_ctrl_c_on_the_keyboard(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("partial"), until_gone))
    with screen(shell, "chat", "hi", keys=True) as seen:
        seen.read_until("partial")
        seen.type(CTRL_C + CTRL_C)
        assert seen.end() == -signal.SIGINT
        assert b"Traceback" not in seen.written
    until_sync(daemon.gone.is_set, "the daemon to see that vllmctl has left")


def test_ctrl_c_is_silent_even_while_python_starts_if_it_is_held_back_until_then(
    daemon: StubDaemon, shell: Shell
) -> None:
    daemon.on(CHAT, stream(until_gone))
    with replace(shell, before=("env", "--block-signal=INT")).start("chat", "hi") as process:
        until_sync(lambda: is_blocked(process.pid, signal.SIGINT), "env to begin")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGINT


def is_blocked(pid: int, number: signal.Signals) -> bool:
    """Whether that process holds that signal back, or did so and is further on (proc(5): SigBlk, SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_memory_stays_flat_however_long_the_answer_is(daemon: StubDaemon, shell: Shell) -> None:
    peaks_kib = list[int]()
    some = b"".join(chunk(f" token{number}") for number in range(1000))

    def look(_: object) -> None:  # all but what fits into the socket has been taken by then
        peaks_kib.append(peak_kib(process.pid))

    daemon.on(CHAT, stream(*[some] * 50, look, *[some] * 250, look, chunk("", "stop"), DONE))
    with shell.start("chat", "hi", stdout=subprocess.DEVNULL) as process:
        assert process.wait(60) == 0
    before, after = peaks_kib
    assert after - before < 1024


def peak_kib(pid: int) -> int:
    """The most memory that a process has held (proc(5): VmHWM)."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])
