"""The terminal: what the three standard streams are, and the only place that reads and writes them.

stdout carries the answer and nothing else; stderr carries what is said about it. A pipe or a file gets the exact text.
A terminal gets it without control characters, since a model could otherwise move the cursor, set the title or fill the
clipboard of whoever reads it. Everything is written as UTF-8, whatever the locale says, and flushed at once.

A reader that has left (`| head -1`) shows as BrokenPipeError from here and from nowhere else; `main` ends silently
then. stderr never fails: if nobody can read the message, the exit status still says it.
"""

import os
import select
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

from vllmd.errors import VllmdError

SILENCE_S = 2.0
"""Seconds without a byte on stdin after which a note says what vllmctl is waiting for."""

_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_DIM, _RED, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"
_NAME = "vllmctl: "


def printable(text: str) -> str:
    """`text` without the control characters (C0, DEL, C1) that a terminal would act upon; newline and tab stay."""
    return text.translate(_CONTROL)


class Output:
    """One stream that text goes out on.

    Args:
        file: where to; None if the shell has closed it.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.is_tty = file is not None and file.isatty()
        self.at_line_start = True

    def write(self, text: str, style: str = "") -> None:
        """Writes what may be shown of `text`; `style` is an escape sequence of our own around it.

        Raises:
            BrokenPipeError: the reader has left.
            VllmdError: the text cannot be written.
        """
        shown = printable(text) if self.is_tty else text
        if shown:
            self.at_line_start = shown.endswith("\n")
            self.send(f"{style}{shown}{_PLAIN}" if style else shown)

    def send(self, text: str) -> None:
        """Writes `text` as it is. Raises as `write` does."""
        if self._file is None:
            raise VllmdError("cannot write: the stream is closed")
        try:
            self._file.buffer.write(text.encode("utf-8", "replace"))
            self._file.flush()
        except OSError as error:
            self.abandon()
            if isinstance(error, BrokenPipeError):
                raise
            raise VllmdError(f"cannot write: {error.strerror}") from error

    def abandon(self) -> None:
        """Lets what could not be written go nowhere, so that the interpreter's own flush at exit cannot fail again."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno() if self._file else nowhere)
            os.close(nowhere)


class Terminal:
    """The standard streams of one run.

    Args:
        stdin, stdout, stderr: as in `sys`, None where the shell has closed one.
        environ: NO_COLOR and TERM decide on colour.
    """

    def __init__(
        self, stdin: TextIO | None, stdout: TextIO | None, stderr: TextIO | None, environ: Mapping[str, str]
    ) -> None:
        self._stdin = stdin
        self._stderr_file = stderr
        self.stdout = Output(stdout)
        self.stderr = Output(stderr)
        self.quiet = False
        self.colour = self.stderr.is_tty and not environ.get("NO_COLOR") and environ.get("TERM", "") not in ("", "dumb")
        self._drawn = 0
        self._held = ""
        self._answered = False

    @classmethod
    def standard(cls, environ: Mapping[str, str]) -> "Terminal":
        """The terminal of this process."""
        return cls(sys.stdin, sys.stdout, sys.stderr, environ)

    # ── stdin ──

    def stdin_mode(self) -> int | None:
        """The `st_mode` of stdin; None if it is closed."""
        try:
            return os.fstat(self._stdin.fileno()).st_mode if self._stdin else None
        except OSError:
            return None

    def read_stdin(self) -> bytes:
        """All of stdin; after two silent seconds a person at a terminal is told what is being waited for."""
        assert self._stdin is not None
        ready, _, _ = select.select([self._stdin], [], [], SILENCE_S)
        if not ready and self.stderr.is_tty:
            self.note("reading the prompt from stdin ... (--no-stdin does without)")
        return self._stdin.buffer.read()

    # ── the answer, on stdout ──

    def answer(self, text: str) -> None:
        """Writes the next part of an answer. Of newlines at its end one is shown and the rest held back."""
        if not text:
            return
        self.settle()
        text = self._held + text
        shown = text.rstrip("\n")
        if len(text) > len(shown) and (shown or not self.stdout.at_line_start):
            shown += "\n"
        self._held = text[len(shown) :]
        self.stdout.write(shown)
        self._answered = self._answered or bool(shown)

    def end_answer(self) -> None:
        """Ends a whole answer with exactly one newline."""
        self.settle()
        if not (self._answered and self.stdout.at_line_start):
            self.stdout.write("\n")
        self._held, self._answered = "", False

    def line(self, text: str) -> None:
        """Writes a finished line to stdout."""
        self.settle()
        self.stdout.write(f"{text}\n")

    # ── what is said about it, on stderr ──

    def reasoning(self, text: str) -> None:
        """Shows a part of the model's reasoning, dim; only a terminal gets to see it."""
        if text and self.stderr.is_tty and not self.quiet:
            self._erase()
            self._tell(text, _DIM)

    def progress(self, text: str) -> None:
        """Draws one line that the next output erases; only a terminal gets to see it."""
        if not self.stderr.is_tty or self.quiet:
            return
        shown = " ".join(printable(text).split())[: self._columns() - 1]
        before, self._drawn = self._drawn, len(shown)  # first, since Ctrl-C may come at any moment
        self._draw(f"\r{shown.ljust(before)}")

    def note(self, text: str) -> None:
        """Says something worth knowing that is no error."""
        if not self.quiet:
            self.break_off()
            self._tell(f"{_NAME}{text}\n")

    def error(self, message: str, hint: str = "") -> None:
        """Says what went wrong and, below it, what to do about it."""
        self.break_off()
        self._tell(_NAME, _RED)
        indent = "\n" + " " * len(_NAME)
        self._tell(indent.join(line for line in (*message.splitlines(), *hint.splitlines()) if line) + "\n")

    def break_off(self) -> None:
        """Leaves an unfinished answer as it is; on a terminal the next line begins at its start."""
        self.settle()
        self._held, self._answered = "", False
        if self.stdout.is_tty and not self.stdout.at_line_start:
            self.stdout.write("\n")

    def settle(self) -> None:
        """Progress and reasoning are over: stderr stands at the start of a line."""
        self._erase()
        if not self.stderr.at_line_start:
            self._tell("\n")

    def _erase(self) -> None:
        if self._drawn:
            self._draw(f"\r{' ' * self._drawn}\r")
            self._drawn = 0

    def _tell(self, text: str, style: str = "") -> None:
        with suppress(OSError, VllmdError):
            self.stderr.write(text, style if self.colour else "")

    def _draw(self, text: str) -> None:
        with suppress(OSError, VllmdError):
            self.stderr.send(text)

    def _columns(self) -> int:
        with suppress(OSError, AttributeError):
            return os.get_terminal_size(self._stderr_file.fileno()).columns or 80  # type: ignore[union-attr]
        return 80
