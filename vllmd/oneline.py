"""The daemon's log: one record, one line, and nothing in it that a terminal would act upon.

Engines, clients and models have their words in it. With a line feed they could write records of their own, with escape
sequences repaint the screen of whoever reads them, and with marks of direction make one thing look like another.
"""

import logging

_MARKS = (*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
"""Separators of lines, marks of direction, and what has no width."""

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\t"} | {
    code: f"\\u{code:04x}" for code in _MARKS
}


def escaped(text: str) -> str:
    """`text` with such characters written out, as `\\x1b`; a tab stays."""
    # None of them is printable, and most lines are: a look is a twentieth of a translation.
    return text if text.isprintable() else text.translate(_ESCAPED)


class OneLine(logging.Formatter):
    """Formats records so. A traceback keeps its lines, as they are the daemon's own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return escaped(super().formatMessage(record))
