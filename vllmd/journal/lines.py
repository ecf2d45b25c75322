"""The log as lines on stderr: for people, or as JSON, one object a line."""

import json
import logging
import time
from enum import StrEnum

from vllmd.about import fields_of
from vllmd.oneline import OneLine, escaped


class Format(StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonLines(logging.Formatter):
    """`{"at": …, "level": …, "message": …}`, and what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": super().format(record),
            **fields_of(record),
        }
        return json.dumps(told, ensure_ascii=False)


class TextLines(OneLine):
    """For people. What an engine prints in several lines, such as a traceback, stays so.

    Args:
        form: of a record, as in `logging.Formatter`.
        indent: before all lines of such a block but its first: where records begin at the margin, none can be forged.
    """

    def __init__(self, form: str, indent: str = "    ") -> None:
        super().__init__(form)
        self._join = f"\n{indent}".join

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        if fields_of(record).get("stream") != "engine":
            return super().formatMessage(record)
        return self._join(map(escaped, logging.Formatter.formatMessage(self, record).split("\n")))


def formatter(wanted: Format) -> logging.Formatter:
    """That of `wanted`."""
    return JsonLines("%(message)s") if wanted is Format.JSON else TextLines(TEXT)
