"""ps, cancel, events, logs, top and status, against a real daemon on the fake engine."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ctl.shell import CTRL_C, Process, Shell, screen
from daemons import Daemon, running
from waiting import until_sync

SLOW = {"tokens": 1000, "tokens_per_s": 50}
TAKEN, GIVEN_BACK = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"


@pytest.fixture
def shell(real: Daemon) -> Shell:
    return Shell({"VLLMD_HOST": f"unix://{real.socket}"})


@contextmanager
def chatting(real: Daemon, shell: Shell) -> Iterator[Process]:
    """A chat whose answer has begun and goes on."""
    real.control(**SLOW)
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"tok0 tok1"
        yield process
        process.kill()


def first_line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip("\n")


def ended(process: Process, number: signal.Signals = signal.SIGINT) -> int:
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


# ── ps and cancel ──


def test_a_chat_is_seen_and_cancelled(real: Daemon, shell: Shell) -> None:
    with chatting(real, shell) as chat:
        heading, line = shell.run("ps").stdout.splitlines()
        assert heading.split() == ["ID", "WHO", "MODEL", "STATE", "AGE", "TOKENS"]
        id, who, model, state, _, _, tokens = line.split()
        assert (who, model, state) == (f"uid:{os.getuid()}", "tiny", "running")
        assert 0 < int(tokens) < 1000
        (told,) = json.loads(shell.run("ps", "--json").stdout)["requests"]
        assert told["id"].startswith(id)

        result = shell.run("cancel", id[:4])
        assert (result.status, result.stdout, result.stderr) == (0, f"{told['id']}: cancelled\n", "")
        _, err = chat.communicate(timeout=60)
        assert chat.returncode == 1
        assert err.decode().startswith(f"vllmctl: the request was cancelled by uid:{os.getuid()}\n")
    until_sync(lambda: real.journal("end"), "the engine to end")
    assert real.journal("end")[0]["how"] == "cancelled"
    assert shell.run("ps").stdout.count("\n") == 1


def test_one_that_is_held_is_seen_and_cancelled(real: Daemon, shell: Shell) -> None:
    real.order("unload", wait=True)
    real.control(ready_after_s=600)
    real.order("load")
    with shell.start("chat", "hi") as chat:
        until_sync(lambda: real.model().held == 1, "the chat to be held")
        (told,) = json.loads(shell.run("ps", "--json").stdout)["requests"]
        assert told["state"] == "held"
        assert shell.run("cancel", told["id"]).status == 0
        _, err = chat.communicate(timeout=60)
        assert (chat.returncode, b"cancelled" in err) == (1, True)
    real.control()
    assert real.order("restart", wait=True)[0] == 200


def test_status_tells_how_fast_the_answers_come(real: Daemon, shell: Shell) -> None:
    with chatting(real, shell):
        lines = shell.run("status").stdout.splitlines()
    (line,) = [each for each in lines if each.startswith("    requests")]
    assert line.startswith("    requests      1 running, 0 held, ")
    assert line.endswith(" tok/s")


# ── events ──


def test_every_change_is_a_line(real: Daemon, shell: Shell) -> None:
    with shell.start("events") as process:
        assert first_line(process).endswith(
            f"  tiny: ready (generation {real.model().generation}, pid {real.engine_pid})"
        )
        real.order("restart", wait=True)
        told = [first_line(process).partition("  ")[2]]
        while not told[-1].startswith("tiny: ready"):
            told.append(first_line(process).partition("  ")[2])
        assert told[0].startswith("tiny: stopping (generation ")
        assert told[1].startswith("tiny: starting")
        assert ended(process) == -signal.SIGINT


def test_or_an_object(real: Daemon, shell: Shell) -> None:
    with shell.start("events", "--json") as process:
        first = json.loads(first_line(process))
        assert (first["event"], first["name"], first["state"]) == ("model", "tiny", "ready")
        with chatting(real, shell):
            os.kill(real.engine_pid, signal.SIGKILL)
            kinds = [json.loads(first_line(process))]
            while kinds[-1]["event"] != "continued":
                kinds.append(json.loads(first_line(process)))
        assert kinds[-1].keys() == {"event", "model", "request", "generation"}
        assert "backoff" in {each.get("state") for each in kinds}
        assert ended(process) == -signal.SIGINT


def test_answers_that_go_on_elsewhere_are_a_line_too(real: Daemon, shell: Shell) -> None:
    with shell.start("events") as process:
        first_line(process)
        with chatting(real, shell):
            os.kill(real.engine_pid, signal.SIGKILL)
            while "goes on with request" not in (line := first_line(process)):
                assert line
        assert f"  tiny: generation {real.model().generation} goes on with request " in line
        assert ended(process) == -signal.SIGINT


# ── logs ──


def test_the_last_lines_of_the_engine(real: Daemon, shell: Shell) -> None:
    result = shell.run("logs")
    assert (result.status, result.stderr) == (0, "")
    assert "Application startup complete" in result.stdout
    assert shell.run("logs", "-n", "2").stdout.splitlines() == result.stdout.splitlines()[-2:]
    assert shell.run("logs", "-n", "0").stdout == ""
    assert shell.run("logs", "--since", "@1").stdout == result.stdout
    assert shell.run("logs", "--since", "@99999999999").stdout == ""
    assert shell.run("logs", "-m", "tiny").stdout == result.stdout
    nobody = shell.run("logs", "-m", "tini")
    assert (nobody.status, nobody.stdout) == (1, "")
    assert "did you mean 'tiny'?" in nobody.stderr


def test_and_then_live(real: Daemon, shell: Shell) -> None:
    last = shell.run("logs", "-n", "1").stdout
    with shell.start("logs", "-f", "-n", "1") as process:
        assert first_line(process) == last.rstrip("\n")
        real.order("restart", wait=True)
        assert first_line(process)
        assert ended(process) == -signal.SIGINT


# ── top ──


def test_top_is_renewed_in_place_and_leaves_the_terminal_as_it_was(real: Daemon, shell: Shell) -> None:
    with chatting(real, shell), screen(shell, "top", "-d", "0.2", keys=True) as seen:
        seen.read_until("\x1b[?1049h")
        seen.read_until("tiny   ready        1     0")
        seen.read_until("uid:")
        seen.read_until("\x1b[H")
        seen.type("q")
        assert seen.end() == 0
        assert seen.is_cooked
    assert seen.written.endswith(GIVEN_BACK)
    assert seen.written.count(b"\x1b[H") >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_top_gives_the_terminal_back_whatever_ends_it(real: Daemon, shell: Shell, number: signal.Signals) -> None:
    with screen(shell, "top", keys=True) as seen:
        seen.read_until("tiny   ready")
        assert not seen.is_cooked
        os.kill(seen.process.pid, number)
        assert seen.end() == -number
        assert seen.is_cooked
    assert seen.written.endswith(GIVEN_BACK)


def test_top_ends_with_ctrl_c(real: Daemon, shell: Shell) -> None:
    with screen(shell, "top", keys=True) as seen:
        seen.read_until("tiny   ready")
        seen.type(CTRL_C)
        assert seen.end() == -signal.SIGINT
        assert seen.is_cooked
    assert seen.written.endswith(GIVEN_BACK)


def test_top_stops_with_ctrl_z_and_goes_on(real: Daemon, shell: Shell) -> None:
    jobs = 'set -m; "$@"; echo "stopped: $?"; fg >&2; echo "ended: $?"'
    with screen(replace(shell, before=("bash", "-c", jobs, "bash")), "top", keys=True) as seen:
        seen.read_until("tiny   ready")
        seen.type("\x1a")
        seen.read_until(GIVEN_BACK.decode())
        seen.read_until(f"stopped: {128 + signal.SIGTSTP}")
        seen.read_until(TAKEN.decode())
        seen.read_until("tiny   ready")
        seen.type("q")
        seen.read_until(GIVEN_BACK.decode())
        seen.read_until("ended: 0")
        assert seen.end() == 0
        assert seen.is_cooked


def test_top_outlives_the_daemon_and_says_so(shell: Shell) -> None:
    with running(Daemon()) as daemon:
        its_own = Shell({"VLLMD_HOST": f"unix://{daemon.socket}"})
        with screen(its_own, "top", "-d", "0.1", keys=True) as seen:
            seen.read_until("tiny   ready")
            assert daemon.stop() == 0
            seen.read_until("cannot reach vllmd at ")
            daemon.start()
            seen.read_until("\x1b[Hvllmd ")
            seen.read_until("tiny   ready")
            seen.type("q")
            assert seen.end() == 0


def test_top_fits_the_terminal(real: Daemon, shell: Shell) -> None:
    with screen(shell, "top", size=(4, 20), keys=True) as seen:
        seen.read_until("tiny   ready")
        seen.read_until("\x1b[J")
        seen.type("q")
        assert seen.end() == 0
    page = seen.written.partition(b"\x1b[H")[2].partition(b"\x1b[J")[0].decode().split("\r\r\n")
    assert len(page) == 4
    assert all(len(line.removesuffix("\x1b[K")) < 20 for line in page)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_top_on_what_cannot_draw_is_one_look(real: Daemon, shell: Shell, term: str) -> None:
    with screen(shell, "top", environ={"TERM": term}) as seen:
        assert seen.end() == 0
    assert b"\x1b" not in seen.written
    assert [line.split() for line in seen.lines][3][:2] == ["tiny", "ready"]


def test_top_in_a_pipe_is_one_look(real: Daemon, shell: Shell) -> None:
    with chatting(real, shell):
        result = shell.run("top")
    assert (result.status, result.stderr) == (0, "")
    title, _, models, tiny, _, requests, chat = result.stdout.splitlines()
    assert title.startswith("vllmd ")
    assert models.split() == ["MODEL", "STATE", "RUNNING", "HELD", "TOK/S", "USED"]
    assert tiny.split()[:4] == ["tiny", "ready", "1", "0"]
    assert float(tiny.split()[4]) > 0
    assert tiny.split()[5] == "now"
    assert requests.split() == ["ID", "WHO", "MODEL", "STATE", "AGE", "TOKENS", "TOK/S"]
    assert chat.split()[1:4] == [f"uid:{os.getuid()}", "tiny", "running"]


def test_top_without_a_daemon_is_3(tmp_path: Path) -> None:
    nowhere = Shell({"VLLMD_HOST": f"unix://{tmp_path}/none"})
    assert nowhere.run("top").status == 3
    with screen(nowhere, "top", keys=True) as seen:
        assert seen.end() == 3
    assert b"\x1b[?1049h" not in seen.written
