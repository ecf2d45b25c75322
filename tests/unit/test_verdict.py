"""Why an engine ended, told from its last lines: recorded ones, and those that vLLM's sources can print."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.causes import SIGNS, Cause
from vllmd.engine.verdict import Exit, explain
from vllmd.lifecycle import Verdict

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "faults"
ENGINE_CORE = "(EngineCore pid=757) ERROR 11-22 06:43:19 [core.py:1108] "


def log_of(recording: str) -> list[str]:
    """The engine's lines in a recording."""
    return re.findall(r"^\[ *[\d.]+\] LOG\| (.*)$", (RECORDINGS / recording).read_text(), re.MULTILINE)


def of_recording(recording: str) -> Verdict:
    """The verdict on an engine of which the recording says how it ended, and whether it had served."""
    text = (RECORDINGS / recording).read_text()
    (end,) = re.findall(r"^\[ *[\d.]+\] EXIT status=(\w+) signal=(\w+)$", text, re.MULTILINE)
    status, number = (None if word == "None" else int(word) for word in end)
    ready = re.search(r"^\[ *[\d.]+\] READY$", text, re.MULTILINE)
    return explain(Exit(status, number), log_of(recording), was_ready=bool(ready), asked=False)


def at_start(*lines: str, status: int = 1) -> Verdict:
    """The verdict on an engine that never became ready."""
    return explain(Exit(status, None), lines, was_ready=False, asked=False)


@pytest.mark.parametrize(
    ("recording", "status", "cause", "named", "permanent"),
    [
        ("start-badarch.txt", 1, Cause.UNSUPPORTED, "foobar", True),
        ("start-badflag.txt", 2, Cause.BAD_ARGUMENT, "--no-such-flag", True),
        ("start-badhub.txt", 1, Cause.HUB_UNREACHABLE, "not in the local cache", True),
        ("start-badpath.txt", 1, Cause.MODEL_NOT_FOUND, "/srv/vllm/models/none", True),
        ("start-gguf.txt", 1, Cause.MODEL_NOT_FOUND, "/srv/vllm/gguf/SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("start-maxlen.txt", 1, Cause.MAX_MODEL_LEN, "goes no further than 4096", True),
        ("start-sleepmode.txt", 1, Cause.BAD_ARGUMENT, "Sleep mode is not supported on current platform", True),
        ("port-in-use.txt", 1, Cause.ADDRESS_IN_USE, "in use", False),
        # of these the recording kept only the last lines, not the cause that stood before them
        ("start-corrupt.txt", 1, Cause.UNKNOWN, "Engine core initialization failed", False),
        ("start-kill9engine.txt", 1, Cause.UNKNOWN, "Engine core initialization failed", False),
        ("start-kvbig.txt", 1, Cause.UNKNOWN, "Engine core initialization failed", False),
        ("start-noweights.txt", 1, Cause.UNKNOWN, "Engine core initialization failed", False),
        # these did not end by themselves; nothing in their lines may be taken for a cause
        ("start-kvzero.txt", 1, Cause.UNKNOWN, "status 1", False),
        ("start-notok.txt", 1, Cause.UNKNOWN, "status 1", False),
        ("start-term.txt", 1, Cause.UNKNOWN, "status 1", False),
    ],
)
def test_recorded_starts(recording: str, status: int, cause: Cause, named: str, permanent: bool) -> None:
    verdict = at_start(*log_of(recording), status=status)
    assert verdict.cause is cause
    assert named in verdict.message
    assert verdict.hint
    assert verdict.permanent is permanent


def test_the_kernels_count_knows_what_the_log_of_a_killed_worker_does_not() -> None:
    verdict = explain(Exit(1, None), log_of("memory-cgroup-worker.txt"), was_ready=False, asked=False, oom_kills=1)
    assert verdict.cause is Cause.KILLED_FOR_MEMORY
    assert "journalctl -k" in verdict.hint


def test_the_kernels_count_knows_who_did_not_kill_a_process() -> None:
    line = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'DP0': -9}"
    for was_ready in (False, True):
        verdict = explain(Exit(1, None), [line], was_ready=was_ready, asked=False, oom_kills=0)
        assert verdict.cause is Cause.KILLED
        assert "not for want of memory" in verdict.message


def test_a_signal_after_a_death_does_not_explain_it() -> None:
    dead = "(APIServer pid=1) ERROR 11-22 12:20:10 [async_llm.py:906] EngineDeadError: EngineCore encountered an issue."
    told = "(APIServer pid=1) INFO 11-22 12:20:10 [launcher.py:254] [shutdown] API server: shutdown triggered"
    assert explain(Exit(0, None), [dead, told], was_ready=True, asked=False).cause is Cause.DIED_SERVING
    assert explain(Exit(0, None), [told, dead], was_ready=True, asked=False).cause is Cause.KILLED


SMALL = "/srv/vllm/models/small"

FAULTS = {
    "flag-unknown": (Cause.BAD_ARGUMENT, "--no-such-flag", "--help=all", True),
    "flag-device": (Cause.BAD_ARGUMENT, "--device", "--help=all", True),
    "flag-choice": (Cause.BAD_ARGUMENT, "--dtype: invalid choice: 'float99'", "--help=all", True),
    "flag-number": (Cause.BAD_ARGUMENT, "--max-model-len: invalid", "--help=all", True),
    "flag-json": (Cause.BAD_ARGUMENT, "--compilation-config/-cc: Invalid JSON: key must be", "--help=all", True),
    "flag-range": (Cause.BAD_ARGUMENT, "1.5 as `gpu_memory_utilization`: Input should be less", "--help=all", True),
    "flag-quantization": (Cause.BAD_ARGUMENT, "none-such", "--help=all", True),
    "flag-heads": (Cause.BAD_ARGUMENT, "attention heads (9) must be divisible", "--help=all", True),
    "flag-template": (Cause.BAD_ARGUMENT, "`chat_template`: ", "--help=all", True),
    "flag-sleep-mode": (Cause.BAD_ARGUMENT, "Sleep mode is not supported", "--help=all", True),
    "flag-max-model-len": (Cause.MAX_MODEL_LEN, "99999, but this model goes no further than 8192", "8192", True),
    "model-path-missing": (Cause.MODEL_NOT_FOUND, "/srv/vllm/models/none", "config.json", True),
    "model-offline": (Cause.HUB_UNREACHABLE, "acme/absent is not in the local cache", "HF_HUB_OFFLINE", True),
    "hub-unreachable": (Cause.HUB_UNREACHABLE, "http://127.0.0.1:9", "HF_ENDPOINT", False),
    "hub-broken": (Cause.HUB_UNREACHABLE, "503 Service Unavailable", "the hub's", False),
    "hub-gated": (Cause.GATED, "acme/gated", "HF_TOKEN", True),
    "hub-gated-anonymous": (Cause.GATED, "acme/gated-anonymous", "HF_TOKEN", True),
    "hub-not-found": (Cause.MODEL_NOT_FOUND, "acme/nothing", "HF_TOKEN", True),
    "hub-bad-token": (Cause.TOKEN_REFUSED, "token", "HF_TOKEN", False),
    "model-gguf": (Cause.MODEL_NOT_FOUND, f"{SMALL}/model.gguf", "GGUF", True),
    "config-missing": (Cause.MODEL_NOT_FOUND, f"{SMALL} is no directory with a config.json", "config.json", True),
    "config-broken": (Cause.MODEL_NOT_FOUND, f"{SMALL}/config.json is not valid JSON", "download", True),
    "config-architecture": (Cause.UNSUPPORTED, "NoSuchForCausalLM", "newer vLLM", True),
    "config-type": (Cause.UNSUPPORTED, "type nosuch", "newer vLLM", True),
    "weights-missing": (Cause.MODEL_NOT_FOUND, f"{SMALL} has no weights", "download", True),
    "weights-cut": (Cause.CORRUPT_WEIGHTS, f"{SMALL} cannot be read: incomplete metadata", "download", True),
    "weights-pointer": (Cause.CORRUPT_WEIGHTS, f"headers of the weights of {SMALL}", "Git LFS", False),
    "weights-shard-missing": (Cause.MODEL_NOT_FOUND, "model-00002-of-00002.safetensors", "download", True),
    "weights-shape": (Cause.CORRUPT_WEIGHTS, f"{SMALL} cannot be loaded: AssertionError", "config.json", False),
    "weights-too-few": (Cause.CORRUPT_WEIGHTS, "model.layers.30.input_layernorm.weight", "config.json", True),
    "weights-too-many": (Cause.CORRUPT_WEIGHTS, "layers.20", "config.json", True),
    "memory-kv-large": (Cause.NO_KV_CACHE, "4000.0 GiB is asked for, but ", "VLLM_CPU_KVCACHE_SPACE", False),
    "memory-kv-small": (Cause.NO_KV_CACHE, "for 8192 tokens", "max_model_len", False),
    "memory-kv-none": (Cause.NO_KV_CACHE, "leave no memory for the KV cache, of 0.13 GiB", "raise", False),
    "memory-not-free": (Cause.MEMORY_NOT_FREE, "`gpu_memory_utilization` 1.0", "lower", False),
    "memory-limit": (Cause.OUT_OF_MEMORY, "1073479680 bytes more", "smaller", False),
    "memory-cgroup-leader": (Cause.KILLED_FOR_MEMORY, "want of memory", "journalctl -k", False),
    "memory-cgroup-worker": (Cause.UNKNOWN, "the error that caused it is not in the log", "journalctl -k", False),
    "platform-none": (Cause.NO_GPU, "no GPU", "nvidia-smi", False),
    "socket-taken": (Cause.ADDRESS_IN_USE, "address", "ss -lxtp", False),
    "disk-full-download": (Cause.NO_SPACE, "/engines/m-1/full", "paths.cache", False),
    "start-kill-core": (Cause.UNKNOWN, "the error that caused it is not in the log", "journalctl -k", False),
    "start-kill-worker": (Cause.UNKNOWN, "the error that caused it is not in the log", "journalctl -k", False),
    "start-segv-core": (Cause.KILLED, "Segfault", "library", False),
    "start-segv-worker": (Cause.KILLED, "Segfault", "library", False),
    "serving-kill-core": (Cause.DIED_SERVING, "EngineCore encountered an issue, and the error", "journalctl -k", False),
    "serving-kill-worker": (Cause.DIED_SERVING, "Worker proc VllmWorker-0 died", "journalctl -k", False),
    "serving-kill-leader": (Cause.KILLED_FOR_MEMORY, "most likely", "journalctl -k", False),
    "serving-segv-core": (Cause.DIED_SERVING, "crashed in native code (Segfault)", "library", False),
    "serving-abort-worker": (Cause.DIED_SERVING, "crashed in native code (signal 6)", "library", False),
    "serving-abort-leader": (Cause.KILLED, "SIGABRT", "the engine's log", False),
    "serving-term": (Cause.KILLED, "SIGTERM or SIGINT that vllmd had not sent", "who did", False),
}
"""Recordings by tests/fixtures/record_faults.py → cause, what the message and the hint name, whether permanent."""


@pytest.mark.parametrize("name", FAULTS)
def test_provoked_faults(name: str) -> None:
    cause, named, hinted, permanent = FAULTS[name]
    verdict = of_recording(f"{name}.txt")
    assert verdict.cause is cause
    assert named in verdict.message
    assert hinted in verdict.hint
    assert verdict.permanent is permanent


def test_what_is_waited_for_without_end_is_a_hub_that_the_engine_names() -> None:
    waited_for = {name for name in FAULTS if of_recording(f"{name}.txt").retry_after_s is not None}
    assert waited_for == {"hub-unreachable", "hub-broken"}


def test_every_provoked_fault_is_judged() -> None:
    provoked = {path.stem for path in RECORDINGS.glob("*.txt") if path.read_text().startswith("# ")}
    assert provoked == FAULTS.keys()


@pytest.mark.parametrize("recording", ["kill9-engine.txt", "kill9-worker.txt"])
def test_recorded_deaths_while_serving(recording: str) -> None:
    verdict = explain(Exit(0, None), log_of(recording), was_ready=True, asked=False)
    assert verdict.cause is Cause.DIED_SERVING
    assert verdict.message == (
        "the engine died while serving, with exit status 0: EngineDeadError: EngineCore encountered an issue, "
        "and the error that caused it is not in the log"
    )
    assert "journalctl -k" in verdict.hint
    assert not verdict.permanent


KNOWN = [
    (
        "vllm serve: error: argument --dtype: invalid choice: 'f' (choose from auto, half)",
        Cause.BAD_ARGUMENT,
        "vLLM refuses its arguments: argument --dtype: invalid choice: 'f' (choose from auto, half)",
    ),
    (
        "  Input should be 'auto' or 'half' [type=literal_error, input_value='f', input_type=str]",
        Cause.BAD_ARGUMENT,
        "vLLM refuses 'f' among its arguments: Input should be 'auto' or 'half'",
    ),
    (
        ENGINE_CORE + "ValueError: To serve at least one request with the models's max seq len (40960), (5.62 GiB KV "
        "cache is needed, which is larger than the available KV cache memory (4.50 GiB). Based on the available "
        "memory, the estimated maximum model length is 32768. Try increasing `gpu_memory_utilization`",
        Cause.NO_KV_CACHE,
        "the KV cache for 40960 tokens needs 5.62 GiB, but 4.50 GiB are left for it, enough for 32768 tokens",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (8192), 2.0 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (0.45 GiB).",
        Cause.NO_KV_CACHE,
        "the KV cache for 8192 tokens needs 2.0 GiB, but 0.45 GiB are left for it",
    ),
    (
        ENGINE_CORE + "ValueError: No available memory for the cache blocks. Try increasing",
        Cause.NO_KV_CACHE,
        "the weights leave no memory for the KV cache",
    ),
    (
        ENGINE_CORE + "ValueError: Available memory on node 0 (9.1/11.34 GiB) on kv cache allocation is less than "
        "requested memory for kv (400.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE",
        Cause.NO_KV_CACHE,
        "a KV cache of 400.0 GiB is asked for, but 9.1 of the machine's 11.34 GiB are free",
    ),
    (
        ENGINE_CORE + "ValueError: Free memory on device cuda:0 (7.34/15.49 GiB) on startup is less than desired GPU "
        "memory utilization (0.8, 12.39 GiB). Decrease GPU memory utilization",
        Cause.MEMORY_NOT_FREE,
        "12.39 GiB are asked for (`gpu_memory_utilization` 0.8), but on device cuda:0 7.34 of 15.49 GiB are free",
    ),
    (
        "ValueError: Available memory on node 0 (3.2/11.34 GiB) on startup is less than desired CPU memory "
        "utilization (0.9, 10.2 GiB).",
        Cause.MEMORY_NOT_FREE,
        "10.2 GiB are asked for (`gpu_memory_utilization` 0.9), but on node 0 3.2 of 11.34 GiB are free",
    ),
    (
        ENGINE_CORE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 79.10 GiB of which 1.25 GiB is free. Process 4 has 77 GiB memory in use.",
        Cause.OUT_OF_GPU_MEMORY,
        "GPU 0 ran out of memory: 2.00 GiB more were needed, and 1.25 GiB of 79.10 GiB were free",
    ),
    ("RuntimeError: CUDA error: out of memory", Cause.OUT_OF_GPU_MEMORY, "the GPU ran out of memory"),
    (
        "Access to model meta-llama/Llama-3.1-8B is restricted and you are not in the authorized list.",
        Cause.GATED,
        "the model hub gives meta-llama/Llama-3.1-8B only to those who accepted its terms",
    ),
    (
        "OSError: You are trying to access a gated repo.",
        Cause.GATED,
        "the model hub gives this model only to those who accepted its terms",
    ),
    (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the",
        Cause.HUB_UNREACHABLE,
        "the model hub cannot be reached at https://huggingface.co",
    ),
    (
        "requests.exceptions.ConnectionError: Max retries exceeded with url: /api/models/a/b",
        Cause.HUB_UNREACHABLE,
        "the model hub cannot be reached",
    ),
    (
        "requests.exceptions.HTTPError: 504 Server Error: Gateway Timeout for url: https://huggingface.co/api/models/a/b",
        Cause.HUB_UNREACHABLE,
        "the model hub at https://huggingface.co answers 504 Gateway Timeout",
    ),
    (
        "Invalid credentials in Authorization header",
        Cause.TOKEN_REFUSED,
        "the model hub does not accept the token that the engine has",
    ),
    (
        "Repository Not Found for url: https://huggingface.co/api/models/nobody/nothing/revision/main.",
        Cause.MODEL_NOT_FOUND,
        "the model hub has no model nobody/nothing, or none that it would show",
    ),
    (
        "OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on 'https://h'",
        Cause.MODEL_NOT_FOUND,
        "the model hub has no model nobody/nothing, or none that it would show",
    ),
    (
        "  Value error, Invalid repository ID or local directory specified: '/model-store'.",
        Cause.MODEL_NOT_FOUND,
        "/model-store is no directory with a config.json",
    ),
    (
        "  Value error, Invalid repository ID or local directory specified: 'nobody/nothing'.",
        Cause.MODEL_NOT_FOUND,
        "nobody/nothing is neither a directory with a config.json nor found on the model hub",
    ),
    (
        "OSError: /srv/m does not appear to have a file named config.json. Checkout 'https://huggingface.co//srv/m'",
        Cause.MODEL_NOT_FOUND,
        "the model /srv/m has no config.json",
    ),
    (
        ENGINE_CORE + "RuntimeError: Cannot find any model weights with `/srv/vllm/models/bad-noweights`",
        Cause.MODEL_NOT_FOUND,
        "the model /srv/vllm/models/bad-noweights has no weights",
    ),
    (
        "PermissionError: [Errno 13] Permission denied: '/home/a/model/config.json'",
        Cause.MODEL_NOT_FOUND,
        "the engine has no access to /home/a/model/config.json",
    ),
    (
        ENGINE_CORE + "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        Cause.CORRUPT_WEIGHTS,
        "the weights of the model cannot be read: MetadataIncompleteBuffer",
    ),
    (
        "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures:",
        Cause.UNSUPPORTED,
        "this vLLM does not serve the architecture ['FooForCausalLM']",
    ),
    (
        "  Value error, The repository x contains custom code which must be executed. You can pass the argument "
        "`trust_remote_code=True` to allow custom code to be run.",
        Cause.BAD_ARGUMENT,
        "the model brings code of its own, which is not run unless you trust it",
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        Cause.NO_GPU,
        "the GPU or its driver does not fit this vLLM (driver on your system is too old)",
    ),
    (
        "ValueError: World size (4) is larger than the number of available GPUs (1) in this node.",
        Cause.NO_GPU,
        "4 GPUs are asked for, and 1 can be seen",
    ),
    (
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        Cause.NO_GPU,
        "vLLM finds no GPU that it can use",
    ),
    ("OSError: [Errno 28] No space left on device", Cause.NO_SPACE, "no space is left on a disk"),
    (
        "OSError: [Errno 28] No space left on device: '/var/cache/x'",
        Cause.NO_SPACE,
        "no space is left on the disk of /var/cache/x",
    ),
    (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'DP0': -9}",
        Cause.KILLED_FOR_MEMORY,
        "the engine or a process of it was killed, most likely by the kernel for want of memory",
    ),
    ("OSError: [Errno 12] Cannot allocate memory", Cause.OUT_OF_MEMORY, "the engine got no more main memory"),
    ("MemoryError", Cause.OUT_OF_MEMORY, "the engine got no more main memory"),
    (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'DP0': -11}",
        Cause.KILLED,
        "a process of the engine crashed in native code (signal 11)",
    ),
    (
        "Fatal Python error: Bus error",
        Cause.KILLED,
        "a process of the engine crashed in native code (Bus error)",
    ),
    (
        "ModuleNotFoundError: No module named 'vllm'",
        Cause.UNKNOWN,
        "the engine exited with status 1: ModuleNotFoundError: No module named 'vllm'",
    ),
]


@pytest.mark.parametrize(("line", "cause", "message"), KNOWN)
def test_known_lines(line: str, cause: Cause, message: str) -> None:
    verdict = at_start("INFO 11-22 06:43:19 [x.py:1] all is well", line, "RuntimeError: See root cause above")
    assert (verdict.cause, verdict.message) == (cause, message)
    assert verdict.hint


def test_every_cause_of_the_table_is_tried() -> None:
    recorded = {Cause.MAX_MODEL_LEN, Cause.ADDRESS_IN_USE}
    assert {sign.cause for sign in SIGNS} <= recorded | {cause for _, cause, _ in KNOWN}


def test_a_warning_is_no_evidence() -> None:
    warning = "(APIServer pid=1) WARNING 11-22 06:47:04 [cuda.py:1] libcuda.so.1: cannot open shared object file"
    assert at_start(warning, ENGINE_CORE + "KeyError: 'x'").message == "the engine exited with status 1: KeyError: 'x'"


def test_the_cause_is_found_behind_the_errors_about_it() -> None:
    verdict = at_start(
        "(Worker pid=1) ERROR 06-05 06:06:15 [multiproc_executor.py:852] AttributeError: no attribute 'x'",
        ENGINE_CORE
        + "Exception: WorkerProc initialization failed due to an exception in a background process. See stack "
        "trace for root cause.",
        "    raise RuntimeError(",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
        "  warnings.warn('resource_tracker: There appear to be %d '",
    )
    assert verdict.message == "the engine exited with status 1: AttributeError: no attribute 'x'"
    assert not verdict.permanent


def test_what_was_asked_for_is_no_failure() -> None:
    for exit in (Exit(0, None), Exit(1, None), Exit(None, 9), Exit(None, 15)):
        verdict = explain(exit, ["RuntimeError: CUDA out of memory"], was_ready=True, asked=True)
        assert verdict.cause is Cause.STOPPED


def test_status_0_that_nobody_asked_for_is_a_failure() -> None:
    verdict = at_start("INFO:     Shutting down", status=0)
    assert verdict.cause is Cause.UNKNOWN
    assert verdict.message == "the engine exited with status 0, which nobody had asked for"


@pytest.mark.parametrize("was_ready", [False, True])
def test_an_unasked_sigkill_is_the_kernels(was_ready: bool) -> None:
    verdict = explain(Exit(None, 9), ["RuntimeError: x"], was_ready=was_ready, asked=False)
    assert verdict.cause is Cause.KILLED_FOR_MEMORY
    assert "journalctl -k" in verdict.hint
    assert not verdict.permanent


@pytest.mark.parametrize("was_ready", [False, True])
@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (4, "SIGILL"), (15, "SIGTERM"), (34, "signal 34")])
def test_other_signals_are_named(number: int, name: str, was_ready: bool) -> None:
    verdict = explain(Exit(None, number), [], was_ready=was_ready, asked=False)
    assert verdict.cause is Cause.KILLED
    assert verdict.message == f"the engine was killed by {name}"
    assert verdict.hint


def test_memory_that_runs_out_while_serving_may_come_back() -> None:
    line = ENGINE_CORE + "torch.OutOfMemoryError: CUDA out of memory."
    verdict = explain(Exit(0, None), [line], was_ready=True, asked=False)
    assert verdict.cause is Cause.DIED_SERVING
    assert verdict.message == "the engine died while serving: the GPU ran out of memory"
    assert "nvidia-smi" in verdict.hint
    assert not verdict.permanent


def test_a_refused_request_does_not_explain_a_later_death() -> None:
    log = ["  Value error, max_tokens must be at least 1 [type=value_error, input_value=0, input_type=int]"]
    assert not explain(Exit(1, None), log, was_ready=True, asked=False).permanent


def test_last_words_are_told_if_there_is_no_error() -> None:
    bar = "Capturing CUDA graphs (FULL): 100%|██████████| 51/51 [00:01<00:00]"
    lines = ["terminate called without an active exception", "  at 0x1", bar]
    assert at_start(*lines).message == "the engine exited with status 1: terminate called without an active exception"
    assert explain(Exit(1, None), lines, was_ready=True, asked=False).message.endswith("with exit status 1")


def test_nothing_printed() -> None:
    assert at_start().message == "the engine exited with status 1"


@given(st.integers(0, 127), st.lists(st.text()), st.booleans(), st.booleans())
def test_any_lines_do(status: int, lines: list[str], was_ready: bool, asked: bool) -> None:
    verdict = explain(Exit(status, None), lines, was_ready=was_ready, asked=asked)
    assert verdict.message
    assert not verdict.message.endswith("\n")


@pytest.mark.timeout(60)
def test_monstrous_lines_take_no_time() -> None:
    monsters = ["x" * 16_000, "a.b" * 5_000, "[type=" * 3_000, " Repo id must " * 1_000, "'" * 16_000]
    assert at_start(*monsters * 80).cause is Cause.UNKNOWN
