"""A model's config.json → what its KV cache takes: pure, and silent about whatever it has not been taught.

How vLLM lays out the KV cache was read in vLLM 0.32 (`transformers_utils/model_arch_config_convertor.py`,
`v1/kv_cache_interface.py`). A model of another type, or with a key that changes the layout, is `Unknown`: a wrong sum
costs more than none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

DENSE = frozenset(
    {
        *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("gemma", "gemma2", "gemma3_text", "phi", "phi3", "starcoder2", "stablelm"),
        *("granite", "granitemoe", "olmo", "olmo2", "olmoe", "internlm2", "glm"),
        *("glm4", "glm4_moe", "cohere", "cohere2", "exaone4", "gpt_oss", "gpt_neox"),
        *("gpt2", "gptj", "opt", "smollm3", "seed_oss", "ernie4_5", "hunyuan_v1_dense"),
        "nemotron",
    }
)
"""Values of `model_type` whose layers all keep keys and values of every token, or of a sliding window."""

LATENT = frozenset({"deepseek_v2", "deepseek_v3", "kimi_k2"})
"""Those that keep one latent vector a token (MLA), where `kv_lora_rank` is given."""

GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

CHANGES_LAYOUT = (
    *("num_kv_shared_layers", "block_configs", "per_layer_config", "compress_ratios", "index_topk", "v_head_dim"),
    *(
        "attention_chunk_size",
        "layers_block_type",
        "hybrid_override_pattern",
        "attn_layer_period",
        "linear_attn_config",
    ),
    *("full_attention_interval", "global_head_dim", "num_global_key_value_heads", "rswa_window"),
)
"""Keys by which layers differ in ways that are not counted here."""

DEFAULT_LENGTH = 2048
"""vLLM's `max-model-len` for a config.json that names no length."""

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
_KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
_LAYERS, _HEADS, _HIDDEN = (
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("hidden_size", "n_embd"),
)


@dataclass(frozen=True)
class Unknown:
    """Something that cannot be told, and why."""

    reason: str


@dataclass(frozen=True)
class Shape:
    """What the KV cache of a model depends on.

    Args:
        full: layers that keep every token.
        windowed: layers that keep the last `window` tokens.
        heads: KV heads of a layer; 0 where it keeps a latent vector instead, which every GPU has whole.
        width: numbers that a layer keeps of a token, for each KV head.
        longest: the length in tokens that the model was made for.
        is_narrow: whether the checkpoint asks for a KV cache of 8 bits.
    """

    full: int
    width: int
    heads: int
    longest: int
    windowed: int = 0
    window: int = 0
    is_narrow: bool = False

    def token_bytes(self, parallel: int, value_bytes: float) -> int:
        """Bytes of the KV cache for one token in all layers, on each of `parallel` GPUs."""
        return ceil((self.full + self.windowed) * self._layer_bytes(parallel, value_bytes))

    def sequence_bytes(self, tokens: int, parallel: int, value_bytes: float, *, block: int = 1, ahead: int = 0) -> int:
        """Bytes of the KV cache for one sequence, on each of `parallel` GPUs.

        Args:
            tokens: its length.
            value_bytes: of each number.
            block: tokens in a block, of which only whole ones are given out.
            ahead: tokens that a windowed layer may hold beside its window, since they are computed at once.
        """
        whole = ceil(tokens / block) * block
        part = min(whole, ceil(min(tokens, self.window + ahead) / block) * block)
        return ceil((self.full * whole + self.windowed * part) * self._layer_bytes(parallel, value_bytes))

    def _layer_bytes(self, parallel: int, value_bytes: float) -> float:
        # As vLLM deals them out: whole heads, and at least one (ModelConfig.get_num_kv_heads).
        return self.width * value_bytes * (max(1, self.heads // parallel) if self.heads else 1)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, where a model has others beside it."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def read_shape(config: Mapping[str, Any]) -> Shape | Unknown:
    """What config.json says of the KV cache."""
    inner = text_config(config)
    if obstacle := _obstacle(config, inner):
        return Unknown(obstacle)
    layers, longest = _number(inner, _LAYERS), min(_numbers(inner, _LENGTHS), default=DEFAULT_LENGTH)
    width, heads = _width(inner)
    if not layers or not width:
        return Unknown("its config.json does not say how many layers and heads it has")
    windowed, window = _window(inner, layers)
    narrow = _keeps_narrow(config)
    return Shape(layers - windowed, width, heads, longest, windowed, window, narrow)


def _obstacle(config: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    kind, architectures = inner.get("model_type"), config.get("architectures")
    if kind not in DENSE | LATENT:
        return f"models of the type {str(kind)[:40]} cannot be judged"
    if not (isinstance(architectures, list) and architectures and str(architectures[0]).endswith(GENERATES)):
        return "it is not known to generate text"
    if config.get("is_encoder_decoder"):
        return "models with an encoder cannot be judged"
    if kind in LATENT and not _number(inner, ("kv_lora_rank",)):
        return "its config.json has no kv_lora_rank"
    odd = [key for key in CHANGES_LAYOUT if inner.get(key) is not None and not (kind in LATENT and key == "v_head_dim")]
    odd += [key for key in inner if key.startswith(("mamba_", "ssm_", "linear_"))]
    types = inner.get("layer_types")
    if odd or not (types is None or (isinstance(types, list) and set(map(str, types)) <= _LAYER_TYPES)):
        return f"layers of different kinds cannot be judged ({odd[0] if odd else 'layer_types'})"
    return ""


_LAYER_TYPES = {"full_attention", "attention", "sliding_attention"}


def _width(inner: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers that a layer keeps of a token for each KV head, and how many of those it has."""
    if inner.get("model_type") in LATENT:
        return _number(inner, ("kv_lora_rank",)) + _number(inner, ("qk_rope_head_dim",)), 0
    heads = _number(inner, _HEADS)
    size = _number(inner, ("head_dim",)) or (_number(inner, _HIDDEN) // heads if heads else 0)
    return 2 * size, _number(inner, _KV_HEADS) or heads


def _window(inner: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """How many layers have a sliding window, and its tokens. Where it is not said which, all of them: that is less."""
    window, types = _number(inner, ("sliding_window",)), inner.get("layer_types")
    if not window or inner.get("use_sliding_window") is False:
        return 0, 0
    if isinstance(types, list) and len(types) >= layers:
        return types[:layers].count("sliding_attention"), window
    return layers, window


def _keeps_narrow(config: Mapping[str, Any]) -> bool:
    for key in ("quantization_config", "compression_config"):
        if isinstance(found := config.get(key), Mapping):
            return bool(found.get("kv_cache_scheme") or found.get("kv_cache_quant_algo"))
    return False


def _number(table: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next(iter(_numbers(table, keys)), 0)


def _numbers(table: Mapping[str, Any], keys: tuple[str, ...]) -> list[int]:
    values = (table.get(key) for key in keys)
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each > 0]
