"""The exit statuses, row by row, and the words that come with them."""

import grp
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import Answer, StubDaemon, chat, chunk, refuse, reply, stream

from vllmd.ctl.commands import ELSEWHERE, MEANINGS, VERBS
from vllmd.errors import ExitStatus

CHAT = "POST /v1/chat/completions"

ANSWERS = [
    (chat("a"), 0),
    (chat("a", finish="length"), 0),
    (chat("a", finish="tool_calls"), 0),
    (stream(chunk("a")), 1),
    (refuse(400, "invalid_request", "temperature: it is too hot"), 1),
    (refuse(404, "model_not_found", "there is no model 'x'"), 1),
    (refuse(413, "body_too_large", "the body is over 10 bytes"), 1),
    (refuse(429, "rate_limited", "slow down"), 1),
    (refuse(500, "internal_error", "vllmd made a mistake"), 1),
    (refuse(502, "engine_error", "the engine answered nonsense", source="engine"), 1),
    (refuse(503, "engine_failed", "exited with 1 after 3 restarts"), 1),
    (refuse(503, "overloaded", "256 requests wait already"), 1),
    (refuse(503, "not_ready", "m is not loaded"), 3),
    (refuse(401, "denied", "no key"), 4),
    (refuse(403, "denied", "not allowed"), 4),
    (refuse(401, 401, "Unauthorized", source=None), 4),
    (refuse(403, None, "Forbidden", source=None), 4),
    (reply({"no": "error"}, 500), 1),
    (reply("what?", 502), 1),
    (reply({"error": "just words"}, 418), 1),
    (reply({}, 302), 1),
]


@pytest.mark.parametrize(("answer", "status"), ANSWERS)
def test_every_answer_has_its_status(daemon: StubDaemon, shell: Shell, answer: Answer, status: int) -> None:
    daemon.on(CHAT, answer)
    assert shell.run("chat", "hi").status == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "hi", "-t", "3"],
        ["chat", "hi", "-t", "nan"],
        ["chat", "hi", "-t", "hot"],
        ["chat", "hi", "--top-p", "2"],
        ["chat", "hi", "-n", "0"],
        ["chat", "hi", "--temprature", "1"],
        ["chat"],
        ["caht", "hi"],
        ["models", "list"],
        ["-H", "ftp://x", "chat", "hi"],
        ["wait", "--timeout", "0"],
        [],
    ],
)
def test_a_wrong_command_line_is_2_and_says_so_on_stderr(shell: Shell, arguments: list[str]) -> None:
    result = shell.run(*arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("vllmctl: " if arguments else "Usage: vllmctl")


def test_usage_errors_say_where_to_look(shell: Shell) -> None:
    assert shell.run("caht").stderr == (
        "vllmctl: no such command: caht (did you mean 'chat'?)\n         see:  vllmctl --help\n"
    )
    assert shell.run("chat", "hi", "--temprature=1").stderr.endswith("see:  vllmctl chat --help\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "qwen"], "no such command: run\n         try:  vllmctl chat\n"),
        (["list"], "no such command: list\n         try:  vllmctl models\n"),
        (
            ["stop"],
            "no such command: stop\n         try:  vllmctl unload\n         the daemon itself is systemctl's:  ",
        ),
        (
            ["serve"],
            "no such command: serve\n         see:  vllmctl --help\n         the daemon itself is systemctl's:  ",
        ),
        (["why is the sky blue?"], 'no command was given\n         to ask a model:  vllmctl chat "..."\n'),
        (["help", "statsu"], "no such command: statsu (did you mean 'status'?)\n         see:  vllmctl --help\n"),
        (["chat", "x", "-t", "3"], "--temperature: 3 is not between 0 and 2\n         see:  vllmctl chat --help\n"),
        (["chat", "x", "-n", "0"], "--max-tokens: 0 is not at least 1\n"),
        (["chat", "x", "-n", "1.5"], "--max-tokens: '1.5' is not a whole number\n"),
        (["chat", "x", "-s", "@"], "--system: @ needs the name of a file behind it\n"),
        (["chat", "x", "-f", "/nonexistent"], "--file: cannot read /nonexistent: No such file or directory\n"),
        (["completion", "tcsh"], "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'\n"),
        (["-H", "nowhere", "status"], "--host: 'nowhere' is not an address\n"),
    ],
)
def test_a_wrong_command_line_says_what_and_what_to_do(shell: Shell, arguments: list[str], said: str) -> None:
    result = shell.run(*arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith(f"vllmctl: {said}")


def test_what_others_call_it_leads_to_what_there_is() -> None:
    assert {found.split()[0] for found in ELSEWHERE.values() if not found.startswith("--")} <= VERBS.keys()
    assert ELSEWHERE.keys().isdisjoint(VERBS)


def test_a_file_that_is_no_socket_is_called_so(shell: Shell, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file"):
        (tmp_path / "file").touch()
        result = shell.run("status", "-H", str(path))
        assert result.status == 3
        assert result.stderr == (
            f"vllmctl: cannot reach vllmd at unix://{path}: that is no socket\n"
            "         --host and VLLMD_HOST choose another address\n"
        )


def test_nobody_there_is_3(shell: Shell, socket_path: Path) -> None:
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (3, "")
    assert result.stderr == (
        f"vllmctl: cannot reach vllmd at unix://{socket_path}: no such socket\n"
        "         is it running?  systemctl status vllmd\n"
    )


def test_a_socket_that_nobody_listens_on_is_3(shell: Shell, socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path))
    result = shell.run("status")
    assert (result.status, result.stdout) == (3, "")
    assert result.stderr.startswith(f"vllmctl: cannot reach vllmd at unix://{socket_path}: connection refused\n")


def test_a_port_that_nobody_listens_on_is_3(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    result = shell.run("models", "-H", place)
    assert result.status == 3
    assert result.stderr == (
        f"vllmctl: cannot reach vllmd at http://{place}: connection refused\n"
        f"         is it running?  curl http://{place}/health\n"
    )


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b""])
def test_something_that_is_no_daemon_is_3(shell: Shell, said: bytes) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        shell.start("status", "-H", f"127.0.0.1:{server.getsockname()[1]}") as process,
    ):
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(said)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert (b"does not speak HTTP" if said else b"closed the connection without an answer") in err


@pytest.fixture
def stranger(shell: Shell) -> Shell:
    """A shell without the right to open whatever it likes: as root it must give that up first (capabilities(7))."""
    if os.getuid():
        return shell
    if shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv to become less than root")
    return replace(shell, before=("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"))


def close_to_others(path: Path, group: int) -> None:
    path.chmod(0o600 if os.getuid() == 0 else 0)
    if os.getuid() == 0:
        os.chown(path, 65534, group)


@pytest.mark.parametrize("verb", [["chat", "hi"], ["status"], ["wait"], ["models"], ["load", "m"]])
def test_a_socket_one_may_not_open_is_4(
    daemon: StubDaemon, stranger: Shell, socket_path: Path, verb: list[str]
) -> None:
    close_to_others(socket_path, 0)
    result = stranger.run(*verb)
    assert (result.status, result.stdout) == (4, "")
    said, hint = result.stderr.splitlines()
    assert said == f"vllmctl: permission denied on {socket_path}"
    assert hint.startswith("         join the group:  sudo usermod -aG ")
    assert daemon.requests == []


def test_the_group_to_join_is_the_socket_s_but_never_root_s(
    daemon: StubDaemon, stranger: Shell, socket_path: Path
) -> None:
    if os.getuid():
        pytest.skip("only root can give the socket to another group")
    other = next(each for each in grp.getgrall() if each.gr_gid not in {0, *os.getgroups()})
    for group, name in ((other.gr_gid, other.gr_name), (0, "vllmd")):
        close_to_others(socket_path, group)
        said = f"join the group:  sudo usermod -aG {name} $USER   (then log in again)"
        assert said in stranger.run("status").stderr


def test_an_engine_s_refusal_is_the_engine_s(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(400, 400, "max_tokens=9000 exceeds the 8192-token context", source=None))
    assert shell.run("chat", "hi").stderr == (
        "vllmctl: engine refused the request: max_tokens=9000 exceeds the 8192-token context   (source: engine)\n"
    )


def test_a_failed_engine_says_why_and_what_to_do(daemon: StubDaemon, shell: Shell) -> None:
    said = refuse(503, "engine_failed", "m failed: out of memory\nat layer 3", hint="lower gpu-memory-utilization")
    daemon.on(CHAT, said)
    assert shell.run("chat", "hi", "-q").stderr == (
        "vllmctl: m failed: out of memory\n         at layer 3\n         lower gpu-memory-utilization\n"
    )


def test_when_to_come_again_is_told(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(503, "overloaded", "full", headers={"Retry-After": "5"}))
    assert shell.run("chat", "hi").stderr == "vllmctl: full\n         try again in 5 s\n"


def test_a_missing_key_is_told_of(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(401, 401, "Unauthorized", source=None))
    assert "set VLLMD_API_KEY" in shell.run("chat", "hi").stderr


def test_every_status_has_a_meaning_and_stands_in_the_help(shell: Shell) -> None:
    assert set(MEANINGS) == set(ExitStatus)
    lines = [" ".join(line.split()) for line in shell.run("--help").stdout.splitlines()]
    for status, meaning in MEANINGS.items():
        assert f"{int(status)} {meaning}" in lines
