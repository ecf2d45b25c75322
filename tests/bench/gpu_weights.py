"""Weights for the shape that a Qwen2 model's config.json tells of: noise, and the same each time.

    python tests/bench/gpu_weights.py /opt/qwen2-7b /opt/qwen2-7b-made        (torch and safetensors; 10 s for 15 GB)

vLLM's own dummy weights lie nowhere on the disk, so that an engine could not read them again after sleep at level 2.
Each matrix is a part of one block of normal noise: making it costs no more than copying.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS_A_FILE = 4
SPREAD = 0.02
STEP = 4099
"""How far apart in the noise two matrices begin; a prime, so that none of their rows are alike."""


class Noise:
    """Tensors of noise, each another part of it."""

    def __init__(self, torch: Any, size: int) -> None:
        torch.manual_seed(1)
        self._torch, self._block = torch, (torch.randn(size + STEP * 64) * SPREAD).to(torch.bfloat16)
        self._count = 0

    def part(self, *shape: int) -> Any:
        size, self._count = self._torch.Size(shape).numel(), self._count + 1
        start = self._count * STEP % (self._block.numel() - size)
        return self._block[start : start + size].view(shape).clone()

    def ones(self, size: int) -> Any:
        return self._torch.ones(size, dtype=self._torch.bfloat16)


def files(config: dict[str, Any], noise: Noise) -> Iterator[dict[str, Any]]:
    """The tensors of each file."""
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield {"model.embed_tokens.weight": noise.part(vocabulary, hidden)}
    for first in range(0, layers, LAYERS_A_FILE):
        several = (layer(config, noise, number) for number in range(first, min(first + LAYERS_A_FILE, layers)))
        yield {name: tensor for each in several for name, tensor in each.items()}
    yield {"lm_head.weight": noise.part(vocabulary, hidden), "model.norm.weight": noise.ones(hidden)}


def layer(config: dict[str, Any], noise: Noise, number: int) -> dict[str, Any]:
    """One layer's tensors."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    found = {
        "input_layernorm.weight": noise.ones(hidden),
        "post_attention_layernorm.weight": noise.ones(hidden),
        "self_attn.o_proj.weight": noise.part(hidden, hidden),
        "mlp.gate_proj.weight": noise.part(inner, hidden),
        "mlp.up_proj.weight": noise.part(inner, hidden),
        "mlp.down_proj.weight": noise.part(hidden, inner),
    }
    for name, size in {"q": hidden, "k": narrow, "v": narrow}.items():
        found[f"self_attn.{name}_proj.weight"] = noise.part(size, hidden)
        found[f"self_attn.{name}_proj.bias"] = noise.part(size)
    return {f"model.layers.{number}.{name}": tensor for name, tensor in found.items()}


def main() -> None:
    """Copies what lies beside the weights, and makes them."""
    import torch  # type: ignore[import-not-found] # where vLLM is
    from safetensors.torch import save_file  # type: ignore[import-not-found]

    source, made = map(Path, sys.argv[1:])
    shutil.copytree(source, made, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    places: dict[str, str] = {}
    noise = Noise(torch, config["vocab_size"] * config["hidden_size"])
    for number, tensors in enumerate(files(config, noise)):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, str(made / name), metadata={"format": "pt"})
        (made / name).chmod(0o644)
        places |= dict.fromkeys(tensors, name)
    size = sum((made / name).stat().st_size for name in set(places.values()))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
