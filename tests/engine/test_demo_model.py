"""The demo's converter, as far as it decides: names, numbers and texts, without the file that they come from."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "packaging/demo"

# As in the GGUF of SmolLM2-135M-Instruct, with a vocabulary cut short.
METADATA: dict[str, Any] = {
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 64,
    "llama.rope.freq_base": 100000.0,
    "llama.vocab_size": 49152,
    "tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "!", "Ġt"],
    "tokenizer.ggml.token_type": [3, 3, 3, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{% for message in messages %}…{% endfor %}",
}


def script(name: str) -> ModuleType:
    """A script of the demo as a module; its folder's name is that of an installed package."""
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


convert = script("convert")


@pytest.mark.parametrize(
    ("gguf", "hugging_face"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.29.ffn_norm.weight", "model.layers.29.post_attention_layernorm.weight"),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
    ],
)
def test_tensors_get_the_names_that_hugging_face_gave_them(gguf: str, hugging_face: str) -> None:
    assert convert.tensor_name(gguf) == hugging_face


def test_a_tensor_of_another_model_is_refused() -> None:
    with pytest.raises(KeyError):
        convert.tensor_name("output.weight")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("blk.0.attn_q.weight", 9),
        ("blk.0.attn_k.weight", 3),
        ("blk.0.attn_v.weight", 0),
        ("blk.0.attn_output.weight", 0),
        ("token_embd.weight", 0),
    ],
)
def test_only_queries_and_keys_are_put_in_order(name: str, heads: int) -> None:
    assert convert.rotated_heads(name, METADATA) == heads


def test_the_configuration_ties_the_embeddings_and_ends_at_im_end() -> None:
    config = convert.config(METADATA)
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == 2
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]
    assert config["rope_theta"] == 100000.0


def test_the_tokenizer_knows_its_control_tokens_and_the_chat_template() -> None:
    config = convert.tokenizer_config(METADATA)
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["chat_template"] == METADATA["tokenizer.chat_template"]
    assert convert.control_tokens(METADATA) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_another_converter_makes_another_model() -> None:
    prepare = script("prepare")
    first, second = (prepare.model_path(Path("/state"), source) for source in (b"one", b"two"))
    assert first != second
    assert first.parent == Path("/state/models")
    assert first.name.startswith("smollm2-135m-instruct-")


def test_the_link_always_points_at_the_newest_model(tmp_path: Path) -> None:
    prepare = script("prepare")
    for name in ("model-1", "model-2", "model-2"):
        (tmp_path / name).mkdir(exist_ok=True)
        link = prepare.stable_name(tmp_path / name)
        assert link.resolve() == tmp_path / name
