"""The causes of an engine's end, and the table of the signs by which each is known in vLLM's log. Pure.

The signs were read from recordings of vLLM 0.32 and from the sources of vLLM, transformers, huggingface_hub,
safetensors and PyTorch; the most specific come first.

A cause is permanent when trying again cannot help. Memory never is: somebody else may have held it, and a wrong
"permanent" costs an outage, a wrong "try again" a few starts. What would not fit if nobody else held any is another
matter; that is told before the start (`engine.fit`), by no line of the log.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vllmd.lifecycle import Verdict


class Cause(StrEnum):
    """The classes of an engine's end; stable words, for metrics and for people."""

    STOPPED = "stopped as asked"
    BAD_ARGUMENT = "bad argument"
    MODEL_NOT_FOUND = "model not found"
    GATED = "gated model"
    TOKEN_REFUSED = "token refused"
    HUB_UNREACHABLE = "hub unreachable"
    INDEX_UNREACHABLE = "package index unreachable"
    NO_SPACE = "no space on disk"
    OUT_OF_GPU_MEMORY = "out of GPU memory"
    OUT_OF_MEMORY = "out of memory"
    MEMORY_NOT_FREE = "memory not free"
    DOES_NOT_FIT = "does not fit"
    NO_KV_CACHE = "no memory for the KV cache"
    MAX_MODEL_LEN = "max-model-len too large"
    KILLED_FOR_MEMORY = "killed for memory"
    ADDRESS_IN_USE = "address in use"
    NO_GPU = "no usable GPU"
    UNSUPPORTED = "unsupported architecture"
    CORRUPT_WEIGHTS = "corrupt weights"
    DIED_SERVING = "died while serving"
    KILLED = "killed by a signal"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sign:
    """How a cause shows in one line of the log.

    Args:
        cause: what it shows.
        pattern: a regular expression to search for.
        message, hint: the verdict's; they may name groups of the pattern, words of the `CONTEXT`, and `error`, the
            last exception as `: text`.
        permanent: the verdict's.
        passes: whether it is the fault of somebody else who is named, and will pass (`Verdict.retry_after_s`).
    """

    cause: Cause
    pattern: str
    message: str
    hint: str
    permanent: bool = False
    passes: bool = False

    def read(self, text: str, context: Mapping[str, str]) -> Verdict | None:
        """The verdict if `text` bears this sign; `context` has a word for each that it may name."""
        found = re.search(self.pattern, text)
        if not found:
            return None
        words = {**context, **found.groupdict(default="")}
        message, hint = self.message.format(**words).strip(), self.hint.format(**words)
        return Verdict(self.cause, message, hint, self.permanent, 0.0 if self.passes else None)


CONTEXT = {
    "served": (r"non-default args: .*?'model(?:_tag)?': '([^']+)'", "the model"),
    "disk": (r"The target location (\S+) only has [\d.]+ \w+ free disk space", "a disk"),
}
"""Words that explain an error and stand in another line than it → a pattern with one group, and the word otherwise."""

FLAGS = "correct it in the model's `args`; `vllm serve --help=all` lists what this version of vLLM takes"
_SMALLER = "serve a smaller or quantised model, or spread it with `tensor_parallel_size`"
_WHO_HOLDS = "see who holds the memory (nvidia-smi), or lower `gpu_memory_utilization`"
_TERMS = "accept the model's terms on its Hugging Face page, and give the engine a token of that account as HF_TOKEN"
_NETWORK = "check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT, or give the directory of a downloaded model"
_MODEL = "correct `model`: a directory with a config.json that vllmd's user may read, or `organisation/name` on the hub"
_DOWNLOAD = "the download is not complete, or `model` names the wrong directory"
_FITTING = "its config.json and its weights do not belong together, or the files are not complete: download them again"
_NEWER = "install a newer vLLM (`vllmctl env install`), or choose another model"
_FREE_SPACE = "free some, or move the cache (`paths.cache`); if it was /dev/shm, enlarge that"
_MORE_MEMORY = "allow the service more (MemoryMax=, LimitAS=), ask for a smaller KV cache, or serve a smaller model"
_KERNEL_KILLED = "look for `Out of memory` in `journalctl -k`; allow the service more memory, or serve a smaller model"

KILLED_FOR_MEMORY = Sign(
    Cause.KILLED_FOR_MEMORY,
    r"Failed core proc\(s\): \{[^}]*: -9|died unexpectedly \(exit code: -9\)",
    "the engine or a process of it was killed, most likely by the kernel for want of memory",
    _KERNEL_KILLED,
)

CRASHED = Sign(
    Cause.KILLED,
    r"(?P<what>Segfault) encountered|^Fatal Python error: (?P<fatal>Segmentation fault|Bus error|Illegal instruction|"
    r"Aborted|Floating point exception)|^\*\*\* (?P<name>SIG\w+) \(@",
    "a process of the engine crashed in native code ({what}{fatal}{name})",
    "a driver or a library does not fit this version of vLLM, or somebody sent the signal: see the engine's log",
)

SIGNS = (
    Sign(
        Cause.BAD_ARGUMENT,
        r"error: unrecognized arguments: (?P<flags>.+)",
        "vLLM does not know the argument {flags}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"error: argument (?P<flag>\S+): \d+ validation errors? for \w+ +(?P<why>.+?) *\[type=",
        "vLLM refuses the argument {flag}: {why}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"error: (?P<what>(argument |the following arguments|ambiguous option).+)",
        "vLLM refuses its arguments: {what}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.MAX_MODEL_LEN,
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len \(\w+=(?P<most>\d+)",
        "`max_model_len` is {asked}, but this model goes no further than {most} tokens",
        "set `max_model_len` to {most} or less, or leave it out",
        permanent=True,
    ),
    Sign(
        Cause.NO_KV_CACHE,
        r"max seq len \((?P<tokens>\d+)\), \(?(?P<need>[\d.]+ Gi?B) KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<have>[\d.]+ Gi?B)\).*maximum model length is (?P<fits>\d+)",
        "the KV cache for {tokens} tokens needs {need}, but {have} are left for it, enough for {fits} tokens",
        "set `max_model_len` to {fits} or less, or raise `gpu_memory_utilization` or `kv_cache_memory_bytes`",
    ),
    Sign(
        Cause.NO_KV_CACHE,
        r"max seq len \((?P<tokens>\d+)\), \(?(?P<need>[\d.]+ Gi?B) KV cache is ?needed, which is larger than the "
        r"available KV [Cc]ache memory \((?P<have>[\d.]+ Gi?B)\)",
        "the KV cache for {tokens} tokens needs {need}, but {have} are left for it",
        "lower `max_model_len`, or raise `gpu_memory_utilization`",
    ),
    Sign(
        Cause.NO_KV_CACHE,
        r"No available memory for the cache blocks",
        "the weights leave no memory for the KV cache",
        f"raise `gpu_memory_utilization`; if it is high already, {_SMALLER}",
    ),
    Sign(
        Cause.NO_KV_CACHE,
        r"requested memory for kv \((-[\d.]+|0\.0+)/(?P<asked>[\d.]+) GiB\)",
        "the weights leave no memory for the KV cache, of {asked} GiB that the engine may have",
        f"raise `gpu_memory_utilization`; if it is high already, {_SMALLER}",
    ),
    Sign(
        Cause.NO_KV_CACHE,
        r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than "
        r"requested memory for kv \((?P<asked>[\d.]+)",
        "a KV cache of {asked} GiB is asked for, but {free} of the machine's {total} GiB are free",
        "lower VLLM_CPU_KVCACHE_SPACE, `kv_cache_memory_bytes` or `gpu_memory_utilization`, or free memory",
    ),
    Sign(
        Cause.MEMORY_NOT_FREE,
        r"(Free|Available) memory on (?P<where>\w+( [\w:]+)?) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
        r"less than desired \w+ memory utilization \((?P<part>[\d.]+), (?P<asked>[\d.]+) GiB\)",
        "{asked} GiB are asked for (`gpu_memory_utilization` {part}), but on {where} {free} of {total} GiB are free",
        _WHO_HOLDS,
    ),
    Sign(
        Cause.OUT_OF_GPU_MEMORY,
        r"out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total capacity of "
        r"(?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
        "GPU {gpu} ran out of memory: {asked} more were needed, and {free} of {total} were free",
        f"{_WHO_HOLDS}; if nobody else does, {_SMALLER}",
    ),
    Sign(
        Cause.OUT_OF_GPU_MEMORY,
        r"OutOfMemoryError|(CUDA|HIP|XPU)( error:)? out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        f"{_WHO_HOLDS}; if nobody else does, {_SMALLER}",
    ),
    Sign(
        Cause.OUT_OF_MEMORY,
        r"DefaultCPUAllocator: .*tried to allocate (?P<asked>\d+) bytes",
        "the engine got no more main memory: {asked} bytes more were needed",
        _MORE_MEMORY,
    ),
    Sign(
        Cause.OUT_OF_MEMORY,
        r"Cannot allocate memory|std::bad_alloc",
        "the engine got no more main memory",
        _MORE_MEMORY,
    ),
    Sign(
        Cause.GATED,
        r"Access to model (?P<model>\S+) is restricted|access to it at https?://[^/]+/(?P<url>\S+?)\.?(\s|$)",
        "the model hub gives {model}{url} only to those who accepted its terms",
        _TERMS,
        permanent=True,
    ),
    Sign(
        Cause.GATED,
        r"GatedRepoError|access a gated repo\.|Cannot access gated repo",
        "the model hub gives this model only to those who accepted its terms",
        _TERMS,
        permanent=True,
    ),
    Sign(
        Cause.HUB_UNREACHABLE,
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|offline mode is enabled",
        "{served} is not in the local cache, and asking the model hub is switched off",
        "download it first, give its directory as `model`, or do not set HF_HUB_OFFLINE",
        permanent=True,
    ),
    Sign(
        Cause.TOKEN_REFUSED,
        r"Invalid credentials in Authorization header|Invalid user token",
        "the model hub does not accept the token that the engine has",
        "give the engine a valid one as HF_TOKEN, or none; tokens expire and are revoked",
    ),
    Sign(
        Cause.HUB_UNREACHABLE,
        r"error '(?P<status>(5\d\d|429)[^']*)' for url '(?P<url>https?://[^/']+)|"
        r"\b(?P<code>5\d\d|429) (Server|Client) Error: (?P<reason>[\w ]+) for url:? (?P<at>https?://[^/\s]+)",
        "the model hub at {url}{at} answers {status}{code} {reason}",
        "that is the hub's, or a proxy's, to mend; or give the directory of a downloaded model",
        passes=True,
    ),
    Sign(
        Cause.HUB_UNREACHABLE,
        r"[Cc]ouldn't connect to '(?P<url>https?://[^']+)'",
        "the model hub cannot be reached at {url}",
        _NETWORK,
        passes=True,
    ),
    Sign(
        Cause.HUB_UNREACHABLE,
        r"LocalEntryNotFoundError|[Cc]ouldn't connect to|Max retries exceeded|Temporary failure in name resolution|"
        r"Name or service not known|Network is unreachable|\b50\d Server Error",
        "the model hub cannot be reached",
        _NETWORK,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"HFValidationError: Repo id must .*: '(?P<model>[^']*)'",
        "there is no model at {model}",
        _MODEL,
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"PermissionError: \[Errno 13\].*: '(?P<path>[^']+)'",
        "the engine has no access to {path}",
        "give it to the user that vllmd runs as; a hardened service may also hide it (ProtectHome, ReadWritePaths)",
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"Invalid repository ID or local directory specified: '(?P<model>[/~.][^']*)'",
        "{model} is no directory with a config.json",
        _MODEL,
        permanent=True,
    ),
    Sign(  # vLLM says this of every failure to look, an unreachable hub's too
        Cause.MODEL_NOT_FOUND,
        r"Invalid repository ID or local directory specified: '(?P<model>[^']*)'",
        "{model} is neither a directory with a config.json nor found on the model hub",
        _MODEL,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"(?<!\S)(?P<model>\S+) is not a local folder and is not a valid model identifier|"
        r"Repository Not Found for url: https?://[^/]+/(api/models/)?(?P<url>[^/\s]+/[^/\s]+?)(/|\.?$)",
        "the model hub has no model {model}{url}, or none that it would show",
        "correct `model`; for a private model give the engine a token as HF_TOKEN",
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"config file at '(?P<path>[^']+\.json)' is not a valid JSON file",
        "{path} is not valid JSON",
        "the file is damaged or not complete: download it again",
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"config file at '(?P<path>[^']+)' is not a valid JSON file",
        "{path} is not the configuration of a model",
        "`model` must name a directory with a config.json; a single GGUF file is served by few versions of vLLM",
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"(?<!\S)(?P<path>\S+) does not appear to have a file named (?P<file>[\w./-]*\w)",
        "the model {path} has no {file}",
        _DOWNLOAD,
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"Cannot find any model weights with `(?P<path>[^`]+)`",
        "the model {path} has no weights",
        _DOWNLOAD,
        permanent=True,
    ),
    Sign(
        Cause.CORRUPT_WEIGHTS,
        r"(SafetensorError: (Error while deserializing header: )?|PytorchStreamReader failed )(?P<what>.+)",
        "the weights of {served} cannot be read: {what}",
        "the files are damaged or not complete: download them again",
        permanent=True,
    ),
    Sign(
        Cause.MODEL_NOT_FOUND,
        r"[Ww]eight files referenced in index but missing: \{?'?(?P<files>[^}]+?)'?(\}|$)",
        "weights are missing: {files}",
        _DOWNLOAD,
        permanent=True,
    ),
    Sign(
        Cause.CORRUPT_WEIGHTS,
        r"weights were not initialized from checkpoint: \{?(?P<names>'[^']*'(, '[^']*'){0,2})",
        "the weights of {served} lack {names}",
        _FITTING,
        permanent=True,
    ),
    Sign(
        Cause.CORRUPT_WEIGHTS,
        r"no module or parameter named '(?P<name>[^']+)' in (?P<where>\w+)",
        "the weights of {served} hold {name}, for which {where} has no place",
        _FITTING,
        permanent=True,
    ),
    Sign(
        Cause.UNSUPPORTED,
        r"model type `(?P<kind>[^`]+)` but Transformers does not recognize this architecture",
        "this vLLM does not know models of the type {kind}",
        _NEWER,
        permanent=True,
    ),
    Sign(
        Cause.UNSUPPORTED,
        r"Model architectures (?P<names>\[[^]]*\]) (are not supported|failed to be inspected)|"
        r"[Mm]odel architecture (?P<name>\S+) was supported in vLLM until",
        "this vLLM does not serve the architecture {names}{name}",
        _NEWER,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"trust[_-]remote[_-]code=True",
        "the model brings code of its own, which is not run unless you trust it",
        "read that code; if you trust it, set `trust_remote_code = true` in the model's `args`",
        permanent=True,
    ),
    Sign(
        Cause.NO_GPU,
        r"(?P<what>driver on your system is too old|driver version is insufficient|forward compatibility was attempted"
        r"|no kernel image is available|driver/library version mismatch|unsupported toolchain)",
        "the GPU or its driver does not fit this vLLM ({what})",
        "update the driver, reboot if it was updated just now, or install a vLLM that was built for it",
        permanent=True,
    ),
    Sign(
        Cause.NO_GPU,
        r"[Ww]orld size \((?P<asked>\d+)\) is larger than the number of available GPUs \((?P<have>\d+)\)",
        "{asked} GPUs are asked for, and {have} can be seen",
        "lower `tensor_parallel_size`, or check CUDA_VISIBLE_DEVICES",
        permanent=True,
    ),
    Sign(
        Cause.NO_GPU,
        r"Failed to infer device type|No (CUDA|HIP) GPUs are available|Found no NVIDIA driver|no CUDA-capable device|"
        r"libcuda\.so\.1: cannot open|system not yet initialized|CUDA unknown error",
        "vLLM finds no GPU that it can use",
        "check that `nvidia-smi` works for the user that vllmd runs as, and look at CUDA_VISIBLE_DEVICES",
    ),
    Sign(
        Cause.NO_SPACE,
        r"No space left on device: '(?P<path>[^']+)'",
        "no space is left on the disk of {path}",
        _FREE_SPACE,
    ),
    Sign(
        Cause.NO_SPACE,
        r"No space left on device",
        "no space is left on {disk}",
        _FREE_SPACE,
    ),
    Sign(
        Cause.CORRUPT_WEIGHTS,
        r"^ +File .*, in (parse_safetensors_file_metadata|_read_safetensors_metadata\w*)$",
        "the headers of the weights of {served} cannot be read{error}",
        "see the last line of the engine's log; fetch a damaged file, or one that is a Git LFS pointer, again",
    ),
    Sign(Cause.OUT_OF_MEMORY, r"^MemoryError\b", "the engine got no more main memory", _MORE_MEMORY),
    Sign(
        Cause.CORRUPT_WEIGHTS,
        r"^ +File .*, in \w*weight_loader\w*$",
        "the weights of {served} cannot be loaded{error}",
        f"most likely {_FITTING}",
    ),
    Sign(
        Cause.ADDRESS_IN_USE,
        r"[Aa]ddress already in use",
        "the address that the engine was to listen on is in use",
        "another process holds its socket or port (`ss -lxtp` lists them)",
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"VLLMValidationError: (?P<why>.+?) *\(parameter=(?P<name>\w+)",
        "vLLM refuses its argument `{name}`: {why}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"^\s*(Value error|Assertion failed), (?P<why>.+?)\.?( *\[type=|$)",
        "vLLM refuses its arguments: {why}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"validation errors? for \w+ (?P<field>[a-z_][\w.]*) {2,}(?P<why>.+?) *\[type=\w+, "
        r"input_value=(?P<given>.+?), input_type=",
        "vLLM refuses {given} as `{field}`: {why}",
        FLAGS,
        permanent=True,
    ),
    Sign(
        Cause.BAD_ARGUMENT,
        r"^\s*(?P<why>\S.*?) *\[type=\w+, input_value=(?P<given>.+?), input_type=",
        "vLLM refuses {given} among its arguments: {why}",
        FLAGS,
        permanent=True,
    ),
    KILLED_FOR_MEMORY,
    CRASHED,
    Sign(
        Cause.KILLED,
        r"(Failed core proc\(s\): \{[^}]*: |died unexpectedly \(exit code: )-(?P<number>4|6|7|8|11)\b",
        "a process of the engine crashed in native code (signal {number})",
        CRASHED.hint,
    ),
)
