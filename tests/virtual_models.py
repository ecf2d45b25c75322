"""Models of any size without a number in them: what stands in the headers of their files is all that vllmd reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""A KV cache of half a MiB for the longest sequence: beside the weights it does not count."""


def make(folder: Path, weights: int) -> Path:
    """A model directory whose weights take so many bytes on a GPU, and none of the disk.

    Args:
        folder: made where it is not there; it becomes the value of `model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"model.layers.0.mlp.up_proj.weight": ("BF16", [weights // 2], weights // 2 * 2)}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int], int]], cut: int = 0) -> None:
    """A file with a header and a hole in the place of the numbers.

    Args:
        tensors: type, shape and bytes of each.
        cut: bytes that are missing at its end.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape, size) in tensors.items():
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end - cut)
