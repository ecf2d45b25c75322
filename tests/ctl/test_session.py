"""Conversations that go on: `-c` on a terminal, `--session NAME` anywhere."""

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import DONE, StubDaemon, chat, chunk, held_until, stream
from waiting import until_sync

from vllmd.ctl.prompt import Messages, assistant, user
from vllmd.ctl.session import Session, joined

PROMPT = ">>> "
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


def test_several_at_once_lose_no_turn(daemon: StubDaemon, shell: Shell, home: Path) -> None:
    assert shell.run("chat", "first?", "--session", "review", "-s", "Be brief").status == 0
    released = threading.Event()
    daemon.on(CHAT, stream(held_until(released), chunk("ok"), chunk("", "stop"), DONE))
    count = 4
    processes = [shell.start("chat", f"question {number}?", "--session", "review") for number in range(count)]
    until_sync(lambda: len(daemon.requests) == 1 + count, "all of them to ask")
    assert asked(daemon)[:3] == ["Be brief", "first?", "one"]
    released.set()
    for process in processes:
        with process:
            assert process.communicate(timeout=60) == (b"ok\n", b"")
        assert process.returncode == 0
    assert shell.run("chat", "last?", "--session", "review").status == 0
    said = asked(daemon)
    assert said[:3] + said[-1:] == ["Be brief", "first?", "one", "last?"]
    assert sorted(said[3:-1:2]) == [f"question {number}?" for number in range(count)]
    assert said[4:-1:2] == ["ok"] * count
    assert files(home) == [home / "state" / "vllmctl" / "review.json"]


def test_nor_do_many_that_end_in_the_same_moment(home: Path) -> None:
    """Without the lock, one would read what another is about to replace."""
    session = Session(f"{home}/review.json", "review")

    def speak(number: int) -> None:
        for turn in range(5):
            before = (session.load() or ([], None))[0]
            session.save([*before, user(f"{number} {turn}"), assistant("ok")], None, before)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(speak, range(8)))
    found = session.load()
    assert found is not None
    said = [message["content"] for message in found[0][::2]]
    assert sorted(said) == sorted(f"{number} {turn}" for number in range(8) for turn in range(5))
    assert files(home) == [home / "review.json"]


BOTH = [user("q1"), assistant("a1")]
OURS, THEIRS = [user("q2"), assistant("a2")], [user("q3"), assistant("a3")]
BRIEF, LONG = {"role": "system", "content": "brief"}, {"role": "system", "content": "long"}


@pytest.mark.parametrize(
    ("before", "theirs", "ours", "whole"),
    [
        (BOTH, BOTH, BOTH + OURS, BOTH + OURS),
        (BOTH, BOTH + THEIRS, BOTH + OURS, BOTH + THEIRS + OURS),
        ([], [LONG, *THEIRS], [BRIEF, *OURS], [BRIEF, *THEIRS, *OURS]),
        (BOTH, BOTH + THEIRS, OURS, THEIRS + OURS),  # we have forgotten what both had
        (BOTH, THEIRS, BOTH + OURS, THEIRS + OURS),  # they have
        ([BRIEF, *BOTH], [LONG, *BOTH, *THEIRS], [BRIEF, *BOTH, *OURS], [LONG, *BOTH, *THEIRS, *OURS]),
    ],
)
def test_what_several_have_said(before: Messages, theirs: Messages, ours: Messages, whole: Messages) -> None:
    assert joined(before, theirs, ours) == whole


def test_a_conversation_hears_what_was_said_in_its_session_meanwhile(daemon: StubDaemon, shell: Shell) -> None:
    with screen(shell, "chat", "--session", "review", keys=True) as seen:
        seen.read_prompt(PROMPT)
        seen.type("first?\n")
        seen.read_prompt(PROMPT)
        assert shell.run("chat", "aside?", "--session", "review").status == 0
        assert asked(daemon) == ["first?", "one", "aside?"]
        for question in ("second?", "third?"):
            seen.type(f"{question}\n")
            seen.read_prompt(PROMPT)
        seen.type("/bye\n")
        assert seen.end() == 0
    assert asked(daemon) == ["first?", "one", "aside?", "two", "second?", "three", "third?"]


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
