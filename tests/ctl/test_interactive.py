"""`vllmctl chat` at a terminal without a prompt: a conversation, typed key by key."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ctl.shell import CTRL_C, CTRL_D, Screen, Shell, screen
from ctl.stub_daemon import DONE, StubDaemon, chat, chunk, refuse, stream, until_gone
from waiting import until_sync

from vllmd import sse

CHAT = "POST /v1/chat/completions"
PROMPT = ">>> "


@contextmanager
def talking(shell: Shell, *arguments: str, **more: Any) -> Iterator[Screen]:
    """A conversation whose first prompt has come."""
    with screen(shell, "chat", *arguments, keys=True, **more) as seen:
        seen.read_prompt(PROMPT)
        yield seen


def leave(seen: Screen) -> None:
    seen.type(CTRL_D)
    assert seen.end() == 0


def say(seen: Screen, text: str) -> None:
    """Types a line and waits for the next prompt."""
    seen.type(f"{text}\n")
    seen.read_prompt(PROMPT)


def said(daemon: StubDaemon, request: int = -1) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in daemon.requests[request].json["messages"]]


def test_each_question_knows_what_was_said_before(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("Hello"), chat("Fine"))
    with talking(shell, "-s", "Be brief", "-t", "0.5") as seen:
        say(seen, "hi")
        say(seen, "how are you?")
        leave(seen)
    assert said(daemon) == [("system", "Be brief"), ("user", "hi"), ("assistant", "Hello"), ("user", "how are you?")]
    assert daemon.requests[1].json["temperature"] == 0.5


def test_answers_alone_go_to_stdout(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("Hello"))
    with talking(shell, stdout=subprocess.PIPE) as seen:
        say(seen, "hi")
        seen.type("/help\n")
        seen.read_until("/reset")
        seen.read_prompt(PROMPT)
        leave(seen)
        assert seen.process.stdout is not None
        assert seen.process.stdout.read() == b"Hello\n"


def test_an_empty_line_asks_nothing(daemon: StubDaemon, shell: Shell) -> None:
    with talking(shell) as seen:
        say(seen, "")
        say(seen, "   ")
        leave(seen)
    assert daemon.requests == []


def test_lines_can_be_edited_and_come_back(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell) as seen:
        say(seen, "one twoo\x7f")
        say(seen, "\x1b[A!")  # the arrow up
        leave(seen)
    assert [said(daemon, number)[-1][1] for number in range(2)] == ["one two", "one two!"]


def test_a_block_is_one_question(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell) as seen:
        seen.type('"""\n')
        seen.read_until("... ")
        seen.type("first\n")
        seen.read_until("... ")
        seen.type("\n")
        seen.read_until("... ")
        say(seen, 'last"""')
        say(seen, '"""short"""')
        leave(seen)
    assert said(daemon, 0) == [("user", "first\n\nlast")]
    assert said(daemon, 1)[-1] == ("user", "short")


def test_the_system_prompt_can_be_changed_and_all_be_forgotten(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell) as seen:
        say(seen, "/system Be rude")
        say(seen, "one")
        say(seen, "/reset")
        say(seen, "two")
        say(seen, "/system")
        say(seen, "/reset")
        say(seen, "three")
        leave(seen)
    assert [said(daemon, number) for number in range(3)] == [
        [("system", "Be rude"), ("user", "one")],
        [("system", "Be rude"), ("user", "two")],
        [("user", "three")],
    ]


def test_parameters_can_be_set_shown_and_taken_back(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell, "-n", "5") as seen:
        say(seen, "/set temperature 0.2")
        say(seen, "/set user you and me")
        seen.type("/set\n")
        seen.read_until("max_tokens 5\r\ntemperature 0.2\r\nuser you and me\r\n")
        seen.read_prompt(PROMPT)
        say(seen, "one")
        say(seen, "/set temperature")
        say(seen, "/set stream false")
        say(seen, "two")
        leave(seen)
    first, second = (request.json for request in daemon.requests)
    assert (first["temperature"], first["user"], first["max_tokens"]) == (0.2, "you and me", 5)
    assert "temperature" not in second
    assert second["stream"] is True


def test_stats_come_and_go(daemon: StubDaemon, shell: Shell) -> None:
    usage = sse.encode(json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}))
    daemon.on(CHAT, stream(chunk("a", "stop"), usage, DONE))
    with talking(shell) as seen:
        say(seen, "/stats")
        seen.type("one\n")
        seen.read_until("7 in, 1 out, ")
        seen.read_prompt(PROMPT)
        say(seen, "/stats")
        say(seen, "two")
        leave(seen)
    assert daemon.requests[0].json["stream_options"] == {"include_usage": True}
    assert "stream_options" not in daemon.requests[1].json
    assert seen.written.count(b"7 in") == 1


def test_what_is_no_command_is_told_and_a_path_is_a_question(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell) as seen:
        seen.type("/byte\n")
        seen.read_until("no such command: /byte; /help lists them")
        seen.read_prompt(PROMPT)
        say(seen, "/etc/passwd is what?")
        leave(seen)
    assert said(daemon) == [("user", "/etc/passwd is what?")]
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_what_leaves_elsewhere_leaves_here(daemon: StubDaemon, shell: Shell, word: str) -> None:
    with talking(shell) as seen:
        seen.type(f"{word}\n")
        assert seen.end() == 0
    assert daemon.requests == []


def test_parameters_may_be_set_as_on_the_command_line(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    with talking(shell) as seen:
        say(seen, "/set temperature=0.2")
        say(seen, '/set response_format {"type": "json_object", "x": "a=b"}')
        say(seen, "hi")
        leave(seen)
    assert daemon.requests[0].json["temperature"] == 0.2
    assert daemon.requests[0].json["response_format"] == {"type": "json_object", "x": "a=b"}


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("partial"), until_gone), chat("whole"))
    with talking(shell) as seen:
        seen.type("hi\n")
        seen.read_until("partial")
        seen.type(CTRL_C)
        seen.read_prompt(PROMPT)
        until_sync(daemon.gone.is_set, "the daemon to see that nobody listens")
        say(seen, "go on")
        seen.type(CTRL_C)
        seen.read_until("Ctrl-C again, or Ctrl-D, leaves")
        seen.read_prompt(PROMPT)
        seen.type(CTRL_C)
        assert seen.end() == 0
    assert said(daemon) == [("user", "hi"), ("assistant", "partial"), ("user", "go on")]
    assert b"Traceback" not in seen.written


def test_an_answer_that_was_stopped_is_a_line_of_its_own(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("partial"), until_gone), stream(chunk("cut"), cut=True), chat("whole"))
    with talking(shell, stdout=subprocess.PIPE) as seen:
        seen.type("hi\n")
        assert seen.process.stdout is not None
        assert seen.process.stdout.read(7) == b"partial"
        seen.type(CTRL_C)
        seen.read_prompt(PROMPT)
        say(seen, "two")
        say(seen, "three")
        leave(seen)
        assert seen.process.stdout.read() == b"\ncut\nwhole\n"


def test_the_ctrl_c_after_the_one_that_stopped_an_answer_leaves(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(until_gone))
    with talking(shell) as seen:
        seen.type("hi\n")
        until_sync(lambda: daemon.requests, "the question to arrive")
        seen.type(CTRL_C)
        seen.read_prompt(PROMPT)
        seen.type(CTRL_C)
        assert seen.end() == 0


def test_an_error_ends_nothing_and_the_question_is_forgotten(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(503, "overloaded", "full"), chat("ok"))
    with talking(shell) as seen:
        seen.type("one\n")
        seen.read_until("full")
        seen.read_prompt(PROMPT)
        say(seen, "two")
        leave(seen)
    assert said(daemon) == [("user", "two")]


def test_it_can_be_continued(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on(CHAT, chat("ok"))
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    with talking(shell, "--session", "plan", environ=environ) as seen:
        say(seen, "one")
        leave(seen)
    with talking(shell, "--session", "plan", environ=environ) as seen:
        say(seen, "two")
        leave(seen)
    assert said(daemon) == [("user", "one"), ("assistant", "ok"), ("user", "two")]


def test_a_daemon_of_another_version_is_told_once(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("ok"))
    daemon.server_name = "vllmd/99.1.0"
    with talking(shell) as seen:
        say(seen, "one")
        say(seen, "two")
        leave(seen)
    assert seen.written.count(b"vllmd is version 99.1.0") == 1
