"""The record of a request for inference that has ended, made once, for the log and the metrics."""

import time
from typing import NamedTuple

from vllmd.server.calls import Call
from vllmd.server.doors import Door
from vllmd.server.outcomes import ANSWERED, Outcome, of_reason, of_status
from vllmd.server.stream import Stream


class Ended(NamedTuple):
    """One request.

    Args:
        id: as in its answer's `X-Request-Id`.
        who: who asked.
        model: the model's name; empty where the request was refused before that was known.
        path: the engine's route.
        outcome: what became of it.
        status: of HTTP, as it was or would have been told; 200 for a stream that broke off later.
        reason: why the answer ended, in the engine's word; empty if it did not say.
        tokens_in: of the prompt; None where the engine did not tell (a stream has to ask for its usage).
        tokens_out: of the answer; counted by its events where the engine did not tell.
        queue_s: seconds that it waited for the engine or for a place in it, over all its waits.
        first_token_s: from its arrival to the first token; None where there was none, or the answer came in one piece.
        duration_s: from its arrival to the end.
        tokens_per_s: of the answer once it had begun; None where nothing came.
        replays: how often it was sent again because its engine died.
        continuations: how often another engine went on with the answer.
        size_bytes: about how much of an answer came from engines.
        was_let_in: whether it got to an engine or waited for one, and was not refused at once.
    """

    id: str
    who: str
    model: str
    path: str
    outcome: Outcome
    status: int
    reason: str = ""
    tokens_in: int | None = None
    tokens_out: int = 0
    queue_s: float = 0.0
    first_token_s: float | None = None
    duration_s: float = 0.0
    tokens_per_s: float | None = None
    replays: int = 0
    continuations: int = 0
    size_bytes: int = 0
    was_let_in: bool = True


class Times(NamedTuple):
    """How long a call took, in seconds, and how fast the engine was, in tokens a second."""

    queue_s: float
    first_token_s: float | None
    duration_s: float
    tokens_per_s: float | None


def times(call: Call, first_at: float | None, tokens: int | None) -> Times:
    """The times of a call that ends now.

    Args:
        first_at: when the first token went out, in `time.monotonic`'s seconds.
        tokens: how many came.
    """
    now = time.monotonic()
    took_s = now - (first_at or call.sent_at or now)
    return Times(
        call.held_s,
        first_at - call.began_at if first_at else None,
        now - call.began_at,
        tokens / took_s if tokens and took_s > 0 else None,
    )


def ended(call: Call, door: Door, stream: Stream) -> Ended:
    """The record of a call that is over, whose outcome is known if it is a failure."""
    said = stream.last_words
    tokens_out = stream.tokens if said.tokens_out is None else said.tokens_out
    took, outcome = times(call, stream.first_at, tokens_out), call.outcome or of_reason(said.reason)
    status = call.status if door.response is None else door.response.status
    return Ended(
        call.id,
        call.who,
        call.model,
        call.path,
        outcome,
        status,
        said.reason if outcome in ANSWERED else "",
        said.tokens_in,
        tokens_out,
        *took,
        door.replays,
        door.continuations,
        stream.size_bytes,
        call.sent_at is not None or call.held_s > 0,
    )


def refused(request_id: str, who: str, path: str, status: int) -> Ended:
    """The record of a request that was refused with this HTTP status before it was understood."""
    return Ended(request_id, who, "", path, of_status(status), status, was_let_in=False)
