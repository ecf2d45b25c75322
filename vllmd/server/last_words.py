"""What the end of an answer says of it: why it ended, and how many tokens it took. Pure.

It is looked up in the last bytes alone, once for each answer and without parsing it: in all of vLLM's dialects it
stands there. The text of an answer cannot fake it, since JSON escapes its quotes.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

TAIL_BYTES = 2048
"""So much is looked at: of an answer in one piece, and of each of the last blocks of a stream."""

_WORDS = re.compile(
    rb'"(finish_reason|stop_reason|status|(?:prompt|input|completion|output)_tokens)": ?("[a-z_]{1,32}"|[0-9]{1,9}\b)'
)


_REASON = b'"finish_reason"'
"""Where it stands, the last one begins all that is looked for."""


class LastWords(NamedTuple):
    """What an answer says of itself.

    Args:
        reason: why it ended, in the engine's word, such as `stop`; empty if it does not say.
        tokens_in, tokens_out: of the prompt and of the answer; None where it does not say.
    """

    reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None


NOTHING_SAID = LastWords()


def last_words(tail: bytes | bytearray) -> LastWords:
    """Reads the end of an answer in one piece, or the last events of a stream."""
    said = dict(_WORDS.findall(tail, max(0, tail.rfind(_REASON))))
    return LastWords(
        _reason(said),
        _number(said, b"prompt_tokens", b"input_tokens"),
        _number(said, b"completion_tokens", b"output_tokens"),
    )


def _reason(said: Mapping[bytes, bytes]) -> str:
    """Beside a `finish_reason`, a `stop_reason` is the client's own stop string."""
    reason = said.get(b"finish_reason") or said.get(b"stop_reason") or b""
    if not reason and said.get(b"status") == b'"incomplete"':
        return "incomplete"
    return reason.strip(b'"').decode()


def _number(said: Mapping[bytes, bytes], name: bytes, older: bytes) -> int | None:
    digits = said.get(name) or said.get(older)
    return int(digits) if digits and digits.isdigit() else None
