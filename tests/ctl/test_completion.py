"""Completion: the scripts in their shells, and what vllmctl answers at a tab; in vain it is silent and quick."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import Answer, StubDaemon, refuse, reply, until_gone

from vllmd.ctl.complete import LIMIT_S
from vllmd.ctl.completion import SHELLS, script

MODELS = reply({"data": [{"id": "qwen"}, {"id": "qwen-large"}, {"id": "llama"}]})
INCIDENTS = reply({"incidents": [{"id": "20261127T1-b"}, {"id": "20261126T9-a"}]})
REQUESTS = reply({"requests": [{"id": "8a7f"}, {"id": "8b00"}, {"id": "9000"}]})
LAUNCHER = f'#!/bin/sh\nexec {sys.executable} -m vllmd.ctl "$@"\n'
ROOT = Path(__file__).parents[2]

START_S = 3.0
"""What the start of a Python process and of a shell may take on a machine that is busy."""


def tab(shell: Shell, *words: str) -> list[str]:
    """What vllmctl proposes for the last of the words."""
    environ = {
        "_VLLMCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(["vllmctl", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = shell.run(environ=environ)
    assert (result.status, result.stderr) == (0, "")
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["lo"], ["load", "logs"]),
        (["chat", "--te"], ["--temperature"]),
        (["chat", "-m", ""], ["qwen", "qwen-large", "llama"]),
        (["chat", "hello", "--model", "qwen-"], ["qwen-large"]),
        (["load", "l"], ["llama"]),
        (["wait", "q"], ["qwen", "qwen-large"]),
        (["logs", "-m", "l"], ["llama"]),
        (["cancel", "8"], ["8a7f", "8b00"]),
        (["incidents", ""], ["last", "20261127T1-b", "20261126T9-a"]),
        (["incidents", "20261126"], ["20261126T9-a"]),
        (["incidents", "la"], ["last"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nonsense", "zzz"], []),
        (["chat", "-m", "nobody"], []),
    ],
)
def test_what_is_proposed(daemon: StubDaemon, shell: Shell, words: list[str], found: list[str]) -> None:
    daemon.on("GET /v1/models", MODELS)
    daemon.on("GET /api/requests", REQUESTS)
    daemon.on("GET /api/incidents", INCIDENTS)
    assert tab(shell, *words) == found


def test_a_host_on_the_line_is_asked(daemon: StubDaemon, socket_path: Path) -> None:
    daemon.on("GET /v1/models", MODELS)
    nowhere = Shell({"VLLMD_HOST": "unix:///nonexistent/x.sock"})
    assert tab(nowhere, "-H", str(socket_path), "chat", "-m", "l") == ["llama"]
    assert tab(nowhere, "chat", "-m", "l") == []


@pytest.mark.parametrize("answer", [refuse(500, "internal_error", "oh"), reply({}), reply([]), reply({"data": [1]})])
def test_whatever_goes_wrong_is_silent(daemon: StubDaemon, shell: Shell, answer: Answer) -> None:
    daemon.on("GET /v1/models", answer)
    assert tab(shell, "chat", "-m", "") == []


def test_a_daemon_of_another_version_is_no_reason_to_speak(daemon: StubDaemon, shell: Shell) -> None:
    daemon.server_name = "vllmd/9.9"
    daemon.on("GET /v1/models", MODELS)
    assert len(tab(shell, "chat", "-m", "")) == 3


def test_a_daemon_that_does_not_answer_is_not_waited_for(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /v1/models", until_gone)
    began_at = time.monotonic()
    assert tab(shell, "chat", "-m", "") == []
    assert time.monotonic() - began_at < LIMIT_S + START_S
    assert daemon.gone.wait(10)


def test_neither_is_one_whose_queue_is_full(socket_path: Path, shell: Shell) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(socket_path))
        listener.listen(0)
        first.connect(str(socket_path))
        began_at = time.monotonic()
        assert tab(shell, "chat", "-m", "") == []
        assert time.monotonic() - began_at < LIMIT_S + START_S


# ── the scripts ──


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_printed(shell: Shell, name: str) -> None:
    result = shell.run("completion", name)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == script(name).rstrip("\n") + "\n"
    assert f"{name}_complete" in result.stdout
    assert shell.run("completion", "tcsh").status == 2


IN_SHELLS = {
    "bash": "source {script}; COMP_WORDS=(vllmctl chat -m qw); COMP_CWORD=3; _vllmctl_completion vllmctl 2>/dev/null; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": "compdef() {{ :; }}; compadd() {{ print -l -- $completions; }}; source {script}; "
    "words=(vllmctl chat -m qw); CURRENT=4; _vllmctl_completion",
    "fish": "source {script}; complete -C 'vllmctl chat -m qw'",
}


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_works_in_its_shell(daemon: StubDaemon, shell: Shell, tmp_path: Path, name: str) -> None:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"NO {name.upper()} HERE: its completion is not tested; apt-get install {name}")
    daemon.on("GET /v1/models", MODELS)
    (tmp_path / "vllmctl").write_text(LAUNCHER)
    (tmp_path / "vllmctl").chmod(0o755)
    (tmp_path / "script").write_text(script(name))
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [program, "-c", IN_SHELLS[name].format(script=tmp_path / "script")],
        env={**environ, **shell.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["qwen", "qwen-large"], done.stderr
    assert done.stderr == ""


def test_fish_gets_explanations_whole(shell: Shell, tmp_path: Path) -> None:
    program = shutil.which("fish")
    if program is None:
        pytest.skip("NO FISH HERE: its completion is not tested; apt-get install fish")
    (tmp_path / "vllmctl").write_text(LAUNCHER)
    (tmp_path / "vllmctl").chmod(0o755)
    (tmp_path / "script").write_text(script("fish"))
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [program, "-c", f"source {tmp_path}/script; complete -C 'vllmctl to'"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "top\tWatch models, requests and tokens live.\n"
