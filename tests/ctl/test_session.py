"""Conversations that go on: `-c` on a terminal, `--session NAME` anywhere."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import StubDaemon, chat, chunk, stream

CHAT = "POST /v1/chat/completions"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def shell(shell: Shell, home: Path) -> Shell:
    """A shell of a user who is logged in."""
    return replace(
        shell, environ={**shell.environ, "XDG_RUNTIME_DIR": f"{home}/run", "XDG_STATE_HOME": f"{home}/state"}
    )


@pytest.fixture(autouse=True)
def _answers(daemon: StubDaemon) -> None:
    daemon.on(CHAT, chat("one"), chat("two"), chat("three"))


def asked(daemon: StubDaemon) -> list[str]:
    """What the last request's messages say."""
    return [message["content"] for message in daemon.requests[-1].json["messages"]]


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_continue_goes_on_on_this_terminal(daemon: StubDaemon, shell: Shell, home: Path) -> None:
    controller, terminal = os.openpty()
    try:
        for arguments in (["first?", "-s", "Be brief", "-m", "qwen"], ["second?", "-c"], ["-c", "third?", "-s", ""]):
            with shell.start("chat", *arguments, stdin=terminal) as process:
                assert process.communicate(timeout=60)[1] == b""
            assert process.returncode == 0
        name = os.ttyname(terminal).removeprefix("/dev/").replace("/", "-")
    finally:
        os.close(controller)
        os.close(terminal)
    assert asked(daemon) == ["first?", "one", "second?", "two", "third?"]
    assert daemon.requests[-1].json["model"] == "qwen"
    (file,) = files(home)
    assert file == home / "run" / "vllmctl" / f"{name}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_new_question_without_continue_begins_anew(daemon: StubDaemon, shell: Shell) -> None:
    controller, terminal = os.openpty()
    for arguments in (["first?"], ["second?"], ["third?", "-c"]):
        with shell.start("chat", *arguments, stdin=terminal) as process:
            process.communicate(timeout=60)
    os.close(controller)
    os.close(terminal)
    assert asked(daemon) == ["second?", "two", "third?"]


def test_a_terminal_that_has_the_number_of_an_old_one_begins_anew(shell: Shell, home: Path) -> None:
    controller, terminal = os.openpty()
    with shell.start("chat", "first?", stdin=terminal) as process:
        process.communicate(timeout=60)
    (file,) = files(home)
    table = json.loads(file.read_text())
    assert table["owner"] == os.getsid(0)
    file.write_text(json.dumps({**table, "owner": table["owner"] + 1}))
    with shell.start("chat", "second?", "-c", stdin=terminal) as process:
        assert process.communicate(timeout=60)[1].startswith(
            b"vllmctl: nothing to continue: nothing was asked on this terminal before\n"
        )
    assert process.returncode == 2
    os.close(controller)
    os.close(terminal)


def test_a_pipeline_leaves_no_trace(shell: Shell, home: Path) -> None:
    assert shell.run("chat", "hi", stdin=b"document").status == 0
    assert files(home) == []
    result = shell.run("chat", "hi", "-c")
    assert result.status == 2
    assert result.stderr == (
        "vllmctl: nothing to continue: there is no terminal, or no XDG_RUNTIME_DIR\n"
        "         --session NAME works everywhere\n"
    )


def test_a_broken_answer_is_not_remembered(daemon: StubDaemon, shell: Shell, home: Path) -> None:
    daemon.on(CHAT, stream(chunk("partial"), cut=True))
    with screen(shell, "chat", "hi") as seen:
        assert seen.end() == 1
    assert files(home) == []


def test_a_session_has_a_name_and_is_told_of_once(daemon: StubDaemon, shell: Shell, home: Path) -> None:
    path = home / "state" / "vllmctl" / "review.json"
    first = shell.run("chat", "first?", "--session", "review", stdin=b"document")
    assert (first.status, first.stdout, first.stderr) == (0, "one\n", f"vllmctl: a new session: {path}\n")
    second = shell.run("chat", "second?", "--session", "review")
    assert (second.status, second.stdout, second.stderr) == (0, "two\n", "")
    assert asked(daemon) == ["document\n\nfirst?", "one", "second?"]
    assert files(home) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "[]", '{"messages": 3}', '{"owner": 0, "model": null, "messages": ["x"]}'])
def test_a_session_that_cannot_be_read_says_how_to_go_on(
    daemon: StubDaemon, shell: Shell, home: Path, content: str
) -> None:
    path = home / "state" / "vllmctl" / "review.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    result = shell.run("chat", "hi", "--session", "review")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == f"vllmctl: {path} holds no conversation\n         begin anew:  rm {path}\n"
    assert daemon.requests == []


def test_a_session_that_cannot_be_saved_is_an_error_after_the_answer(shell: Shell, home: Path) -> None:
    (home / "state").mkdir()
    (home / "state" / "vllmctl").symlink_to("/nonexistent")
    result = shell.run("chat", "hi", "--session", "review")
    assert (result.status, result.stdout) == (1, "one\n")
    assert "vllmctl: cannot save the session review: " in result.stderr


def test_but_a_terminal_that_cannot_be_remembered_is_no_error(shell: Shell, home: Path) -> None:
    (home / "run").write_text("in the way")
    with screen(shell, "chat", "hi") as seen:
        assert seen.end() == 0
        assert seen.lines == ["one", ""]


def test_sessions_are_in_the_home_directory_by_default(shell: Shell, home: Path) -> None:
    environ = {"HOME": str(home), "XDG_STATE_HOME": ""}
    assert shell.run("chat", "hi", "--session", "review", environ=environ).status == 0
    assert files(home) == [home / ".local" / "state" / "vllmctl" / "review.json"]
