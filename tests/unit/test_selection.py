"""Which of a repository's files vLLM needs: the weights once, and nothing of other programs'."""

import pytest

from vllmd.engine.selection import chosen, has_weights

WORDS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.txt", "modeling_x.py"]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        # The usual one: safetensors, and the same in PyTorch's format.
        (["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"], ["model.safetensors"]),
        # In an old one there is nothing else.
        (
            ["a-1.bin", "a.bin.index.json"],
            ["a-1.bin", "a.bin.index.json"],
        ),
        # Llama's: the original beside.
        (["model-1.safetensors", "original/consolidated.00.pth", "original/params.json"], ["model-1.safetensors"]),
        # Mistral's: either both, or its own alone.
        (["consolidated.safetensors", "model-1.safetensors", "params.json"], ["model-1.safetensors", "params.json"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        # For other programs.
        (
            ["model.safetensors", "onnx/m.onnx", "tf_model.h5", "flax_model.msgpack", "m.gguf"],
            ["model.safetensors"],
        ),
        # What training left behind.
        (["model.safetensors", "training_args.bin", "optimizer.pt", "runs/a/events.out.1"], ["model.safetensors"]),
        # A layer of its own, in the format that it has.
        (["model.safetensors", "2_Dense/pytorch_model.bin"], ["model.safetensors", "2_Dense/pytorch_model.bin"]),
    ],
)
def test_what_is_needed(there: list[str], wanted: list[str]) -> None:
    assert chosen([*WORDS, *there, ".gitattributes", "figure.png"]) == [*WORDS, *wanted]


def test_who_knows_better_says_so() -> None:
    assert chosen(["a-q4.gguf", "a-q8.gguf", "config.json"], ["*q4.gguf", "*.json"]) == ["a-q4.gguf", "config.json"]


def test_whether_there_is_anything_to_load() -> None:
    assert has_weights(["config.json", "x/model.safetensors"])
    assert not has_weights(["config.json", "README.md"])
