"""What the end of an answer says of it: why it ended, and how many tokens it took. Pure.

It is looked up in the last bytes alone, once for each answer and without parsing it: in all of vLLM's dialects it
stands there. The text of an answer cannot fake it, since JSON escapes its quotes.
"""

import re
from typing import NamedTuple

TAIL_BYTES = 4096
"""So much of an answer is looked at."""

_REASONS = (b'"finish_reason":', b'"stop_reason":')
"""In this order: beside a `finish_reason` a `stop_reason` is the client's own stop string."""
_INCOMPLETE = (b'"status":"incomplete"', b'"status": "incomplete"')
_IN = (b'"prompt_tokens":', b'"input_tokens":')
_OUT = (b'"completion_tokens":', b'"output_tokens":')

_WORD = re.compile(rb'\s*"([a-z_]{1,32})"')
_NUMBER = re.compile(rb"\s*([0-9]{1,9})\b")


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
    """Reads an answer in one piece, or the last events of a stream."""
    return LastWords(_reason(tail), _number(tail, _IN), _number(tail, _OUT))


def _reason(tail: bytes | bytearray) -> str:
    if word := _last(tail, _REASONS, _WORD):
        return word.decode()
    return "incomplete" if any(each in tail[-TAIL_BYTES:] for each in _INCOMPLETE) else ""


def _number(tail: bytes | bytearray, names: tuple[bytes, ...]) -> int | None:
    digits = _last(tail, names, _NUMBER)
    return None if digits is None else int(digits)


def _last(tail: bytes | bytearray, names: tuple[bytes, ...], pattern: "re.Pattern[bytes]") -> bytes | None:
    """What stands behind the last of the first of these names that is there."""
    for name in names:
        at = tail.rfind(name, max(0, len(tail) - TAIL_BYTES))
        if at >= 0 and (match := pattern.match(tail, at + len(name))):
            return match[1]
    return None
