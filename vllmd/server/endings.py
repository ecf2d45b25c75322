"""How streams end, in each dialect that vLLM speaks, and how they ought to.

vLLM reports the death of its engine core as an `error` event followed by `[DONE]`, and a shutdown as
`finish_reason: "abort"` followed by `[DONE]`: to a client both look like success. On `/v1/messages` an aborted answer
is one without a `stop_reason` (vllm/entrypoints/anthropic/serving.py), on `/v1/responses` one with the status
`cancelled`, or even `completed`, so that only whoever stops the engine knows. `read` finds such endings in the bytes
that pass, so that the relay can end the stream with an error instead. It is pure, and nearly free for ordinary events:
one search for a few words; only an event that contains one of them is parsed.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllmd import sse
from vllmd.errors import StreamBroken, VllmdError
from vllmd.wire import dumps, error_body

_SUSPICIOUS = re.compile(rb'"error"|"abort"|\[DONE\]|message_(?:delta|stop)|response\.(?:completed|incomplete|failed)')
_PERHAPS_ABORTED = re.compile(rb'"abort"|"cancelled"|"type": ?"message"')
"""In a whole answer. That of `/v1/messages` is always parsed: a `stop_reason` of null stands in every chat's, too."""
_LAST_EVENTS = ("message_stop", "response.completed", "response.incomplete", "response.failed")
_HTTP_ERROR = re.compile("[45][0-9][0-9]")
_ABORTED = "the engine was stopped before the answer was complete"


@dataclass(frozen=True)
class Fault:
    """An error that the engine reported inside its stream.

    Args:
        status: the HTTP status it would have had before the stream.
        message: in the engine's words.
        body: the error as a JSON body, the engine's own where it gave one.
    """

    status: int
    message: str
    body: bytes

    @property
    def table(self) -> dict[str, Any]:
        """The body as an object; the message in our shape if it is none."""
        return _object(self.body.decode(errors="replace")) or error_body(StreamBroken(self.message))


@dataclass(frozen=True)
class Reading:
    """What a block of whole events amounts to.

    Args:
        kept: the part that may be passed on.
        done: the stream has come to its normal end.
        fault: the stream has failed; what follows `kept` must not be passed on.
    """

    kept: bytes
    done: bool = False
    fault: Fault | None = None


def read(block: bytes, is_stopping: bool = False) -> Reading:
    """Looks for an ending in a block of whole events.

    Args:
        block: them.
        is_stopping: whether the engine is being stopped: then `/v1/responses` calls what it aborts "completed".
    """
    if not _SUSPICIOUS.search(block):
        return Reading(block)
    kept = b""
    for event in sse.events_in(block):
        decoded = sse.decode(event) if _SUSPICIOUS.search(event) else []
        for each in decoded:
            if fault := _fault(_object(each.data), is_stopping):
                return Reading(kept, fault=fault)
        kept += event
        if any(each.data == "[DONE]" or each.event in _LAST_EVENTS for each in decoded):
            return Reading(kept, done=True)
    return Reading(kept)


def _fault(table: dict[str, Any], is_stopping: bool) -> Fault | None:
    if isinstance(table.get("error"), dict):
        return _reported(table["error"])
    if table.get("type") == "error":
        return _reported(table)
    if _was_aborted(table) or (is_stopping and table.get("type") == "response.completed"):
        return _cut_short()
    return None


def _object(data: str) -> dict[str, Any]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _reported(error: dict[str, Any]) -> Fault:
    code = str(error.get("code"))  # on /v1/responses vLLM writes it as a string
    status = int(code) if _HTTP_ERROR.fullmatch(code) else 500
    return Fault(status, str(error.get("message") or "the engine reported an error"), dumps({"error": error}).encode())


def _was_aborted(table: dict[str, Any]) -> bool:
    delta, response, choices = table.get("delta"), table.get("response"), table.get("choices")
    if table.get("type") == "message_delta":
        return isinstance(delta, dict) and delta.get("stop_reason") is None
    if isinstance(response, dict):
        return response.get("status") == "cancelled"
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
    )


def aborted(body: bytes, is_stopping: bool = False) -> Fault | None:
    """The fault that a whole answer is if the engine was stopped before it was complete, in any dialect."""
    if not is_stopping and not _PERHAPS_ABORTED.search(body):
        return None
    table = _object(body.decode(errors="replace"))
    unfinished = table.get("type") == "message" and table.get("stop_reason") is None
    doubtful = is_stopping and table.get("object") == "response"
    return _cut_short() if unfinished or doubtful or table.get("status") == "cancelled" or _was_aborted(table) else None


def _cut_short() -> Fault:
    return Fault(502, _ABORTED, dumps(error_body(StreamBroken(_ABORTED, "ask again"))).encode())


def refusal(status: int, body: bytes) -> Fault:
    """An error that the engine answered before any stream, its body unchanged."""
    error = _object(body.decode(errors="replace")).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return Fault(status, str(message or f"the engine answered {status}"), body)


# ── the error event, in each dialect ──


def _openai(error: VllmdError) -> bytes:
    return sse.encode(dumps(error_body(error)))


def _messages(error: VllmdError) -> bytes:
    return sse.encode(dumps({"type": "error", **error_body(error)}), event="error")


def _responses(error: VllmdError) -> bytes:
    body = error_body(error)["error"]
    return sse.encode(dumps({**body, "type": "error", "sequence_number": 0}), event="error")


_DIALECTS: dict[str, Callable[[VllmdError], bytes]] = {"/v1/messages": _messages, "/v1/responses": _responses}


def error_event(path: str, error: VllmdError) -> bytes:
    """The event that ends a stream of the route `path` with an error."""
    return _DIALECTS.get(path, _openai)(error)
