"""What became of a request for inference, in a word for people and metrics. Pure.

The words are few and stay the same: whoever writes an alert can count on them.
"""

import asyncio
from enum import StrEnum

from vllmd.errors import Cancelled, EngineError, Overloaded, RequestError, TooMany, Unavailable, VllmdError
from vllmd.errors import outcome_of as meaning_of

CLIENT_LEFT = 499
"""nginx's status for a client that did not wait for its answer; nobody is told of it."""


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    """The model ended its answer, or what was asked for is no answer of a model's and came whole."""
    LENGTH = "length"
    """The answer has as many tokens as it was to have at most."""
    LEFT = "left"
    """The client left before it had its answer, or took none of it for too long."""
    CANCELLED = "cancelled"
    """Somebody ended it by `DELETE /api/requests/{id}`."""
    CUT = "cut"
    """vllmd ended it because it stops, or because the model was unloaded or restarted."""
    REFUSED = "refused"
    """The request was at fault (4xx), in vllmd's eyes or the engine's."""
    OVERLOADED = "overloaded"
    """There was too much to do, of this client (429) or of all (503)."""
    UNAVAILABLE = "unavailable"
    """The model was not ready, and did not become so in time."""
    ENGINE_ERROR = "engine_error"
    """The engine died, hung or reported an error, and nothing could mend it."""
    INTERNAL_ERROR = "internal_error"
    """vllmd made a mistake."""


ANSWERED = frozenset({Outcome.FINISHED, Outcome.LENGTH})

_BY_ERROR: tuple[tuple[type[VllmdError], Outcome], ...] = (
    (RequestError, Outcome.REFUSED),
    (Overloaded, Outcome.OVERLOADED),
    (TooMany, Outcome.OVERLOADED),
    (Unavailable, Outcome.UNAVAILABLE),
    (Cancelled, Outcome.CANCELLED),
    (EngineError, Outcome.ENGINE_ERROR),
)

_LENGTHS = frozenset({"length", "max_tokens", "max_output_tokens", "incomplete"})
"""How vLLM's dialects say that an answer is as long as it may be."""


def of_reason(reason: str) -> Outcome:
    """What a whole answer is, by the engine's word for why it ended; empty where it said none."""
    return Outcome.LENGTH if reason in _LENGTHS else Outcome.FINISHED


def of_error(error: BaseException) -> Outcome:
    """What an error means that ended a call."""
    if isinstance(error, asyncio.CancelledError | ConnectionError | TimeoutError):
        return Outcome.LEFT
    return next((outcome for kind, outcome in _BY_ERROR if isinstance(error, kind)), Outcome.INTERNAL_ERROR)


def by_order(outcome: Outcome) -> Outcome:
    """What an outcome becomes where somebody has ended the engine, or the request itself, on purpose."""
    return Outcome.CUT if outcome in (Outcome.ENGINE_ERROR, Outcome.UNAVAILABLE) else outcome


def of_status(status: int) -> Outcome:
    """What an error of the engine's means that is passed on, by its HTTP status."""
    if status in (429, 503):
        return Outcome.OVERLOADED
    return Outcome.REFUSED if 400 <= status < 500 else Outcome.ENGINE_ERROR


def status_of(error: BaseException) -> int:
    """The HTTP status of an error that came before any answer."""
    if isinstance(error, VllmdError):
        return meaning_of(error).status
    return CLIENT_LEFT if of_error(error) is Outcome.LEFT else 500
