"""What is said about an answer: one line of figures, or all of it as JSON."""

import json
from typing import Any

from vllmd.ctl.answer import Answer


def timings(answer: Answer) -> dict[str, float | None]:
    """Seconds to the first token and to the end, and the tokens per second between them, where they can be told."""
    flowing_s = answer.last_at - (answer.first_at or answer.last_at)
    after_first = (_count(answer, "completion_tokens") or 0) - 1
    return {
        "first_token_s": None if answer.first_at is None else round(answer.first_at - answer.sent_at, 3),
        "total_s": round(answer.last_at - answer.sent_at, 3),
        "tokens_per_s": round(after_first / flowing_s, 1) if flowing_s > 0 and after_first > 0 else None,
    }


def stats_line(answer: Answer) -> str:
    """The figures in a line: `128 in, 412 out, 0.31 s to first token, 87.2 tok/s, stop`."""
    times = timings(answer)
    first_s, rate = times["first_token_s"], times["tokens_per_s"]
    counts = (("in", _count(answer, "prompt_tokens")), ("out", _count(answer, "completion_tokens")))
    parts = [f"{'?' if count is None else count} {name}" for name, count in counts]
    parts += [] if first_s is None else [f"{first_s:.2f} s to first token"]
    parts += [] if rate is None else [f"{rate:.1f} tok/s"]
    return ", ".join([*parts, answer.finish])


def as_json(answer: Answer) -> str:
    """The whole answer as one JSON object on one line."""
    found: dict[str, Any] = {
        "id": answer.id,
        "model": answer.model,
        "content": answer.text,
        "reasoning": answer.reasoning or None,
        "finish_reason": answer.finish,
        "usage": answer.usage,
        "timings": timings(answer),
    }
    return json.dumps(found, ensure_ascii=False)


def _count(answer: Answer, name: str) -> int | None:
    found = (answer.usage or {}).get(name)
    return found if isinstance(found, int) else None
