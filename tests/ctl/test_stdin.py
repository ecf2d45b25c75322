"""stdin of `vllmctl chat`: when it is read, and what becomes of it."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import StubDaemon, chat

from vllmd.ctl.prompt import assistant, compose, decode, user, wants_reading, with_system
from vllmd.errors import RequestError

CHAT = "POST /v1/chat/completions"


@pytest.fixture
def talking(daemon: StubDaemon) -> StubDaemon:
    daemon.on(CHAT, chat("ok"))
    return daemon


def asked(daemon: StubDaemon) -> object:
    (request,) = daemon.requests
    return request.json["messages"][-1]["content"]


def test_the_document_comes_first_then_a_blank_line_then_the_question(talking: StubDaemon, shell: Shell) -> None:
    assert shell.run("chat", "Which", "host?", stdin=b"line 1\nline 2\n").status == 0
    assert asked(talking) == "line 1\nline 2\n\nWhich host?"


def test_stdin_alone_is_a_prompt(talking: StubDaemon, shell: Shell) -> None:
    assert shell.run("chat", stdin="  é\n".encode()).status == 0
    assert asked(talking) == "  é"


def test_an_empty_stdin_vanishes(talking: StubDaemon, shell: Shell) -> None:
    assert shell.run("chat", "hi", stdin=b"\n \n").status == 0
    assert asked(talking) == "hi"


def test_a_file_is_read(talking: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "doc").write_text("from a file\n")
    with (tmp_path / "doc").open() as file, shell.start("chat", "hi", stdin=file) as process:
        process.communicate(timeout=60)
    assert asked(talking) == "from a file\n\nhi"


def test_a_socket_is_read(talking: StubDaemon, shell: Shell) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"from a socket")
        ours.shutdown(socket.SHUT_WR)
        with shell.start("chat", "hi", stdin=theirs) as process:
            process.communicate(timeout=60)
    assert asked(talking) == "from a socket\n\nhi"


def test_dev_null_is_left_alone(talking: StubDaemon, shell: Shell) -> None:
    assert shell.run("chat", "hi").status == 0
    assert asked(talking) == "hi"


def test_a_closed_stdin_is_left_alone(talking: StubDaemon, shell: Shell) -> None:
    assert shell.script('"$@" chat hi <&-').stdout == "ok\n"
    assert asked(talking) == "hi"


def test_no_stdin_leaves_an_open_idle_pipe_alone(talking: StubDaemon, shell: Shell) -> None:
    reader, writer = os.pipe()
    try:
        with shell.start("chat", "--no-stdin", "hi", stdin=reader) as process:
            assert process.communicate(timeout=60)[0] == b"ok\n"
    finally:
        os.close(reader)
        os.close(writer)
    assert asked(talking) == "hi"


def test_no_stdin_leaves_the_loop_its_input(talking: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "questions").write_text("who?\nwhen?\n")
    shell.script(f'while read -r q; do "$@" chat --no-stdin "$q"; done < {tmp_path}/questions')
    assert [request.json["messages"][-1]["content"] for request in talking.requests] == ["who?", "when?"]


def test_a_lone_dash_is_stdin(talking: StubDaemon, shell: Shell) -> None:
    assert shell.run("chat", "-", stdin=b"from stdin").status == 0
    assert talking.requests[0].json["messages"][0]["content"] == "from stdin"


@pytest.mark.parametrize("option", ["--stop", "--model", "--session", "--param"])
def test_bytes_that_are_not_utf8_are_sent_nowhere(talking: StubDaemon, shell: Shell, option: str) -> None:
    value = "a=x\udcff" if option == "--param" else "x\udcff"
    result = shell.run("chat", "hi", option, value)
    assert (result.status, result.stdout, talking.requests) == (1, "", [])
    assert result.stderr.startswith(f"vllmctl: {option} is not UTF-8: byte 0xff at offset 1\n")


def test_a_silent_pipe_is_told_of_on_a_terminal(talking: StubDaemon, shell: Shell) -> None:
    reader, writer = os.pipe()
    with screen(shell, "chat", stdin=reader, stdout=subprocess.DEVNULL) as seen:
        os.close(reader)
        seen.read_until("vllmctl: reading the prompt from stdin ... (--no-stdin does without)")
        os.write(writer, b"at last")
        os.close(writer)
        assert seen.end() == 0
    assert asked(talking) == "at last"


@pytest.mark.parametrize("arguments", [[], ["--no-stdin"], [""], ["  "]])
def test_no_prompt_at_all_is_a_usage_error(shell: Shell, arguments: list[str]) -> None:
    result = shell.run("chat", *arguments, stdin=b"")
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr == (
        "vllmctl: no prompt: give one as argument or on stdin\n         see:  vllmctl chat --help\n"
    )


def test_bytes_that_are_not_utf8_are_named_with_their_offset(talking: StubDaemon, shell: Shell) -> None:
    result = shell.run("chat", "hi", stdin="grüß ".encode() + b"\xff\xfe")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("vllmctl: stdin is not UTF-8: byte 0xff at offset 7\n")
    assert talking.requests == []


def test_so_are_those_of_an_argument(talking: StubDaemon, shell: Shell) -> None:
    result = shell.run("chat", os.fsdecode(b"a\xff"))
    assert result.status == 1
    assert result.stderr.startswith("vllmctl: the prompt is not UTF-8: byte 0xff at offset 1\n")
    result = shell.run("chat", "hi", "-s", os.fsdecode(b"\xff"))
    assert result.status == 1
    assert result.stderr.startswith("vllmctl: the system prompt is not UTF-8: byte 0xff at offset 0\n")


def test_parts_are_composed_without_losing_indentation() -> None:
    assert compose("  indented\n\n", "", "\n", "question") == "  indented\n\nquestion"
    assert compose("", " ") == ""
    assert compose("a", "b", "c") == "a\n\nb\n\nc"


def test_there_is_a_system_message_only_if_there_is_a_system_prompt() -> None:
    before = [{"role": "system", "content": "old"}, user("u"), assistant("a")]
    assert with_system([user("u")], "s") == [{"role": "system", "content": "s"}, user("u")]
    assert with_system(before, None) == before
    assert with_system(before, "new") == [{"role": "system", "content": "new"}, user("u"), assistant("a")]
    assert with_system(before, "") == [user("u"), assistant("a")]


def test_what_is_read(tmp_path: Path) -> None:
    directory = os.stat(tmp_path).st_mode
    assert not wants_reading(None)
    assert not wants_reading(directory)
    assert not wants_reading(os.stat("/dev/null").st_mode)
    (tmp_path / "file").touch()
    assert wants_reading(os.stat(tmp_path / "file").st_mode)


def test_decode_names_its_source() -> None:
    assert decode("é".encode(), "x") == "é"
    with pytest.raises(RequestError, match=r"review\.md is not UTF-8: byte 0xc3 at offset 2"):
        decode(b"ab\xc3", "review.md")
