"""What a person at a terminal sees: progress that goes away, reasoning in dim, no foreign control characters."""

import json
import os
import subprocess
import threading
import time

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import DONE, Exchange, StubDaemon, chunk, error, held_until, refuse, reply, stream

from vllmd import sse
from vllmd.ctl.width import fit, width

CHAT = "POST /v1/chat/completions"
DIM, RED, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"


def test_progress_is_drawn_from_comments_and_erased_before_the_first_token(daemon: StubDaemon, shell: Shell) -> None:
    seen_43 = threading.Event()
    daemon.on(
        CHAT,
        stream(
            sse.comment("starting, loading weights 43 %, 12 s"),
            held_until(seen_43),
            sse.comment("starting, warming up, 20 s"),
            chunk("Hello"),
            sse.comment("the engine is at work"),
            chunk(" world", "stop"),
            DONE,
        ),
    )
    with screen(shell, "chat", "hi", "-m", "qwen") as seen:
        seen.read_until("waiting for qwen: starting, loading weights 43 %, 12 s")
        seen_43.set()
        assert seen.end() == 0
        assert seen.lines == ["Hello world", ""]
        text = seen.written.decode()
        assert "waiting for qwen: starting, warming up, 20 s" in text
        assert "at work" not in text
        assert "\x1b" not in text


def test_progress_goes_to_stderr_only(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("starting, 12 s"), chunk("Hello", "stop"), DONE))
    with screen(shell, "chat", "hi", stdout=subprocess.PIPE) as seen:
        assert seen.end() == 0
        assert seen.process.stdout is not None
        assert seen.process.stdout.read() == b"Hello\n"
        assert "waiting for the model: starting, 12 s" in seen.written.decode()
        assert seen.lines == [""]


def test_quiet_draws_nothing(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("starting"), chunk(reasoning="hm"), chunk("Hello", "length"), DONE))
    with screen(shell, "chat", "hi", "-q") as seen:
        assert seen.end() == 0
        assert seen.written == b"Hello\r\n"


def test_control_characters_are_removed(daemon: StubDaemon, shell: Shell) -> None:
    evil = "a\x1b]0;title\x07\x1b[2J\rb\x00\x7f\x9b31mc\td\n"
    daemon.on(CHAT, stream(sse.comment("st\x1b[2Jart"), chunk(evil), chunk("\x1b", "stop"), DONE))
    with screen(shell, "chat", "hi", stderr=subprocess.DEVNULL) as seen:
        assert seen.end() == 0
        assert seen.written.decode() == "a]0;title[2Jb31mc\td\r\n"


def test_control_characters_of_an_error_are_removed_too(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, refuse(400, 400, "bad \x1b[2J thing", source=None))
    with screen(shell, "chat", "hi", "--no-color") as seen:
        assert seen.end() == 1
        assert seen.lines[0] == "vllmctl: engine refused the request: bad [2J thing   (source: engine)"
        assert b"\x1b" not in seen.written


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_dim_and_ends_before_the_answer(daemon: StubDaemon, shell: Shell, name: str) -> None:
    daemon.on(CHAT, stream(chunk(**{name: "Let me\x1b[1m"}), chunk(**{name: " see"}), chunk("42", "stop"), DONE))
    with screen(shell, "chat", "hi") as seen:
        assert seen.end() == 0
        assert seen.written.decode() == f"{DIM}Let me[1m{PLAIN}{DIM} see{PLAIN}\r\n42\r\n"


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"}), (["--no-color"], {}), ([], {"TERM": ""})],
)
def test_no_escape_sequence_where_colour_is_not_wanted(
    daemon: StubDaemon, shell: Shell, arguments: list[str], environ: dict[str, str]
) -> None:
    event = sse.encode(json.dumps(error("engine_error", "it died", source="engine")))
    daemon.on(CHAT, stream(sse.comment("starting"), chunk(reasoning="hm"), chunk("4"), event, DONE))
    with screen(shell, *arguments, "chat", "hi", environ=environ) as seen:
        assert seen.end() == 1
        assert b"\x1b" not in seen.written
        assert seen.lines[:3] == ["hm", "4", "vllmctl: it died   (source: engine)"]


def test_an_error_is_red_and_starts_a_line(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("partial"), cut=True))
    with screen(shell, "chat", "hi") as seen:
        assert seen.end() == 1
        assert seen.written.decode().startswith(f"partial\r\n{RED}vllmctl: {PLAIN}the answer broke off")


def test_an_empty_no_color_means_nothing(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("a"), cut=True))
    with screen(shell, "chat", "hi", environ={"NO_COLOR": ""}) as seen:
        assert seen.end() == 1
        assert RED.encode() in seen.written


def test_progress_is_no_longer_than_the_line(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("x" * 500), chunk("a", "stop"), DONE))
    with screen(shell, "chat", "hi") as seen:
        assert seen.end() == 0
        assert len(max(seen.written.split(b"\r"), key=len)) == 79
        assert seen.lines == ["a", ""]


@pytest.mark.parametrize("columns", [2, 10, 40])
def test_so_it_is_on_a_narrow_terminal(daemon: StubDaemon, shell: Shell, columns: int) -> None:
    daemon.on(CHAT, stream(sse.comment("starting, loading weights"), chunk("a long answer", "stop"), DONE))
    with screen(shell, "chat", "hi", size=(24, columns)) as seen:
        assert seen.end() == 0
        assert f"\r{'waiting for the model: starting, loading weights'[: columns - 1]}\r" in seen.written.decode()
        assert seen.lines == ["a long answer", ""]  # the terminal wraps it, not vllmctl


def test_wide_characters_take_two_columns(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(sse.comment("読み込み中 " * 20), chunk("終わり", "stop"), DONE))
    with screen(shell, "chat", "hi", "-m", "模型") as seen:
        assert seen.end() == 0
        drawn, spaces, *_ = [part for part in seen.written.decode().split("\r") if part]
        assert width(drawn) == len(spaces) == 79
        assert drawn.startswith("waiting for 模型: 読み込み中 ")
        assert seen.written.decode().endswith("\r終わり\r\n")


@pytest.mark.parametrize(
    ("text", "columns", "fits", "takes"),
    [
        ("abc", 2, "ab", 2),
        ("abc", 0, "", 0),
        ("abc", -1, "", 0),
        ("日本語", 5, "日本", 4),
        ("日本語", 6, "日本語", 6),
        ("e\u0301e\u0301", 1, "e\u0301", 1),
        ("\uff76\u200d", 9, "\uff76\u200d", 1),
    ],
)
def test_what_fits_and_what_it_takes(text: str, columns: int, fits: str, takes: int) -> None:
    assert fit(text, columns) == fits
    assert width(fits) == takes


def test_the_age_of_a_state_goes_on_between_two_events(daemon: StubDaemon, shell: Shell) -> None:
    ended = threading.Event()
    since = time.time()
    starting = {"name": "qwen", "state": "starting", "phase": "compiling", "since": since}
    daemon.on("GET /api/events", stream(sse.encode(json.dumps(starting), event="model"), held_until(ended)))

    def outcome(exchange: Exchange) -> None:
        held_until(ended)(exchange)
        reply({"name": "qwen", "state": "ready"})(exchange)

    daemon.on("POST /api/models/qwen/load?wait=1", outcome)
    with screen(shell, "load", "qwen") as seen:
        for age_s in (1, 2):
            seen.read_until(f"qwen: starting, compiling, {age_s} s")
        ended.set()
        assert seen.end() == 0
        assert seen.lines == ["qwen: ready", ""]


def test_a_terminal_as_stdin_is_not_read(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, stream(chunk("a", "stop"), DONE))
    controller, terminal = os.openpty()
    try:
        with shell.start("chat", "hi", stdin=terminal) as process:
            assert process.communicate(timeout=60)[0] == b"a\n"
        with shell.start("chat", stdin=terminal) as process:
            assert b"no prompt" in process.communicate(timeout=60)[1]
        assert process.returncode == 2
    finally:
        os.close(controller)
        os.close(terminal)
