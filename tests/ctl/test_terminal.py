"""The terminal as a value: streams that a test holds in its hands."""

import io
from collections.abc import Mapping

import pytest

from vllmd.ctl.output import printable
from vllmd.ctl.terminal import Terminal
from vllmd.errors import VllmdError


class Stream(io.TextIOWrapper):
    """A stream in memory, a terminal or not."""

    def __init__(self, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    @property
    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


def make(stderr_tty: bool = False, environ: Mapping[str, str] | None = None) -> tuple[Terminal, Stream, Stream]:
    out, err = Stream(False), Stream(stderr_tty)
    return Terminal(None, out, err, {"TERM": "xterm", **(environ or {})}), out, err


def test_utf8_goes_out_whatever_the_locale() -> None:
    terminal, out, _ = make()
    terminal.answer("é")
    assert out.text == "é"


def test_newlines_at_the_end_are_held_back_until_more_comes() -> None:
    terminal, out, _ = make()
    terminal.answer("a\n\n")
    assert out.text == "a\n"
    terminal.answer("b")
    assert out.text == "a\n\nb"
    terminal.end_answer()
    assert out.text == "a\n\nb\n"


def test_a_second_answer_begins_anew() -> None:
    terminal, out, _ = make()
    for _ in range(2):
        terminal.answer("a\n\n")
        terminal.end_answer()
    terminal.end_answer()
    assert out.text == "a\na\n\n"


def test_an_error_has_its_hint_below_it() -> None:
    terminal, out, err = make()
    terminal.error("one\ntwo", "do this\nor that")
    assert err.text == "vllmctl: one\n         two\n         do this\n         or that\n"
    assert out.text == ""


def test_quiet_silences_everything_but_errors() -> None:
    terminal, _, err = make(True, {"NO_COLOR": "1"})
    terminal.quiet = True
    terminal.note("note")
    terminal.progress("progress")
    terminal.reasoning("reasoning")
    terminal.error("error")
    assert err.text == "vllmctl: error\n"


def test_a_shorter_progress_line_covers_a_longer_one() -> None:
    terminal, out, err = make(True)
    terminal.progress("loading weights")
    terminal.progress("ready")
    terminal.line("done")
    assert err.text == "\rloading weights\rready          \r     \r"
    assert out.text == "done\n"


@pytest.mark.parametrize(
    ("environ", "colour"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
    ],
)
def test_when_there_is_colour(environ: dict[str, str], colour: bool) -> None:
    assert make(True, environ)[0].colour is colour
    assert make(False, environ)[0].colour is False


def test_without_stdout_writing_is_an_error_and_without_stderr_it_is_not() -> None:
    terminal = Terminal(None, None, None, {})
    terminal.error("nobody hears this")
    terminal.note("nor this")
    with pytest.raises(VllmdError, match="cannot write: the stream is closed"):
        terminal.answer("a")
    assert terminal.stdin_mode() is None


def test_printable_keeps_newlines_and_tabs() -> None:
    assert printable("a\tb\nc\r\x00\x1b\x7f\x85\x9fé✓") == "a\tb\ncé✓"
