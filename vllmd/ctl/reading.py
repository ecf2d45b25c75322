"""The events of an answer, read as cheaply as may be.

Nearly all of them differ in their text alone. That is taken out as it stands there (`template`), and texts that came
together are read together: to parse the JSON of each event would take several times as long.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vllmd.ctl.failure import LOOK
from vllmd.errors import StreamBroken
from vllmd.sse import Event, decode, events_in
from vllmd.template import Learner, Template

json_decode = json.JSONDecoder().decode


class Chunk(NamedTuple):
    """What one event, or a run of them, adds to the answer."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""


class Reader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._learner = Learner()
        self._begun = False

    def read(self, block: bytes) -> Iterator[Chunk | Event]:
        """The events of a block, in which each must be whole: of ordinary ones in a row what they say, of others all.

        Raises:
            StreamBroken: what they say cannot be read.
        """
        run = list[bytes]()
        for event in events_in(block):
            template = self._learner.template
            text = self._learner.text_of(event) if self._begun else None
            if run and (text is None or self._learner.template is not template):
                yield _chunk(run, template)
                run = []
            if text is None:
                yield from self._decode(event)
            else:
                run.append(text)
        if run:
            yield _chunk(run, self._learner.template)

    def _decode(self, event: bytes) -> list[Event]:
        """All that an event says; at least the first one's is wanted, since it tells whose answer this is."""
        found = decode(event)
        self._begun = self._begun or any(each.has_data for each in found)
        return found


def _chunk(run: list[bytes], template: Template | None) -> Chunk:
    text = _unescaped(b"".join(run).decode(errors="replace"))
    return Chunk(reasoning=text) if template and template.is_thought else Chunk(text)


def _unescaped(text: str) -> str:
    """A text as it stood between JSON's quotes. Halves of a character that stood in two events are one again."""
    try:
        return str(json_decode(f'"{text}"')) if "\\" in text else text
    except ValueError as error:
        raise StreamBroken(f"a text of the answer cannot be read: {text[:80]}", LOOK) from error


def read_chunk(table: Mapping[str, Any]) -> Chunk:
    """Reads what a chunk says. Of several answers to one question, the first is read."""
    choices = table.get("choices")
    if not choices or choices[0].get("index"):
        return Chunk()
    choice = choices[0]
    delta = choice.get("delta") or {}
    text, reasoning = delta.get("content"), delta.get("reasoning") or delta.get("reasoning_content")
    return Chunk(str(text or ""), str(reasoning or ""), choice.get("finish_reason") or "")
