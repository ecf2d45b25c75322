"""What stands behind the `?` of vllmd's own routes: read here, and described from here."""

import re
from dataclasses import dataclass

from aiohttp import web

from vllmd.engine.incidents import KEEP
from vllmd.engine.lines import KEPT_LINES
from vllmd.errors import RequestError

_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Number:
    """A whole number, not negative.

    Args:
        name: as it is written.
        default: where it is left out, or empty.
        doc: what it means.
    """

    name: str
    default: int
    doc: str

    def read(self, request: web.Request) -> int:
        """What `request` says. Raises RequestError if that is no number."""
        text = request.query.get(self.name, "")
        if text and not _NUMBER.fullmatch(text):
            raise RequestError(f"{self.name}: expected a number, found {text!r}", param=self.name)
        return int(text) if text else self.default


@dataclass(frozen=True)
class Text:
    """A text.

    Args:
        name: as it is written.
        doc: what it means.
    """

    name: str
    doc: str


WAIT = Number("wait", 0, "1: answer once the outcome is there, not at once")
LINES = Number("lines", KEPT_LINES, "so many of the last lines")
FOLLOW = Number("follow", 0, "1: events, and the next lines as they come")
LENGTH = Number("max_model_len", 0, "another longest sequence than the configuration's, in tokens; 0: that one")
MODEL = Text("model", "the model's name; the default model's where it is left out")
LIMIT = Number("limit", KEEP, "so many of the newest")
OF_MODEL = Text("model", "only those of this model")
