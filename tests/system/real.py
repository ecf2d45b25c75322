"""A vllmd on the real vLLM for CPU with the demo's model, or with one that is easily foretold, for tests."""

import asyncio
import json
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demo
import prepare
from daemons import UGLY, Daemon
from waiting import until

from vllmd.engine.environment import ensure

STARTS_WITHIN_S = 900.0

_WIDTH = 64
"""Of the parrot: enough that no two tokens' random signs are nearly alike."""

_ENGINE_S = re.compile("^ {4}| (tiny|parrot): ")


class RealDaemon(Daemon):
    """A daemon whose engine prints tracebacks of its own: set in, where they are not the first line of an entry."""

    @property
    def log(self) -> str:
        return "\n".join(
            line for line in super().log.splitlines() if not (UGLY.search(line) and _ENGINE_S.search(line))
        )


@contextmanager
def real_daemon(
    args: Mapping[str, Any] | None = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    ready: bool = True,
    **sections: Any,
) -> Iterator[Daemon]:
    """A running one.

    Args:
        args: flags of vLLM's beside the demo's.
        models: name → keys over those of the demo's table; else one model, `tiny`.
        ready: whether to wait for the default model; else for the doors.
        sections: other tables of the configuration.
    """
    model = asyncio.run(prepare.prepare(demo.STATE, print))
    environment = asyncio.run(ensure(prepare.ENGINE, demo.STATE / "environments", "", print))
    daemon = RealDaemon(
        models={name: {**_table(model, args or {}), **keys} for name, keys in (models or {"tiny": {}}).items()},
        environment={"path": str(environment.root)},
        paths={"cache": str(demo.STATE / "cache")},
        **sections,
    )
    try:
        daemon.launch()
        daemon.wait_for("ready" if ready else "", STARTS_WITHIN_S)
        yield daemon
    finally:
        daemon.see_to_its_end()


def _table(model: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's table."""
    return {
        "model": str(model),
        "args": {"dtype": "float32", "max-model-len": 2048, "enforce-eager": True, **args},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    }


def parrot(folder: Path) -> Path:
    """A model of 3 million parameters that says its last token again and again; it speaks the demo's tokens.

    Its one layer adds nothing, so that what comes out of it is the embedding of the last token, and nearest to that is
    the token itself.
    """
    demo_s = asyncio.run(prepare.prepare(demo.STATE, print))
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).symlink_to((demo_s / name).resolve())
    sizes = {"hidden_size": _WIDTH, "intermediate_size": _WIDTH, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": _WIDTH}
    config = json.loads((demo_s / "config.json").read_text()) | sizes | heads
    (folder / "config.json").write_text(json.dumps(config))
    _write_parrot(folder / "model.safetensors", config["vocab_size"])
    return folder


def _write_parrot(path: Path, tokens: int) -> None:
    """Random signs for the tokens, ones for the norms, and zeros for the rest, in 16 bits."""
    attention = [f"self_attn.{each}_proj.weight" for each in "qkvo"]
    zeros = [*attention, *(f"mlp.{each}_proj.weight" for each in ("gate", "up", "down"))]
    ones = ["model.norm.weight", *(f"model.layers.0.{each}_layernorm.weight" for each in ("input", "post_attention"))]
    signs = bytearray(b"\x80" * (2 * tokens * _WIDTH))
    signs[1::2] = random.Random(1).randbytes(tokens * _WIDTH).translate(bytes([0x3F, 0xBF] * 128))
    parts: dict[str, tuple[list[int], bytes]] = {"model.embed_tokens.weight": ([tokens, _WIDTH], bytes(signs))}
    parts |= {f"model.layers.0.{name}": ([_WIDTH, _WIDTH], bytes(2 * _WIDTH * _WIDTH)) for name in zeros}
    parts |= {name: ([_WIDTH], b"\x80\x3f" * _WIDTH) for name in ones}
    table: dict[str, Any] = {}
    end = 0
    for name, (shape, data) in parts.items():
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + len(data)]}
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(data for _, data in parts.values()))


async def engine_counts(daemon: Daemon, name: str = "num_requests_running") -> float:
    """A number of vLLM's own, read behind vllmd's back."""
    page = (await daemon.engine.ask("/metrics")).body.decode()
    return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", page, re.MULTILINE)))


async def until_engine_works_on(daemon: Daemon, count: int, deadline_s: float = 30.0) -> None:
    """Waits until vLLM says that it works on so many requests."""

    async def is_so() -> bool:
        return await engine_counts(daemon) == count

    await until(is_so, f"the engine to work on {count} requests", deadline_s)
