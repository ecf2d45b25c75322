"""The options of `vllmctl chat`: what they send, and how they have the answer printed."""

import json
import select
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import DONE, Answer, StubDaemon, chat, chunk, held_until, stream

from vllmd import sse
from vllmd.ctl.answer import Answer as Received
from vllmd.ctl.options import json_or_text
from vllmd.ctl.report import stats_line, timings

CHAT = "POST /v1/chat/completions"
USAGE = {"prompt_tokens": 128, "completion_tokens": 3, "total_tokens": 131}


def counted(*texts: str) -> Answer:
    """An answer with the tokens counted at its end, as vLLM does when it is asked to."""
    usage = {"id": "chatcmpl-1", "model": "qwen", "choices": [], "usage": USAGE}
    return stream(*map(chunk, texts), chunk("", "stop"), sse.encode(json.dumps(usage)), DONE)


def sent(daemon: StubDaemon) -> dict[str, object]:
    (request,) = daemon.requests
    return {name: value for name, value in request.json.items() if name not in ("messages", "stream")}


def test_sampling_is_sent_as_given(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("x"))
    arguments = ["--seed", "7", "--stop", "END", "--stop", "\n", "-p", "top_k=20", "-p", "min_p=0.05", "-p", "user=me"]
    assert shell.run("chat", "hi", *arguments, "-p", 'guided_choice=["yes", "no"]', "-p", "x=a=b").status == 0
    assert sent(daemon) == {
        "seed": 7,
        "stop": ["END", "\n"],
        "top_k": 20,
        "min_p": 0.05,
        "user": "me",
        "guided_choice": ["yes", "no"],
        "x": "a=b",
    }


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("1", 1), ("true", True), ("null", None), ('"1"', "1"), ("a b", "a b"), ("", ""), ("NaN", "NaN"), ("{", "{")],
)
def test_a_value_is_json_or_text(value: str, meaning: object) -> None:
    assert json_or_text(value) == meaning


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "top_k"], "'top_k' is not NAME=VALUE"),
        (["-p", "=3"], "'=3' is not NAME=VALUE"),
        (["-p", "stream=false"], "stream is set by vllmctl itself"),
        (["--seed", "x"], "'x' is not a whole number"),
        (["--session", "../x"], "'../x' cannot be a session's name"),
        (["--session", ""], "'' cannot be a session's name"),
        (["-c"], "nothing to continue: there is no terminal, or no XDG_RUNTIME_DIR"),
        (["-f", "/nonexistent/file"], "cannot read /nonexistent/file: No such file or directory"),
        (["-f", "/"], "cannot read /: Is a directory"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    daemon: StubDaemon, shell: Shell, arguments: list[str], said: str
) -> None:
    result = shell.run("chat", "hi", *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert said in result.stderr
    assert daemon.requests == []


def test_every_option_has_a_default_in_the_environment(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on(CHAT, counted("a"))
    (tmp_path / "doc").write_text("text")
    environ = {
        "TEMPERATURE": "0.2",
        "TOP_P": "0.9",
        "MAX_TOKENS": "5",
        "SEED": "1",
        "STOP": "END",
        "PARAM": "top_k=3",
        "MODEL": "qwen",
        "SYSTEM": "Be brief",
        "FILE": str(tmp_path / "doc"),
        "STATS": "1",
        "NO_WAIT": "1",
    }
    result = shell.run("chat", "hi", environ={f"VLLMCTL_CHAT_{name}": value for name, value in environ.items()})
    assert result.stderr.startswith("128 in, 3 out")
    assert sent(daemon) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 1,
        "stop": ["END"],
        "top_k": 3,
        "model": "qwen",
        "stream_options": {"include_usage": True},
    }
    contents = [message["content"] for message in daemon.requests[0].json["messages"]]
    assert contents == ["Be brief", f"==> {tmp_path}/doc <==\ntext\n\nhi"]
    assert daemon.requests[0].headers["x-vllmd-wait"] == "0"


def test_so_have_the_shared_ones_but_the_command_line_comes_first(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a", finish="length"))
    elsewhere = {"VLLMD_HOST": "/nowhere", "VLLMCTL_HOST": "/nowhere"}
    for environ in ({"VLLMCTL_HOST": daemon.address}, {**elsewhere, "VLLMCTL_CHAT_HOST": daemon.address}):
        result = shell.run("chat", "hi", environ={"VLLMD_HOST": "/nowhere", **environ, "VLLMCTL_QUIET": "1"})
        assert (result.status, result.stderr) == (0, "")
    both = {"VLLMCTL_HOST": "/nowhere", "VLLMCTL_CHAT_HOST": "/nowhere"}
    assert shell.run("-H", daemon.address, "chat", "hi", environ=both).status == 0
    assert shell.run("chat", "hi", "-H", daemon.address, environ=both).status == 0
    assert shell.run("chat", "hi", environ=both).status == 3


def test_stats_are_one_line_on_stderr(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, counted("a", "b", "c"))
    result = shell.run("chat", "hi", "--stats")
    assert (result.status, result.stdout) == (0, "abc\n")
    counts, first, *rest = result.stderr.rstrip("\n").partition(" out, ")
    assert (counts, first) == ("128 in, 3", " out, ")
    assert rest[0].endswith(", stop")
    assert " s to first token" in rest[0]
    assert sent(daemon) == {"stream_options": {"include_usage": True}}
    assert shell.run("chat", "hi", "--stats", "-q").stderr == ""


def test_figures() -> None:
    answer = Received(10.0, keep=True)
    assert stats_line(answer) == "? in, ? out, "
    answer.first_at, answer.last_at, answer.finish = 10.314, 15.014, "stop"
    answer.usage = {"prompt_tokens": 128, "completion_tokens": 412}
    assert stats_line(answer) == "128 in, 412 out, 0.31 s to first token, 87.4 tok/s, stop"
    assert timings(answer) == {"first_token_s": 0.314, "total_s": 5.014, "tokens_per_s": 87.4}
    answer.usage = {"prompt_tokens": 128, "completion_tokens": 1}
    assert stats_line(answer) == "128 in, 1 out, 0.31 s to first token, stop"


def test_json_is_one_object(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk(reasoning="h"), chunk(reasoning="m"), chunk("4\x1b"), chunk("2 ✓\n", "length"), DONE))
    result = shell.run("chat", "hi", "--json", "-n", "2")
    assert (result.status, result.stderr) == (0, "vllmctl: stopped at --max-tokens\n")
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)
    assert found.pop("timings").keys() == {"first_token_s", "total_s", "tokens_per_s"}
    assert found == {
        "id": "chatcmpl-1",
        "model": "",
        "content": "4\x1b2 ✓\n",
        "reasoning": "hm",
        "finish_reason": "length",
        "usage": None,
    }


def test_json_has_the_usage(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, counted("a"))
    found = json.loads(shell.run("chat", "hi", "--json").stdout)
    assert found["usage"] == USAGE
    assert found["reasoning"] is None


@pytest.mark.parametrize("flag", ["--json", "--no-stream"])
def test_an_answer_that_breaks_off_prints_nothing_that_was_to_be_whole(
    daemon: StubDaemon, shell: Shell, flag: str
) -> None:
    daemon.on(CHAT, stream(chunk("partial"), cut=True))
    result = shell.run("chat", "hi", flag)
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("vllmctl: the answer broke off")


def test_without_streaming_nothing_comes_before_the_end(daemon: StubDaemon, shell: Shell) -> None:
    go_on = threading.Event()
    daemon.on(CHAT, stream(chunk("first\n"), chunk("second\n"), held_until(go_on), chunk("third", "stop"), DONE))
    with shell.start("chat", "hi", "--no-stream", "--debug") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while b"second" not in process.stderr.readline():
            pass
        assert select.select([process.stdout], [], [], 0)[0] == []
        go_on.set()
        assert process.communicate(timeout=60)[0] == b"first\nsecond\nthird\n"


def test_reasoning_can_be_hidden(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk(reasoning="Let me see"), chunk("42", "stop"), DONE))
    for arguments, shown in ((["-R"], False), ([], True), (["--no-stream"], True), (["--no-stream", "-R"], False)):
        with screen(shell, "chat", "hi", *arguments) as seen:
            assert seen.end() == 0
            assert (b"Let me see" in seen.written) is shown
            assert seen.lines[-2:] == ["42", ""]


def test_of_several_answers_the_first_is_read(daemon: StubDaemon, shell: Shell) -> None:
    second = chunk("other").replace(b'"index":0', b'"index":1')
    daemon.on(CHAT, stream(chunk("one"), second, chunk("", "stop"), DONE))
    assert shell.run("chat", "hi", "-p", "n=2").stdout == "one\n"


def test_debug_shows_the_exchange_without_the_key(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    result = shell.run("chat", "hi", "--debug", environ={"VLLMD_API_KEY": "secret"})
    assert (result.status, result.stdout) == (0, "a\n")
    lines = result.stderr.splitlines()
    assert lines[0] == "> POST /v1/chat/completions"
    assert "> Authorization: ***" in lines
    assert '> {"messages": [{"role": "user", "content": "hi"}], "stream": true}' in lines
    assert "< HTTP 200" in lines
    assert "< content-type: text/event-stream; charset=utf-8" in lines
    assert "< data: [DONE]" in lines
    assert "secret" not in result.stderr
    assert daemon.requests[0].headers["authorization"] == "Bearer secret"


def test_files_come_before_stdin_under_their_names(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on(CHAT, chat("a"))
    (tmp_path / "main.py").write_text("print('é')\n")
    (tmp_path / "empty").write_text("\n")
    files = ["-f", f"{tmp_path}/main.py", "-f", f"{tmp_path}/empty"]
    assert shell.run("chat", *files, "Any race?", stdin=b"from stdin\n").status == 0
    assert shell.run("chat", "-f", "-", *files, "Any race?", stdin=b"from stdin\n").status == 0
    assert shell.run("chat", *files).status == 0
    named = f"==> {tmp_path}/main.py <==\nprint('é')"
    assert [request.json["messages"][0]["content"] for request in daemon.requests] == [
        f"{named}\n\nfrom stdin\n\nAny race?",
        f"from stdin\n\n{named}\n\nAny race?",
        named,
    ]


def test_a_file_that_is_not_utf8_is_named(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xc3(")
    result = shell.run("chat", "hi", "-f", f"{tmp_path}/binary")
    assert result.status == 1
    assert result.stderr.startswith(f"vllmctl: {tmp_path}/binary is not UTF-8: byte 0xc3 at offset 2\n")


def test_stdin_is_read_where_it_would_not_be_if_it_is_asked_for(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    assert shell.run("chat", "-f", "-", "hi").status == 0
    assert daemon.requests[0].json["messages"][0]["content"] == "hi"
    with screen(shell, "chat", "-f", "-", keys=True) as seen:
        seen.type("typed\n\x04")
        assert seen.end() == 0
    assert daemon.requests[1].json["messages"][0]["content"] == "typed"
    result = shell.script('"$@" chat -f - hi <&-')
    assert (result.status, result.stderr) == (1, "vllmctl: cannot read: stdin is closed\n")


def test_a_silent_pipe_is_told_of_with_debug_where_no_terminal_is(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    with shell.start("chat", "--debug", stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert b"reading the prompt from stdin" in process.stderr.readline()
        process.communicate(b"at last", timeout=60)
    assert process.returncode == 0


def test_the_time_to_the_first_token_is_that_of_the_wait(daemon: StubDaemon, shell: Shell) -> None:
    began = time.monotonic()
    daemon.on(CHAT, counted("a"))
    found = json.loads(shell.run("chat", "hi", "--json").stdout)
    assert 0 < found["timings"]["first_token_s"] <= found["timings"]["total_s"] < time.monotonic() - began
