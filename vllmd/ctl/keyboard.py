"""What a person types: lines with readline's editing and a history in memory, blocks between triple quotes.

readline writes its prompt to file descriptor 1, where the answers go. While a line is typed, stderr's terminal stands
in for it, so that `vllmctl chat | tee answers` keeps the prompts out of the file.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

QUOTES = '"""'
PROMPT, CONTINUED = ">>> ", "... "


class Keyboard:
    """Reads what is typed at a terminal."""

    def __init__(self) -> None:
        with _prompts_on_stderr():
            # Also where no readline was built in, lines can be typed.
            try:
                import_module("readline")
            except ImportError:
                return

    def read(self) -> str:
        """A line, or all the lines of a block, which begins (a command may stand before) and ends with triple quotes.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C; what was typed is forgotten.
        """
        line = _line(PROMPT)
        before, opening, text = line.partition(QUOTES)
        if not opening or (before.strip() and not before.startswith("/")):
            return line
        while QUOTES not in text:
            text = f"{text}\n{_line(CONTINUED)}"
        return before + text.rpartition(QUOTES)[0].removeprefix("\n")


def _line(prompt: str) -> str:
    with _prompts_on_stderr():
        return input(prompt)


@contextmanager
def _prompts_on_stderr() -> Iterator[None]:
    sys.stdout.flush()
    answers = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(answers, 1)
        os.close(answers)
