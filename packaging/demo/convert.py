"""Make a directory that vLLM serves out of the GGUF of SmolLM2-135M-Instruct: `convert.py GGUF DIRECTORY`.

A GGUF is one file with everything: numbers (quantised), hyperparameters, vocabulary, chat template. vLLM on a CPU does
not serve it, so each part is written out in the form that Hugging Face gave it. Three things are easily got wrong:

* llama.cpp stores the rows of the query and key projections in another order, because it rotates neighbouring pairs
  where Hugging Face rotates halves;
* the tokenizer splits every digit off before the byte-level BPE;
* the output projection is the embedding, and is not stored again.

Runs in an engine's environment (numpy, safetensors, tokenizers) with the package `gguf` on PYTHONPATH.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# GGUF's name → Hugging Face's; between them stand "blk.N." and "model.layers.N.".
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # the token type of "<|im_start|>" and its like, llama.h LLAMA_TOKEN_TYPE_CONTROL

Metadata = Mapping[str, Any]


def tensor_name(name: str) -> str:
    """Hugging Face's name for a tensor that GGUF calls `name`. KeyError for one that SmolLM2 does not have."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("blk."):
        return f"{WHOLE[stem]}.weight"
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{OF_A_LAYER[part]}.weight"


def rotated_heads(name: str, metadata: Metadata) -> int:
    """How many heads the rows of this GGUF tensor are to be put in order for; 0 where the order is right."""
    part = name.rpartition("attn_")[2]
    option = {"q.weight": "head_count", "k.weight": "head_count_kv"}.get(part)
    return int(metadata[f"llama.attention.{option}"]) if option else 0


def config(metadata: Metadata) -> dict[str, Any]:
    """What goes into config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "vocab_size": metadata["llama.vocab_size"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **generation_config(metadata),
    }


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """What goes into generation_config.json: where a text begins and ends, and no taste in sampling."""
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """What goes into tokenizer_config.json, the chat template included."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
    }


def control_tokens(metadata: Metadata) -> list[str]:
    """The tokens that are read whole and never spelt out, in the order of their numbers."""
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    return [token for token, kind in pairs if kind == CONTROL]


def write_tokenizer(metadata: Metadata, path: Path) -> None:
    """Write tokenizer.json for the vocabulary that llama.cpp calls "smollm"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]

    if (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError("this converter knows only the tokenizer of SmolLM2")
    vocabulary = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control_tokens(metadata))
    tokenizer.save(str(path))


def write_weights(reader: Any, metadata: Metadata, path: Path) -> None:
    """Write model.safetensors: every tensor as float32, in the shape and order of Hugging Face."""
    import numpy  # type: ignore[import-not-found]
    from gguf.quants import dequantize  # type: ignore[import-not-found]
    from safetensors.numpy import save_file  # type: ignore[import-not-found]

    tensors = {}
    for tensor in reader.tensors:
        rows = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        heads = rotated_heads(tensor.name, metadata)
        if heads:
            rows = rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        tensors[tensor_name(tensor.name)] = numpy.ascontiguousarray(rows)
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves 0600, and the daemon runs as another user


def main(gguf_file: str, directory: str) -> None:
    """Write the five files. Raises for a GGUF of another architecture or tokenizer."""
    from gguf import GGUFReader  # type: ignore[import-not-found]

    reader = GGUFReader(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama":
        raise ValueError("this converter knows only the architecture of SmolLM2")
    target = Path(directory)
    target.mkdir(parents=True)
    write_weights(reader, metadata, target / "model.safetensors")
    write_tokenizer(metadata, target / "tokenizer.json")
    for name, content in {
        "config.json": config(metadata),
        "generation_config.json": generation_config(metadata),
        "tokenizer_config.json": tokenizer_config(metadata),
    }.items():
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
