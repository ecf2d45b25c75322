"""What a chat completion of the engine's says, whole or in chunks. Pure; what is none is the engine's error."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllmd.errors import EngineError, StreamBroken

_NONSENSE = (ValueError, RecursionError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Piece:
    """A completion, or a chunk of one.

    Args:
        text: what was generated; often empty in a chunk.
        finish_reason: why it ended; None while it has not.
        usage: the counts of tokens, where they are told.
    """

    text: str
    finish_reason: str | None
    usage: Mapping[str, Any]


def read_chunk(data: str) -> Piece:
    """Reads the data of one event. Raises StreamBroken if it is no chunk of a chat completion."""
    try:
        table = json.loads(data)
        return _piece(table, table.get("choices") or (), "delta")
    except _NONSENSE:
        raise StreamBroken("the engine sent an event that is no chunk of a chat completion") from None


def unescape(text: bytes) -> str:
    """What stands between the quotes of a JSON string. Raises StreamBroken if that is no JSON."""
    try:
        return str(json.loads(b'"%b"' % text))
    except ValueError:
        raise StreamBroken("the engine sent a text that is no JSON string") from None


def read_whole(body: bytes) -> Piece:
    """Reads an answer in one piece. Raises EngineError if it is no chat completion."""
    try:
        table = json.loads(body)
        return _piece(table, [table["choices"][0]], "message")
    except _NONSENSE:
        raise EngineError("the engine answered something that is no chat completion") from None


def _piece(table: Mapping[str, Any], choices: Any, member: str) -> Piece:
    text, reason = "", None
    for choice in choices:
        text += (choice.get(member) or {}).get("content") or ""
        reason = choice.get("finish_reason") or reason
    return Piece(text, reason, dict(table.get("usage") or {}))


_TOKENS = (b'"completion_tokens":', b'"output_tokens":')
_NUMBER = re.compile(rb"\s*([0-9]{1,9})\b")


def generated_tokens(body: bytes) -> int:
    """How many tokens an answer in one piece says that it has; 0 if it does not. Text cannot fake it: JSON escapes its
    quotes."""
    for name in _TOKENS:
        at = body.rfind(name)
        if at >= 0 and (number := _NUMBER.match(body, at + len(name))):
            return int(number[1])
    return 0
