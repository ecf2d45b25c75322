"""`vllmctl chat`: what it sends, what it writes where, and how it ends."""

import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import DONE, Answer, StubDaemon, chat, chunk, error, held_until, refuse, reply, stream

from vllmd import sse

CHAT = "POST /v1/chat/completions"


def test_the_answer_is_all_of_stdout_and_stderr_is_empty(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("Local", " models", ",\nétoile ✓"))
    result = shell.run("chat", "prompt", "-t", "0.7")
    assert (result.status, result.stdout, result.stderr) == (0, "Local models,\nétoile ✓\n", "")


def test_what_is_given_is_sent_and_nothing_else(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("x"))
    shell.run(
        "chat", "why", "is", "-t", "0.7", "the", "sky", "-n", "5", "blue", "--top-p=0.9", "-m", "m", "-s", "Be brief"
    )
    shell.run("chat", "hi")
    first, second = daemon.requests
    assert first.json == {
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "why is the sky blue"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 5,
        "model": "m",
        "stream": True,
    }
    assert second.json == {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert first.headers["host"] == "localhost"
    assert first.headers["content-type"] == "application/json"
    assert "authorization" not in first.headers
    assert "x-vllmd-wait" not in first.headers


def test_words_after_two_dashes_are_words(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("x"))
    assert shell.run("chat", "--", "-v", "means", "what").status == 0
    assert daemon.requests[0].json["messages"][0]["content"] == "-v means what"


def test_no_wait_says_so(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(503, "not_ready", "m is not ready: starting, 3 s"))
    result = shell.run("chat", "hi", "--no-wait")
    assert daemon.requests[0].headers["x-vllmd-wait"] == "0"
    assert (result.status, result.stdout) == (3, "")
    assert result.stderr == "vllmctl: m is not ready: starting, 3 s\n         see:  vllmctl status\n"


def test_options_have_defaults_in_the_environment(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("x"))
    shell.run("chat", "hi", environ={"VLLMCTL_CHAT_TEMPERATURE": "0.2"})
    shell.run("chat", "hi", "-t", "1", environ={"VLLMCTL_CHAT_TEMPERATURE": "0.2"})
    assert [request.json["temperature"] for request in daemon.requests] == [0.2, 1.0]


def test_the_system_prompt_may_be_a_file(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on(CHAT, chat("x"))
    (tmp_path / "review.md").write_text("Review é\nstrictly\n")
    assert shell.run("chat", "hi", "-s", f"@{tmp_path}/review.md").status == 0
    assert daemon.requests[0].json["messages"][0] == {"role": "system", "content": "Review é\nstrictly"}


def test_a_system_prompt_that_cannot_be_read_is_a_usage_error(shell: Shell, tmp_path: Path) -> None:
    result = shell.run("chat", "hi", "-s", f"@{tmp_path}/none")
    assert result.status == 2
    assert f"cannot read {tmp_path}/none: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a"], "a\n"),
        (["a\n"], "a\n"),
        (["a", "\n", "\n", "\n"], "a\n"),
        (["a\n\n", "\n", "b"], "a\n\n\nb\n"),
        (["\n\n", "a"], "\n\na\n"),
        (["  a \t"], "  a \t\n"),
        ([], "\n"),
        (["\x1b[31m", "red\x07\r"], "\x1b[31mred\x07\r\n"),
    ],
)
def test_a_pipe_gets_the_exact_text_and_one_newline_at_the_end(
    daemon: StubDaemon, shell: Shell, texts: list[str], expected: str
) -> None:
    daemon.on(CHAT, chat(*texts))
    with shell.start("chat", "hi") as process:
        assert process.communicate(timeout=60) == (expected.encode(), b"")


def test_reasoning_stays_away_from_pipes(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(
        CHAT, stream(chunk(reasoning="hm"), chunk(reasoning_content="hm"), chunk("42"), chunk(finish="stop"), DONE)
    )
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout, result.stderr) == (0, "42\n", "")


def test_progress_stays_away_from_pipes(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("starting, 12 s"), chunk("42", "stop"), DONE))
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout, result.stderr) == (0, "42\n", "")


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["-n", "5"], "vllmctl: stopped at --max-tokens\n"),
        ([], "vllmctl: stopped at the longest answer that the model allows; -n sets another length\n"),
        (["-q"], ""),
    ],
)
def test_an_answer_that_was_too_long_is_a_success_with_a_warning(
    daemon: StubDaemon, shell: Shell, arguments: list[str], note: str
) -> None:
    daemon.on(CHAT, chat("a", finish="length"))
    result = shell.run("chat", "hi", *arguments)
    assert (result.status, result.stdout, result.stderr) == (0, "a\n", note)


@pytest.mark.parametrize(
    "answer",
    [
        stream(chunk("partial"), cut=True),
        stream(chunk("partial")),
        stream(chunk("partial"), DONE),
        stream(chunk("partial"), chunk("", "abort"), DONE),
        stream(chunk("partial"), b'data: {"cho', cut=True),
    ],
    ids=["cut", "ended", "done-without-finish", "abort", "half-an-event"],
)
def test_an_answer_without_its_end_is_a_failure_and_what_came_stays(
    daemon: StubDaemon, shell: Shell, answer: Answer
) -> None:
    daemon.on(CHAT, answer)
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (1, "partial")
    assert result.stderr.startswith("vllmctl: the answer broke off")


def test_an_answer_that_is_whole_needs_no_done(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("all of it", "stop"), cut=True))
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout, result.stderr) == (0, "all of it\n", "")


@pytest.mark.parametrize(
    ("code", "source", "status", "said"),
    [
        ("engine_error", "engine", 1, "vllmctl: the engine died   (source: engine)\n"),
        ("not_ready", "vllmd", 3, "vllmctl: the engine died\n"),
        (500, None, 1, "vllmctl: the engine died   (source: engine)\n"),
    ],
)
def test_an_error_inside_the_stream_is_a_failure_even_with_done_behind_it(
    daemon: StubDaemon, shell: Shell, code: object, source: str | None, status: int, said: str
) -> None:
    event = sse.encode(json.dumps(error(code, "the engine died", source=source)))
    daemon.on(CHAT, stream(chunk("par"), chunk("tial"), event, DONE))
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (status, "partial")
    assert result.stderr.startswith(said)


@pytest.mark.parametrize("data", ["no json", "[]", '{"choices": [3]}', '{"choices": {}, "x": 1, "choices": [[]]}'])
def test_an_event_that_is_no_chunk_is_a_failure(daemon: StubDaemon, shell: Shell, data: str) -> None:
    daemon.on(CHAT, stream(chunk("a"), sse.encode(data), DONE))
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (1, "a")
    assert result.stderr.startswith("vllmctl: an event of the answer cannot be read")


def test_an_answer_that_is_no_stream_is_a_failure(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, reply({"choices": []}))
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (3, "")
    assert "sent no events" in result.stderr


def test_each_token_is_out_before_the_next_is_sent(daemon: StubDaemon, shell: Shell) -> None:
    seen = threading.Event()
    daemon.on(CHAT, stream(chunk("first\n"), held_until(seen), chunk("second", "stop"), DONE))
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        assert process.poll() is None
        seen.set()
        assert process.stdout.read() == b"second\n"
    assert process.returncode == 0


def test_an_event_in_many_pieces_is_one_event(daemon: StubDaemon, shell: Shell) -> None:
    data = chunk("étoile", "stop") + DONE
    daemon.on(CHAT, stream(*(data[at : at + 1] for at in range(len(data)))))
    assert shell.run("chat", "hi").stdout == "étoile\n"


def test_many_tokens_at_once_are_all_there(daemon: StubDaemon, shell: Shell) -> None:
    texts = [f"{number} é\n" for number in range(50_000)]
    block = b"".join(map(chunk, texts))
    daemon.on(CHAT, stream(block[:100_003], block[100_003:], chunk("", "stop") + DONE))
    assert shell.run("chat", "count").stdout == "".join(texts)


def test_lone_surrogates_do_no_harm(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(
        CHAT, stream(b'data: {"choices": [{"delta": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}\n\n', DONE)
    )
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (0, "a?\n")


def test_a_daemon_of_another_version_is_told_once(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    daemon.server_name = "vllmd/99.1.0"
    result = shell.run("chat", "hi")
    assert (result.status, result.stdout) == (0, "a\n")
    assert result.stderr.startswith("vllmctl: vllmd is version 99.1.0, vllmctl is ")
    daemon.server_name = "nginx"
    assert shell.run("chat", "hi").stderr == ""


def test_a_large_question_reaches_the_daemon(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    document = "words and words\n" * 200_000
    assert shell.run("chat", "count", stdin=document.encode()).status == 0
    assert daemon.requests[0].json["messages"][0]["content"] == f"{document}\ncount"


def test_over_tcp_with_a_key(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    with StubDaemon(None) as daemon:
        daemon.on(CHAT, chat("a"))
        place = daemon.address.removeprefix("http://")
        one = shell.run("-H", place, "chat", "hi", environ={"VLLMD_API_KEY": "secret"})
        two = shell.run("chat", "hi", "-H", daemon.address, environ={"VLLMD_API_KEY_FILE": str(tmp_path / "key")})
        assert (one.status, two.status) == (0, 0)
        assert [r.headers["authorization"] for r in daemon.requests] == ["Bearer secret", "Bearer from-file"]
        assert daemon.requests[0].headers["host"] == place


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path / "vllmd.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=vllmd -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", *request.split(), "-keyout", str(path), "-out", str(tmp_path / "certificate")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "certificate").read_bytes())
    return path


def test_over_tls_if_the_certificate_is_trusted(shell: Shell, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with StubDaemon(None, tls=context) as daemon:
        daemon.on(CHAT, chat("a"))
        trusted = shell.run("-H", daemon.address, "chat", "hi", environ={"SSL_CERT_FILE": str(certificate)})
        assert (trusted.status, trusted.stdout, trusted.stderr) == (0, "a\n", "")
        other = shell.run("-H", daemon.address, "chat", "hi")
        assert (other.status, other.stdout) == (3, "")
        assert other.stderr.startswith(f"vllmctl: cannot reach vllmd at {daemon.address}: ")
        assert "certificate verify failed" in other.stderr
        assert len(daemon.requests) == 1


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"VLLMD_API_KEY": "a\nb"}, "the API key holds characters that no header can carry"),
        ({"VLLMD_API_KEY_FILE": "/nonexistent"}, "VLLMD_API_KEY_FILE: cannot read /nonexistent: No such file"),
    ],
)
def test_a_key_that_cannot_be_used_is_told_before_anything_is_sent(
    daemon: StubDaemon, shell: Shell, environ: dict[str, str], said: str
) -> None:
    result = shell.run("chat", "hi", environ=environ)
    assert (result.status, result.stdout) == (2, "")
    assert said in result.stderr
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("arguments", "said"), [(["chat", "hi"], "cannot write"), (["--help"], "input or output failed")]
)
def test_a_full_disk_is_an_error(daemon: StubDaemon, shell: Shell, arguments: list[str], said: str) -> None:
    daemon.on(CHAT, chat("a"))
    with open("/dev/full", "wb") as full:
        result = shell.run(*arguments, stdout=full)
    assert (result.status, result.stderr) == (1, f"vllmctl: {said}: No space left on device\n")


def test_a_full_stderr_changes_nothing(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a", finish="length"))
    with open("/dev/full", "wb") as full:
        result = shell.run("chat", "hi", stderr=full)
    assert (result.status, result.stdout) == (0, "a\n")


def test_a_closed_stdout_is_an_error(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    result = shell.script('exec "$@" chat hi >&-')
    assert (result.status, result.stderr) == (1, "vllmctl: cannot write: the stream is closed\n")
