"""One stream that text goes out on: as UTF-8 whatever the locale says, and for a terminal without control characters.

A reader that has left (`| head -1`) shows as BrokenPipeError from here and from nowhere else.
"""

import os
from contextlib import suppress
from typing import TextIO

from vllmd.errors import VllmdError

PLAIN = "\x1b[0m"
_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


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
            self.send(f"{style}{shown}{PLAIN}" if style else shown)

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

    def columns(self) -> int:
        """How wide the terminal is; 80 where nobody knows."""
        return self.size()[0]

    def size(self) -> tuple[int, int]:
        """The terminal's columns and rows; 80 and 24 where nobody knows."""
        with suppress(OSError, AttributeError):
            columns, rows = os.get_terminal_size(self._file.fileno())  # type: ignore[union-attr]
            return columns or 80, rows or 24
        return 80, 24

    def abandon(self) -> None:
        """Lets what could not be written go nowhere, so that the interpreter's own flush at exit cannot fail again."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno() if self._file else nowhere)
            os.close(nowhere)
