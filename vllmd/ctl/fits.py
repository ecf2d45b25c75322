"""Whether a model fits, as lines for eyes: what is needed, what is there, and what would fit."""

from collections.abc import Iterator

from vllmd.ctl.table import table
from vllmd.provisions import Fit

ANSWERS = {"yes": "it fits", "tight": "it may not fit", "no": "it does not fit", "unknown": "it cannot be judged"}
"""The verdicts in words."""

GIB = 1 << 30


def render(fit: Fit) -> Iterator[str]:
    """The sum. What is not known is left out."""
    yield f"{fit.model}: {ANSWERS.get(fit.verdict, fit.verdict)}"
    each = f"each of {fit.devices} {fit.device}s" if fit.devices > 1 else fit.device or "each device"
    rows = [*_needed(fit), *_there(fit)]
    if rows:
        yield from (f"  {line}" for line in table(("", each.upper(), ""), rows, right=(each.upper(),)))
    yield from (f"  {line}" for line in _would(fit))
    if fit.reason:
        yield f"  {fit.reason}"
    if fit.hint:
        yield f"  try: {fit.hint}"


def _needed(fit: Fit) -> Iterator[tuple[str, str, str]]:
    if fit.weights_bytes is not None:
        yield "weights", gib(fit.weights_bytes), ""
    if fit.kv_sequence_bytes is not None:
        of_one = f"{(fit.kv_token_bytes or 0) / 1024:.1f} KiB a token"
        yield f"KV cache for {fit.max_model_len} tokens", gib(fit.kv_sequence_bytes), of_one
    if fit.kv_bytes is not None:
        yield "KV cache set aside", gib(fit.kv_bytes), "in place of that"
    if fit.allowance_bytes is not None:
        yield "all else, about", gib(fit.allowance_bytes), ""
    if fit.needed_bytes is not None:
        yield "needed", gib(fit.needed_bytes), ""


def _there(fit: Fit) -> Iterator[tuple[str, str, str]]:
    if fit.allowed_bytes is not None:
        yield "the engine may have", gib(fit.allowed_bytes), f"of {gib(fit.total_bytes)}"
    if fit.free_bytes is not None:
        yield "free now", gib(fit.free_bytes), ""
    elif fit.total_bytes is not None:
        yield "free now", "-", "its own engine holds memory"


def _would(fit: Fit) -> Iterator[str]:
    if fit.longest is not None:
        yield f"largest max-model-len that fits: {fit.longest}"
    if fit.share is not None:
        yield f"least gpu-memory-utilization that fits: {fit.share:g}"


def gib(size: int | None) -> str:
    """Bytes as people read them."""
    return f"{(size or 0) / GIB:.2f} GiB"
