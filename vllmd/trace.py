"""Which trace a request is part of: W3C Trace Context, level 1 (a Recommendation since 2021), read strictly. Pure.

What breaks its rules is dropped, as it asks for: an engine is given a trace that is one, or none. Version 00 is all
that there is; a later one is dropped too, since nobody knows what it will mean.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex

PARENT, STATE = "traceparent", "tracestate"
"""The headers' names, as the engine gets them."""

STATE_CHARACTERS = 512
"""The standard asks for no more to be passed on."""

STATE_MEMBERS = 32

_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REST = "[a-z0-9_*/-]"
_KEY = rf"[a-z]{_REST}{{0,255}}|[a-z0-9]{_REST}{{0,240}}@[a-z]{_REST}{{0,13}}"
_MEMBER = re.compile(rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_SAMPLED = "01"


@dataclass(frozen=True)
class Trace:
    """A trace, and what of it is the sender's.

    Args:
        id: that of the whole trace, 32 hexadecimal digits.
        parent: the header `traceparent`.
        state: the header `tracestate`; empty for none.
    """

    id: str
    parent: str
    state: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """As they are passed on."""
        return {PARENT: self.parent, **({STATE: self.state} if self.state else {})}


def read(parents: Sequence[str], states: Sequence[str]) -> Trace | None:
    """The trace that a request's headers speak of; None if they speak of none, or of two.

    Args:
        parents, states: the values of all headers `traceparent` and `tracestate`.
    """
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    return Trace(match[1], parents[0], _state(states)) if match else None


def begin() -> Trace:
    """A trace of our own, which is to be recorded."""
    id = token_hex(16)
    return Trace(id, f"00-{id}-{token_hex(8)}-{_SAMPLED}")


def _state(values: Sequence[str]) -> str:
    """The members of all headers together; nothing if one of them is none, or if they are too many."""
    members = [member for value in values for each in value.split(",") if (member := each.strip(" \t"))]
    matches = [_MEMBER.fullmatch(each) for each in members]
    keys = {match[1] for match in matches if match}
    text = ",".join(members)
    is_sound = len(keys) == len(members) <= STATE_MEMBERS and len(text) <= STATE_CHARACTERS
    return text if is_sound else ""
