"""Asks files and devices what a model needs and what there is. The sum itself is `fit`'s, and what follows from it is
decided by `residency`."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllmd.engine import checkpoint, gpu, memory
from vllmd.engine.checkpoint import Checkpoint, Weights
from vllmd.engine.fit import Question, Room, judge
from vllmd.engine.gpu import Card
from vllmd.engine.memory import Host
from vllmd.engine.plan import Plan
from vllmd.engine.shape import Shape, Unknown, read_shape
from vllmd.engine.wants import Wants, flag, read_wants
from vllmd.provisions import Fit

GPU, CPU = "GPU", "CPU"

_BUILT_FOR = {"cpu": CPU, "rocm": "", "tpu": "", "xpu": ""}
"""Words in the version of vLLM (platforms/__init__.py) → device; none of them: NVIDIA's GPUs."""


@dataclass(frozen=True)
class Devices:
    """The memory of devices at one moment, for as many models as want to know of it.

    Args:
        cards: all GPUs; none where they were not asked for, or nobody answers.
        host: main memory, likewise.
    """

    cards: tuple[Card, ...] = ()
    host: Host | None = None


async def fit_of(plan: Plan, root: Path | None, *, length: int = 0, is_alive: bool = False) -> Fit:
    """Whether a model fits, as everything is now.

    Args:
        root: the environment that will serve it; None where nobody has looked for it yet.
        length: another `max-model-len` than the configuration's; 0: that one.
        is_alive: it has an engine, whose memory another one would have: what is free now says nothing.
    """
    question = await question_of(plan, root, length=length)
    room = question.room
    if is_alive and isinstance(room, Room):
        room = replace(room, free=room.total)
    fit = judge(replace(question, room=room))
    return replace(fit, free_bytes=None) if is_alive else fit


async def question_of(plan: Plan, root: Path | None, *, length: int = 0) -> Question:
    """What has to be known to say whether a model fits. Arguments as above."""
    environ = plan.variables(0, root or Path())
    device = await asyncio.to_thread(device_of, plan, root)
    wants = read_wants(plan.model, environ, is_cpu=device == CPU)
    wants = replace(wants, length=length) if length else wants
    weights, shape = await asyncio.to_thread(_files, plan, environ)
    return Question(plan.name, weights, shape, room_of(plan, device, wants, await devices({device})), wants)


async def devices(kinds: Collection[str]) -> Devices:
    """The memory of all devices of these kinds, as it is now; takes as long as the slowest driver (`gpu.ANSWER_S`).

    Args:
        kinds: as of `device_of`; others are not asked for.
    """
    main_memory = await asyncio.to_thread(memory.host) if CPU in kinds else None
    return Devices(await gpu.cards() if GPU in kinds else (), main_memory)


def room_of(plan: Plan, device: str, wants: Wants, there: Devices) -> Room | Unknown:
    """The memory of the devices that an engine will have.

    Args:
        device: what its environment's vLLM was built for (`device_of`).
        there: all that there are of this kind.
    """
    if device == CPU:
        if there.host is None:
            return Unknown("the kernel does not say how much memory there is")
        return Room(CPU, there.host.total // wants.devices, there.host.free // wants.devices, (CPU,))
    if device == GPU:
        return room_on(there.cards, wants, plan.variables(0, Path()).get("CUDA_VISIBLE_DEVICES"))
    return Unknown("nobody knows what device this vLLM serves from")


host = memory.host


def device_of(plan: Plan, root: Path | None) -> str:
    """What the vLLM of an environment serves from: `GPU`, `CPU`, or an empty string where that cannot be told."""
    versions = sorted(each.name for each in root.glob("lib/python*/site-packages/vllm-*.dist-info")) if root else []
    name = versions[0] if versions else plan.environment.requirement if root is None else ""
    if not name:
        return ""
    return next((device for word, device in _BUILT_FOR.items() if word in name.lower()), GPU)


def _files(plan: Plan, environ: Mapping[str, str]) -> tuple[Weights | Unknown, Shape | Unknown]:
    model = plan.model
    directory = checkpoint.find(model.model, environ, flag(model, "revision"), flag(model, "download-dir"))
    found = directory if isinstance(directory, Unknown) else checkpoint.read(directory)
    if isinstance(found, Unknown):
        return found, found
    return _as_loaded(found, flag(model, "quantization")), read_shape(found.config)


def _as_loaded(found: Checkpoint, quantization: str | None) -> Weights | Unknown:
    """The weights, unless they are made smaller only as they are loaded: by a flag, or by what config.json says of
    weights that are plain numbers still."""
    is_wanted = quantization is not None or bool(found.config.get("quantization_config"))
    if is_wanted and isinstance(found.weights, Weights) and not found.weights.all.others:
        return Unknown("its weights are quantised as they are loaded")
    return found.weights


def room_on(cards: Sequence[Card], wants: Wants, visible: str | None) -> Room | Unknown:
    """The memory of each GPU of those that an engine will take.

    Args:
        cards: all GPUs.
        visible: CUDA_VISIBLE_DEVICES, where it is set.
    """
    if not cards:
        return Unknown("no driver of NVIDIA's says how much memory the GPUs have")
    seen = _seen(cards, visible)
    if isinstance(seen, Unknown) or len(seen) < wants.devices:
        return seen if isinstance(seen, Unknown) else Unknown(f"{wants.devices} GPUs are asked for, {len(seen)} seen")
    # CUDA puts unlike ones in an order of its own, the fastest first: then the largest are taken for those.
    alike = len({each.total for each in cards}) == 1
    taken = (seen if alike else sorted(seen, key=lambda each: each.total, reverse=True))[: wants.devices]
    # Stages of a pipeline are of different sizes, and nobody knows which one a GPU gets.
    least = max if wants.pipeline > 1 else min
    names = tuple(each.uuid for each in taken)
    return Room(GPU, least(each.total for each in taken), least(each.free for each in taken), names)


def _seen(cards: Sequence[Card], visible: str | None) -> list[Card] | Unknown:
    if visible is None:
        return list(cards)
    words = [word.strip() for word in visible.split(",") if word.strip()]
    if any(word.startswith("MIG") for word in words):
        return Unknown("parts of a GPU (MIG) cannot be judged")
    by_name = {**{str(number): each for number, each in enumerate(cards)}, **{each.uuid: each for each in cards}}
    found = [by_name[word] for word in words if word in by_name]
    return found if len(found) == len(words) else Unknown(f"CUDA_VISIBLE_DEVICES is not understood: {visible[:80]}")
