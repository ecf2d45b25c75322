"""A terminal that is drawn on: a page that is renewed in place, keys that need no Enter, and all as it was at the end.

Nothing but what every terminal since the VT220 knows is sent, and each page in one piece, so that it neither flickers
nor stalls on a slow line. The page stands on the terminal's other screen: what was there before comes back.
"""

import os
import select
import signal
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from vllmd.ctl.output import Output, printable
from vllmd.ctl.width import fit

_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"
_DEADLY = (signal.SIGTERM, signal.SIGHUP)


class Canvas:
    """The page; made by `drawing`."""

    def __init__(self, out: Output, keys: TextIO | None) -> None:
        self._out = out
        self._keys = keys

    def draw(self, lines: Sequence[str]) -> None:
        """Renews the page; what does not fit is cut off."""
        columns, rows = self._out.size()
        shown = [fit(printable(line).replace("\t", " "), columns - 1) + _REST_OF_LINE for line in lines[:rows]]
        self._out.send(_HOME + "\r\n".join(shown) + _REST_OF_PAGE)

    def key(self, wait_s: float) -> str:
        """The next key; empty if none came within so many seconds."""
        keys = [self._keys] if self._keys else []
        if not select.select(keys, [], [], wait_s)[0]:
            return ""
        assert self._keys is not None, "something was read from it"
        data = os.read(self._keys.fileno(), 64)
        if not data:
            self._keys = None  # hung up, or at its end: it would be ready for ever
        return data.decode(errors="replace")


@contextmanager
def drawing(out: Output, stdin: TextIO | None) -> Iterator[Canvas]:
    """Takes the terminal, and gives it back as it was, however the block ends; also while the process is stopped.

    Args:
        out: a terminal.
        stdin: read for keys if it is a terminal, too.
    """
    keys = stdin if stdin is not None and stdin.isatty() else None
    before = termios.tcgetattr(keys) if keys else None

    def take() -> None:
        if keys and before:
            termios.tcsetattr(keys, termios.TCSADRAIN, _unbuffered(before))
        out.send(_BEGIN)

    def give_back() -> None:
        with suppress(OSError):
            out.send(_END)
        if keys and before:
            with suppress(termios.error):  # it has hung up
                termios.tcsetattr(keys, termios.TCSADRAIN, before)

    def pass_on(number: int, frame: FrameType | None) -> None:
        """Gives the terminal back and lets the signal do what it does to others; a stopped process may go on."""
        give_back()
        ours = signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(signal.Signals(number))
        signal.signal(number, ours)
        take()

    previous = {number: signal.signal(number, pass_on) for number in (*_DEADLY, signal.SIGTSTP)}
    try:
        take()
        yield Canvas(out, keys)
    finally:
        give_back()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unbuffered(attributes: list[Any]) -> list[Any]:
    """A terminal's attributes (termios(3)) with keys at once and unseen; Ctrl-C and Ctrl-Z are signals as ever."""
    local = attributes[3] & ~(termios.ICANON | termios.ECHO)
    return [*attributes[:3], local, *attributes[4:]]
