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
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, TextIO

from vllmd.ctl.output import Output, printable
from vllmd.ctl.width import fit, width
from vllmd.errors import VllmdError

if TYPE_CHECKING:
    from vllmd.ctl.canvas import Canvas

SILENCE_S = 2.0
"""Seconds without a byte on stdin after which a note says what vllmctl is waiting for."""

_DIM, _RED = "\x1b[2m", "\x1b[31m"
_NAME = "vllmctl: "


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
        self._stdout = stdout
        self.stdout = Output(stdout)
        self.stderr = Output(stderr)
        self.quiet = False
        self.debug = False
        self._can_draw = environ.get("TERM", "") not in ("", "dumb")
        self.colour = self.stderr.is_tty and not environ.get("NO_COLOR") and self._can_draw
        self._drawn = 0
        self._held = ""
        self._answered = False

    @classmethod
    def standard(cls, environ: Mapping[str, str]) -> "Terminal":
        """The terminal of this process."""
        return cls(sys.stdin, sys.stdout, sys.stderr, environ)

    # ── all of it ──

    @property
    def can_draw(self) -> bool:
        """Whether stdout is a terminal on which the cursor can be moved."""
        return self.stdout.is_tty and self._can_draw

    def drawing(self) -> "AbstractContextManager[Canvas]":
        """Takes the whole terminal for a page that is renewed in place; gives it back at the end."""
        from vllmd.ctl.canvas import drawing

        self.settle()
        return drawing(self.stdout, self._stdin)

    # ── stdin ──

    @property
    def is_interactive(self) -> bool:
        """Whether a person types at stdin and sees what is said on stderr."""
        return self.stderr.is_tty and self._stdin is not None and self._stdin.isatty()

    @property
    def device(self) -> str | None:
        """The path of the terminal that stdin, else stdout, is; None if neither is one."""
        for file in (self._stdin, self._stdout):
            with suppress(OSError, ValueError, AttributeError):
                return os.ttyname(file.fileno())  # type: ignore[union-attr]
        return None

    def stdin_mode(self) -> int | None:
        """The `st_mode` of stdin; None if it is closed."""
        try:
            return os.fstat(self._stdin.fileno()).st_mode if self._stdin else None
        except OSError:
            return None

    def read_stdin(self) -> bytes:
        """All of stdin; after two silent seconds a person at a terminal is told what is being waited for."""
        if self._stdin is None:
            raise VllmdError("cannot read: stdin is closed")
        ready, _, _ = select.select([self._stdin], [], [], SILENCE_S)
        if not ready and (self.stderr.is_tty or self.debug):
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
        self._answered = self._answered or bool(shown)  # first, since Ctrl-C may come at any moment
        self.stdout.write(shown)

    def end_answer(self) -> None:
        """Ends a whole answer with exactly one newline."""
        self.settle()
        if not (self._answered and self.stdout.at_line_start):
            self.stdout.write("\n")
        self._held, self._answered = "", False

    def cut_answer(self) -> None:
        """Ends an answer that will not come to its end, so that another one can follow it."""
        if self._answered:
            self.end_answer()
        else:
            self.break_off()

    def line(self, text: str) -> None:
        """Writes a finished line to stdout."""
        self.settle()
        self.stdout.write(f"{text}\n")

    # ── what is said about it, on stderr ──

    def reasoning(self, text: str) -> None:
        """Shows a part of the model's reasoning, dim; only a terminal gets to see it."""
        if text and self.shows_progress:
            self._erase()
            self._tell(text, _DIM)

    @property
    def shows_progress(self) -> bool:
        """Whether anybody gets to see a line of progress."""
        return self.stderr.is_tty and not self.quiet

    def progress(self, text: str) -> None:
        """Draws one line that the next output erases; only a terminal gets to see it."""
        if not self.shows_progress:
            return
        shown = fit(" ".join(printable(text).split()), self.stderr.columns() - 1)
        before, self._drawn = self._drawn, width(shown)  # first, since Ctrl-C may come at any moment
        self._draw(f"\r{shown}{' ' * (before - self._drawn)}")

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

    def trace(self, mark: str, data: bytes) -> None:
        """Shows what goes over the wire, if that was asked for: each line behind a mark, as curl does."""
        if self.debug and data:
            self.settle()
            self._tell("".join(f"{mark} {line}\n" for line in data.decode(errors="replace").splitlines()))

    def remark(self, text: str) -> None:
        """Writes a line that was asked for to stderr, without our name before it."""
        if not self.quiet:
            self.break_off()
            self._tell(f"{text}\n")

    def break_off(self) -> None:
        """Leaves an unfinished answer as it is; on a terminal the next line begins at its start."""
        self.settle()
        self._held, self._answered = "", False
        if self.stdout.is_tty and not self.stdout.at_line_start:
            self.stdout.write("\n")

    def leave(self) -> None:
        """`break_off` for the last time: nothing can be said about it any more if it fails."""
        with suppress(OSError, VllmdError):
            self.break_off()

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
