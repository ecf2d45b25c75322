"""The log as lines on stderr: for people, or as JSON, one object a line."""

import json
import logging
import time
from enum import StrEnum

from vllmd.about import fields_of
from vllmd.oneline import OneLine


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


def formatter(wanted: Format) -> logging.Formatter:
    """That of `wanted`."""
    return JsonLines("%(message)s") if wanted is Format.JSON else OneLine(TEXT)
