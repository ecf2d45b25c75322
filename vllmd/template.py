"""What the ordinary events of one stream have in common, so that the next one is known at a glance. Pure.

Nearly all events of a stream differ in their text alone. From one of them `learn` takes what stands before and behind
the text; an event that begins and ends so, with no bare quote between, says one more piece of text and nothing else: no
error, no ending, no usage. That costs three comparisons of bytes, where a JSON parser would cost more than all the rest
of the relay. Whatever looks different is examined in full.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

_WITH_TEXT = re.compile(
    rb'(?P<head>(?:event: [a-z_.]+\n)?data: (?P<open>\{.*"(?P<name>content|text|reasoning|reasoning_content)":"))'
    rb'(?:[^"\\]|\\.)*(?P<tail>"[^\n]*\}\n\n)',
    re.DOTALL,
)
QUOTE = ord('"')
"""A number: asked whether bytes are in bytes, CPython first makes a TypeError and drops it (bytes_methods.c)."""

_THOUGHTS = (b"reasoning", b"reasoning_content")
_EMPTY: Any = (None, "", [])


@dataclass(frozen=True, slots=True)
class Template:
    """An event's bytes before and behind its text.

    Args:
        head: up to and with the quote that opens the text.
        tail: from the quote that closes it to the end of the event.
        is_thought: the text is what the model thinks, and not what it answers.
    """

    head: bytes
    tail: bytes
    is_thought: bool = False

    def text_of(self, event: bytes) -> bytes | None:
        """The text of an ordinary event, as JSON escapes it; None if `event` is no ordinary one."""
        if not event.startswith(self.head) or not event.endswith(self.tail):
            return None
        text = event[len(self.head) : -len(self.tail)]
        return None if QUOTE in text else text


def learn(event: bytes) -> Template | None:
    """The template that `event`, a whole one, was made from; None if it holds more than a piece of text."""
    match = _WITH_TEXT.fullmatch(event)
    if match is None:
        return None
    try:
        emptied = json.loads(match["open"] + match["tail"])
    except (ValueError, RecursionError):
        return None
    return Template(match["head"], match["tail"], match["name"] in _THOUGHTS) if _is_plain(emptied) else None


def _is_plain(table: dict[str, Any]) -> bool:
    """Whether an event, its text taken out, says nothing."""
    if table.get("type") == "content_block_delta":
        return table.get("delta") == {"type": "text_delta", "text": ""}
    choices = table.get("choices")
    return (
        isinstance(choices, list)
        and len(choices) == 1
        and isinstance(choices[0], dict)
        and _says_nothing(choices[0])
        and "error" not in table
        and table.get("usage") is None
    )


def _says_nothing(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta", {})
    rest = [value for key, value in choice.items() if key not in ("index", "delta")]
    return isinstance(delta, dict) and choice.get("index") == 0 and all(v in _EMPTY for v in [*rest, *delta.values()])


LESSONS = 32
"""Events with a text from which a stream tries to learn what its ordinary ones look like."""


class Learner:
    """Finds out what the ordinary events of one stream look like; it learns anew when they change, as after thoughts.

    Attributes:
        template: what they have in common; None as long as that is not known.
    """

    __slots__ = ("_lessons", "template")

    def __init__(self) -> None:
        self.template: Template | None = None
        self._lessons = LESSONS

    @property
    def is_curious(self) -> bool:
        """Whether there may be something to find out."""
        return self._lessons > 0

    def text_of(self, event: bytes) -> bytes | None:
        """The text of an ordinary event, as JSON escapes it; None if it is none. Learns from it."""
        text = self.template.text_of(event) if self.template else None
        if text is None and self._lessons and _WITH_TEXT.fullmatch(event):
            self._lessons -= 1
            self.template = learn(event) or self.template
            text = self.template.text_of(event) if self.template else None
        return text
