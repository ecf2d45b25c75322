"""How vllmctl ends when somebody else does: a reader that leaves, a user who presses Ctrl-C."""

import os
import signal
import threading
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import StubDaemon, chat, chunk, held_until, reply, stream, until_gone
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
