"""How much one request for inference asks for, and the little that vllmd adds to it where the configuration says so."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from vllmd import routes
from vllmd.errors import RequestError
from vllmd.limits import Limits

LONGEST = {
    routes.CHAT_COMPLETIONS: "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
"""Of each route that generates, the field that says how long an answer may be."""

OLDER = "max_tokens"
"""How chats say it too."""

SHORT = {"/v1/completions": 16}
"""Where the engine itself cuts the answer of whoever says nothing: after so many tokens."""

COUNTS = ("n", "best_of")
"""The fields that say how many answers are wanted."""

PRIORITISED = frozenset({routes.CHAT_COMPLETIONS, "/v1/completions", "/v1/responses", "/v1/embeddings"})
"""The routes that know a priority."""


def check(table: Mapping[str, Any], path: str, limits: Limits) -> None:
    """Raises RequestError if a request asks for more than it may. What is no number is the engine's to judge; what it
    takes for one, is one: vLLM reads `"9"` and `9.0` as 9."""
    answers = max([_number(table[field]) for field in COUNTS if field in table], default=1) or 1
    answers *= _prompts(table.get("prompt")) if path == "/v1/completions" else 1
    if answers > limits.answers:
        field = next((each for each in COUNTS if _number(table.get(each)) > 1), "prompt")
        hint = "ask for fewer at once; limits.answers is the administrator's"
        said = f"{field}: {_shown(answers)} answers are too many, the most is {limits.answers}"
        raise RequestError(said, hint, field)
    if limits.max_tokens:
        _check_length(table, path, limits.max_tokens)


def _check_length(table: Mapping[str, Any], path: str, most: int) -> None:
    for field in {LONGEST.get(path, OLDER), OLDER}:
        if (wanted := _number(table.get(field))) > most:
            said = f"{field}: {_shown(wanted)} is too large, the most is {most}"
            raise RequestError(said, "limits.max_tokens is the administrator's", field)


def additions(table: Mapping[str, Any], path: str, limits: Limits, priority: int | None) -> dict[str, int]:
    """What the engine is told beside what the client has said.

    Args:
        priority: of the identity; a client may ask for a lesser one, which is a higher number. None where the engine's
            scheduler minds no priorities: it refuses requests that have one.
    """
    added: dict[str, int] = {}
    longest = LONGEST.get(path)
    if limits.max_tokens and longest and table.get(longest) is None and table.get(OLDER) is None:
        own = SHORT.get(path, math.inf) if longest not in table else math.inf
        if own > limits.max_tokens:
            added[longest] = limits.max_tokens
    if priority is not None and path in PRIORITISED:
        asked = table.get("priority")
        lesser = isinstance(asked, int) and not isinstance(asked, bool) and asked > priority
        if not lesser and asked != priority:
            added["priority"] = priority
    return added


def with_additions(body: bytes, added: Mapping[str, int]) -> bytes:
    """A JSON object with more fields, the rest of it byte for byte as it was. Of two fields of one name the last holds.

    Args:
        body: an object that was read without an error.
    """
    if not added:
        return body
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    before = body.rstrip(b" \t\n\r").removesuffix(b"}")
    comma = b"" if before.rstrip(b" \t\n\r").endswith(b"{") else b","
    return before + comma + json.dumps(dict(added)).encode()[1:]


def _prompts(prompt: object) -> int:
    """How many prompts there are: a list of numbers is one, as tokens."""
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return 1
    return len(prompt)


def _number(value: object) -> int:
    """The whole number that the engine reads there (pydantic's lax mode); 0 if it is none."""
    if isinstance(value, str):
        value = _float(value)
    if isinstance(value, float):
        return int(min(value, sys.float_info.max)) if value > 0 else 0  # neither NaN nor what is less than nothing
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**12 else "so many"
