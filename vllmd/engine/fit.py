"""Whether a model fits: weights, KV cache and the rest against the memory that is there. Pure.

Two sums are made. What is needed at the very least, without blocks, allowance and whatever may not be loaded: only if
even that is more than there is, the answer is no. And what a start will most likely take: if that is more, it is tight.
A wrong no would be an outage; a missing one costs the minute until vLLM says so itself.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from vllmd.engine.checkpoint import Part, Weights
from vllmd.engine.shape import Shape, Unknown
from vllmd.engine.wants import AUTO, Wants
from vllmd.provisions import Fit

GIB = 1 << 30

ALLOWANCE = {"GPU": int(1.4 * GIB), "CPU": 2 * GIB}
"""What an engine takes beside weights and KV cache. GPU: 1.36 GiB were neither in the recorded start on an H200
(tests/fixtures/startup/h200.log: 0.92 of 139.8 GiB, less 14.29 of weights and 112.98 of KV cache). CPU: the demo's
engine took 2.5 to 3.1 GB with weights of 0.5 GiB."""

BLOCK = {"GPU": 16, "CPU": 128}
"""Tokens in a block of the KV cache (v1/worker, platforms/cpu.py); one block is never given out."""

BATCH = 8192
"""Tokens computed at once, of which windowed layers keep more than their window; vLLM takes 2048 to 16384."""

_SMALLER = "serve a smaller or quantised model, or spread it with `tensor_parallel_size`"


class Answer(StrEnum):
    """Whether it fits. It goes over the wire."""

    YES = "yes"
    TIGHT = "tight"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Room:
    """The memory of each device that the engine will have.

    Args:
        device: `GPU` or `CPU`.
        total: bytes.
        free: bytes that nobody holds now.
        names: what tells the devices from others.
    """

    device: str
    total: int
    free: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """All that the answer rests on.

    Args:
        name: the model's.
        weights, shape, room: what files and devices say, as far as they do.
        wants: what the engine is told.
    """

    name: str
    weights: Weights | Unknown
    shape: Shape | Unknown
    room: Room | Unknown
    wants: Wants


@dataclass(frozen=True)
class Need:
    """The bytes of each device that an engine needs, and when; 0 where nobody knows.

    Args:
        claim: what it has taken when it is ready.
        entry: what has to be free when it starts, whatever it takes then: vLLM wants its whole share of a GPU
            (`request_memory` in v1/worker/utils.py).
        least: what it needs at the very least, to judge a start for which there is little.
    """

    claim: int = 0
    entry: int = 0
    least: int = 0


def need(question: Question) -> Need:
    """What an engine needs of what others may have."""
    room, wants = question.room, question.wants
    if wants.obstacle or isinstance(room, Unknown):
        return Need()
    fit, share = _sum(question), ceil(room.total * wants.share) if room.device == "GPU" else 0
    claim = share if share and wants.kv_bytes is None else fit.needed_bytes or 0
    return Need(claim, share, 0 if _unknown(question) else _least(question, fit))


def judge(question: Question) -> Fit:
    """The whole sum, and the answer."""
    fit, unknown = _sum(question), _unknown(question)
    if question.wants.obstacle or isinstance(question.room, Unknown):
        return replace(fit, reason=unknown)
    if not unknown:
        fit = replace(fit, longest=_longest(question, fit), share=_share(fit))
    if no := _impossible(question, fit):
        return _told(fit, Answer.NO, no, permanent=True)
    if no := _impossible_now(question, fit):
        return _told(fit, Answer.NO, no)
    if unknown:
        return replace(fit, reason=unknown)
    if tight := _tight(question, fit):
        return _told(fit, Answer.TIGHT, tight)
    return replace(fit, verdict=Answer.YES)


def _told(fit: Fit, answer: Answer, reason: str, permanent: bool = False) -> Fit:
    fit = replace(fit, verdict=answer, reason=reason, permanent=permanent)
    return replace(fit, hint=_hint(fit))


def _unknown(question: Question) -> str:
    reasons = (each.reason for each in (question.weights, question.shape, question.room) if isinstance(each, Unknown))
    return question.wants.obstacle or next(reasons, "")


# ── the sums ──


def _sum(question: Question) -> Fit:
    """What is known of it."""
    wants, shape, room = question.wants, question.shape, question.room
    fit = Fit(question.name, devices=wants.devices, kv_bytes=wants.kv_bytes)
    if isinstance(question.weights, Weights):
        fit = replace(fit, weights_bytes=_each(question.weights.all, wants))
    if isinstance(shape, Shape):
        token = -(-shape.token_bytes(wants.tensor, _kv_value_bytes(wants, shape)) // wants.pipeline)
        fit = replace(fit, kv_token_bytes=token, max_model_len=_length(question))
    if isinstance(room, Room):
        fit = _with_room(fit, wants, room)
        if isinstance(shape, Shape):
            fit = replace(fit, kv_sequence_bytes=_sequence(question, shape, room, _length(question)))
    parts = (fit.weights_bytes, fit.kv_bytes or fit.kv_sequence_bytes, fit.allowance_bytes)
    return replace(fit, needed_bytes=sum(each or 0 for each in parts)) if None not in parts else fit


def _with_room(fit: Fit, wants: Wants, room: Room) -> Fit:
    allowed = ceil(room.total * wants.share) if wants.kv_bytes is None else room.total
    return replace(
        fit,
        device=room.device,
        allowance_bytes=ALLOWANCE[room.device],
        total_bytes=room.total,
        allowed_bytes=allowed,
        free_bytes=room.free,
    )


def _length(question: Question) -> int:
    """Tokens of the longest sequence; of one that shall be as long as there is memory for, one."""
    assert isinstance(question.shape, Shape), "without it nobody asks"
    wanted = question.wants.length
    return question.shape.longest if wanted is None else 1 if wanted == AUTO else wanted


def _each(part: Part, wants: Wants) -> int:
    return ceil(part.bytes(wants.value_bytes) / wants.devices)


def _kv_value_bytes(wants: Wants, shape: Shape) -> float:
    return wants.kv_value_bytes or (1.0 if shape.is_narrow else wants.value_bytes)


def _sequence(question: Question, shape: Shape, room: Room, tokens: int) -> int:
    """The KV cache that vLLM will want for one sequence, on each device."""
    wants, block = question.wants, question.wants.block or BLOCK[room.device]
    size, ahead = _kv_value_bytes(wants, shape), wants.batch or BATCH
    whole = shape.sequence_bytes(tokens, wants.tensor, size, block=block, ahead=ahead)
    spare = shape.token_bytes(wants.tensor, size) * block
    return ceil((whole + spare) / wants.pipeline)


# ── no: what is needed at least is more than there is ──


def _impossible(question: Question, fit: Fit) -> str:
    """Why it cannot be, whoever else frees memory; empty if it may."""
    sequence = _least_sequence(question)
    if fit.kv_bytes is not None and sequence > fit.kv_bytes:
        return f"{_one_sequence(fit, sequence)}, and {gib(fit.kv_bytes)} are set aside for it"
    return _too_much(question, fit, fit.allowed_bytes, f"of {_device(fit)} the engine may have")


def _impossible_now(question: Question, fit: Fit) -> str:
    """Why it cannot be as long as others hold what they hold."""
    return _too_much(question, fit, fit.free_bytes, f"of {_device(fit)} are free now:")


def _too_much(question: Question, fit: Fit, there: int | None, what: str) -> str:
    assert there is not None, "asked only where there is room"
    if _least(question, fit) <= there:
        return ""
    weights, cache = _least_weights(question), _least_cache(question, fit)
    if weights > there:
        return f"the weights take {gib(weights)}; {what} {gib(there)} of {gib(fit.total_bytes)}"
    kept = f"a KV cache of {gib(cache)} is set aside" if fit.kv_bytes else _one_sequence(fit, cache)
    return f"the weights take {gib(weights)}, and {kept}; {what} {gib(there)} of {gib(fit.total_bytes)}"


def _least(question: Question, fit: Fit) -> int:
    return _least_weights(question) + _least_cache(question, fit)


def _least_weights(question: Question) -> int:
    return _each(question.weights.least, question.wants) if isinstance(question.weights, Weights) else 0


def _least_cache(question: Question, fit: Fit) -> int:
    return max(_least_sequence(question), fit.kv_bytes or 0)


def _least_sequence(question: Question) -> int:
    shape, wants = question.shape, question.wants
    if not isinstance(shape, Shape):
        return 0
    whole = shape.sequence_bytes(_length(question), wants.tensor, _kv_value_bytes(wants, shape))
    return whole // wants.pipeline


def _one_sequence(fit: Fit, needed: int) -> str:
    return f"one sequence of {fit.max_model_len} tokens needs a KV cache of {gib(needed)}"


def _device(fit: Fit) -> str:
    each = "each GPU" if fit.devices > 1 else "the GPU"
    return f"{each}'s memory" if fit.device == "GPU" else "main memory"


# ── tight: what a start will most likely take is more than there is ──


def _tight(question: Question, fit: Fit) -> str:
    """Why it may not fit; empty if it does."""
    allowed, free = fit.allowed_bytes or 0, fit.free_bytes or 0
    if not _fits(question, _length(question)):
        there = min(allowed, free)
        return f"{gib(fit.needed_bytes)} will be needed, and {gib(there)} of {_device(fit)} are there for it"
    if fit.kv_bytes is None and allowed > free:
        asked = f"the engine asks for {gib(allowed)} of {_device(fit)} ({question.wants.share:g} of it)"
        return f"{asked}, and {gib(free)} are free"
    return ""


def _fits(question: Question, tokens: int) -> bool:
    """Whether sequences of so many tokens fit, by all that is known of what a start takes."""
    fit, shape, room = _sum(question), question.shape, question.room
    assert isinstance(shape, Shape), "without it nobody asks"
    assert isinstance(room, Room), "nor without this"
    sequence = _sequence(question, shape, room, tokens)
    there = min(fit.allowed_bytes or 0, room.free)
    if fit.kv_bytes is not None and sequence > fit.kv_bytes:
        return False
    return (fit.weights_bytes or 0) + (fit.kv_bytes or sequence) + ALLOWANCE[room.device] <= there


# ── what would fit ──


def _hint(fit: Fit) -> str:
    """What to do, of all that would help."""
    ways = []
    if fit.longest and fit.longest < (fit.max_model_len or 0):
        ways.append(f"set `max_model_len` to {fit.longest} or less")
    if fit.share is not None:
        ways.append(f"set `gpu_memory_utilization` to {fit.share:g}")
    if fit.kv_bytes is not None:
        ways.append("set aside more or less for the KV cache (`kv_cache_memory_bytes`, VLLM_CPU_KVCACHE_SPACE)")
    if fit.verdict == Answer.NO and not fit.permanent:
        ways.append("free memory (`vllmctl unload` another model)")
    return ", or ".join(ways) or _SMALLER


def _longest(question: Question, fit: Fit) -> int | None:
    """The largest number of tokens that fits; none above the one asked for or the model's own is looked for."""
    assert isinstance(question.shape, Shape), "without it nobody asks"
    low, high = 0, max(question.shape.longest, fit.max_model_len or 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(question, middle) else (low, middle - 1)
    return low or None


def _share(fit: Fit) -> float | None:
    """The least share, in hundredths, that is enough and free; none where it is not the share that decides."""
    if fit.kv_bytes is not None or not fit.total_bytes or not fit.needed_bytes or fit.free_bytes is None:
        return None
    share = ceil(100 * fit.needed_bytes / fit.total_bytes) / 100
    return share if share * fit.total_bytes <= fit.free_bytes else None


def gib(size: int | None) -> str:
    """Bytes as people read them."""
    return f"{(size or 0) / GIB:.2f} GiB"
