"""A line in the log for each request for inference that has ended: who, what, how much, how fast, and how it ended.

Never a prompt or an answer, unless the configuration asks for prompts.
"""

import logging

from vllmd.about import about
from vllmd.server.calls import Call
from vllmd.server.ended import Ended
from vllmd.server.outcomes import ANSWERED

log = logging.getLogger(__name__)

PROMPT_BYTES = 4000
"""So much of a request is logged where prompts are."""


def log_request(record: Ended) -> None:
    """Logs the record of a request."""
    if log.isEnabledFor(logging.INFO):
        fields = about(model=record.model or None, who=record.who, outcome=record.outcome)
        log.info("request %s: %s", record.id, sentence(record), extra=fields)


def sentence(record: Ended) -> str:
    """A record in words: `chat/completions of key:laptop, tiny: 34 → 120 tokens in 2.10 s (…), stop`."""
    asked = f"{record.path.removeprefix('/v1/')} of {record.who}"
    if not record.model:
        return f"{asked}: {record.outcome}, {record.status}"
    tokens_in = "" if record.tokens_in is None else f"{record.tokens_in} → "
    took = f"{tokens_in}{record.tokens_out} tokens in {_seconds(record.duration_s)} ({_details(record)})"
    return f"{asked}, {record.model}: {took}, {_end(record)}"


def _details(record: Ended) -> str:
    details = [f"queue {_seconds(record.queue_s)}"]
    if record.first_token_s is not None:
        details.append(f"first token {_seconds(record.first_token_s)}")
    if record.tokens_per_s is not None:
        details.append(f"{record.tokens_per_s:.0f}/s")
    if record.replays:
        details.append(f"sent again {record.replays} ×")
    if record.continuations:
        details.append(f"continued {record.continuations} ×")
    return ", ".join(details)


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.2f} s" if duration_s < 10 else f"{duration_s:.0f} s"


def _end(record: Ended) -> str:
    if record.outcome in ANSWERED:
        return record.reason or str(record.outcome)
    return f"{record.outcome.replace('_', ' ')}, {record.status}"


def warn_of_prompts() -> None:
    """Says in the log what `log.prompts` means."""
    log.warning("log.prompts is on: whoever may read the log reads what people ask")


def log_prompt(call: Call) -> None:
    """Logs what is asked, cut to a bearable length."""
    asked = call.body[:PROMPT_BYTES].decode(errors="replace")
    log.info("request %s: asked: %s", call.id, asked, extra=about(model=call.model, who=call.who))
