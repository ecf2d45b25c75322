"""What the flags and variables of a model say of the memory that its engine will ask for. Pure.

The rules are those of `vllm serve` 0.32 (`utils/argparse_utils.py`, `config/cache.py`, `platforms/cpu.py`). A flag that
moves weights or KV cache elsewhere, or changes what config.json says, makes the sum impossible: that is said.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllmd.sections import Model

SHARE = 0.92
"""vLLM's default of `gpu-memory-utilization` (config/cache.py); 128.6 of the H200's 139.8 GiB bear it out."""

SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""The size of the KV cache in main memory, in GiB."""

AUTO = -1
"""`max-model-len`: as long as there is memory for."""

OBSTACLES = (
    *("hf-overrides", "hf-config-path", "config-format", "nnodes", "node-rank", "attention-config"),
    *("decode-context-parallel-size", "prefill-context-parallel-size", "num-gpu-blocks-override"),
    *("runner", "convert", "task", "disable-sliding-window"),
)
"""Flags with which a sum from the files alone would be a guess."""

_HARMLESS = {
    "load-format": ("auto", "safetensors", "pt", "dummy", "fastsafetensors"),
    "distributed-executor-backend": ("mp", "uni"),
    "model-impl": ("auto", "vllm"),
    "data-parallel-size": ("1",),
}
"""Flags that are no obstacle with these values."""

_VALUE_BYTES = {"auto": 0.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "float32": 4.0, "float": 4.0}
_KV_VALUE_BYTES = {**_VALUE_BYTES, **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"), 1.0)}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Wants:
    """What an engine is told about memory.

    Args:
        length: `max-model-len`; `AUTO`, or None where it is left to config.json.
        value_bytes: of each weight that is a plain number.
        kv_value_bytes: of each number in the KV cache; 0: as the checkpoint wants it, else as the weights.
        tensor, pipeline: over how many GPUs layers, and the stack of them, are spread.
        share: of a device's memory that the engine may have.
        kv_bytes: the KV cache that is set aside on each device, whatever the share; None: what the share leaves.
        block: tokens in a block of the KV cache; None: the platform's default.
        batch: tokens that are computed at once; None: vLLM's default.
        obstacle: why no sum can be made; empty if one can.
    """

    length: int | None = None
    value_bytes: float = 2.0
    kv_value_bytes: float = 0.0
    tensor: int = 1
    pipeline: int = 1
    share: float = SHARE
    kv_bytes: int | None = None
    block: int | None = None
    batch: int | None = None
    obstacle: str = ""

    @property
    def devices(self) -> int:
        """How many GPUs, or ranks, share the model."""
        return self.tensor * self.pipeline


def flag(model: Model, name: str) -> str | None:
    """What `args` says of a flag, also where it is abbreviated as vLLM allows it; None if nothing."""
    for key, value in model.args.items():
        word, equals, behind = key.lstrip("-").replace("_", "-").partition("=")
        if word == name or (len(word) > 3 and name.startswith(word)):
            return behind if equals else str(value)
    return None


def read_wants(model: Model, environ: Mapping[str, str], *, is_cpu: bool) -> Wants:
    """What a model's engine is told.

    Args:
        environ: the engine's variables.
        is_cpu: whether it serves from main memory.
    """
    try:
        return _read(model, environ, is_cpu)
    except ValueError as error:
        return Wants(obstacle=str(error))


def _read(model: Model, environ: Mapping[str, str], is_cpu: bool) -> Wants:
    if obstacle := _obstacle(model):
        raise ValueError(f"with {obstacle} it cannot be judged")
    length, share = flag(model, "max-model-len"), flag(model, "gpu-memory-utilization")
    return Wants(
        length=AUTO if length in ("-1", "auto") else _whole(length, "max-model-len"),
        # `auto` takes 16 bits, also for a checkpoint of 32 (ModelConfig, _resolve_auto_dtype).
        value_bytes=_bytes(flag(model, "dtype"), _VALUE_BYTES, "dtype") or 2.0,
        kv_value_bytes=_bytes(flag(model, "kv-cache-dtype"), _KV_VALUE_BYTES, "kv-cache-dtype"),
        tensor=_whole(flag(model, "tensor-parallel-size"), "tensor-parallel-size") or 1,
        pipeline=_whole(flag(model, "pipeline-parallel-size"), "pipeline-parallel-size") or 1,
        share=SHARE if share is None else _share(share),
        kv_bytes=_kv_bytes(model, environ, is_cpu),
        block=_whole(flag(model, "block-size"), "block-size"),
        batch=_whole(flag(model, "max-num-batched-tokens"), "max-num-batched-tokens"),
    )


def _obstacle(model: Model) -> str:
    """The first flag that stands in the way; empty if none does."""
    for key in model.args:
        word = key.lstrip("-").replace("_", "-").partition("=")[0].partition(".")[0]
        if "offload" in word and not word.startswith("kv-offload"):
            return word
        if len(word) < 4 or (word.startswith("data-parallel-") and word != "data-parallel-size"):
            return word  # of the short ones, -tp, -q and others, vLLM knows which is meant
    for name in (*OBSTACLES, *_HARMLESS):
        if (value := flag(model, name)) is not None and value not in _HARMLESS.get(name, ()):
            return name
    return ""


def _kv_bytes(model: Model, environ: Mapping[str, str], is_cpu: bool) -> int | None:
    if is_cpu and (space := environ.get(SPACE, "")):  # which wins on a CPU (platforms/cpu.py)
        return (_whole(space, SPACE) or 0) << 30
    return _whole(flag(model, "kv-cache-memory-bytes"), "kv-cache-memory-bytes")


def _whole(text: str | None, name: str) -> int | None:
    """A number above zero, maybe `32k` (thousands) or `64M` (times 1024)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15})(\.\d{1,15})?([kmgtKMGT]?)", text.strip())
    if found is None or (found[2] and found[3] not in _DECIMAL):
        raise ValueError(f"{name} is no number: {text[:40]}")
    value = int(float(found[1] + (found[2] or "")) * _DECIMAL[found[3]]) if found[3] in _DECIMAL else int(found[1])
    value *= _BINARY.get(found[3], 1)
    if not value:
        raise ValueError(f"{name} is 0")
    return value


def _share(text: str) -> float:
    if not re.fullmatch(r"0?\.\d{1,15}|1(\.0*)?", text) or not float(text):
        raise ValueError(f"gpu-memory-utilization is no part of one: {text[:40]}")
    return float(text)


def _bytes(text: str | None, known: Mapping[str, float], name: str) -> float:
    if text is not None and text not in known:
        raise ValueError(f"with the {name} {text[:40]} it cannot be judged")
    return known[text or "auto"]
