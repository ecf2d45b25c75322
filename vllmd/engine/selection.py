"""Which of a repository's files vLLM needs. Many hold the same weights two or three times, in formats of others.

What is left out was chosen by what vLLM's loader reads (vllm/model_executor/model_loader/default_loader.py):
safetensors where there are any, else PyTorch's .bin or .pt; never the copies for other programs. What is unknown stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

FOREIGN_DIRECTORIES = ("original", "onnx", "openvino", "coreml", "metal", "runs", "logs", "assets", "images", "figures")
FOREIGN = (
    *("*.pth", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlmodel", "*.ckpt", "*.nemo"),
    *("*.gguf", "*.ggml", "*.llamafile", "*.tar", "*.tar.gz", "*.zip"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.mp4", "*.pdf", ".gitattributes", ".gitignore"),
    *("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "events.out.*"),
)
"""Weights in formats of others, pictures, and what training leaves behind."""

SAFE, TORCH = "*.safetensors", ("*.bin", "*.pt")
CONSOLIDATED = "consolidated*.safetensors"
"""Mistral's own layout of weights that mostly are there as `model*.safetensors` too."""

_BESIDE = ("*.json", "*.model*", "*.txt", "*.jinja", "*.tiktoken", "*.py")
BY_FORMAT: Mapping[str, tuple[str, ...]] = {
    "mistral": ("consolidated*.safetensors", *_BESIDE),
    "pt": ("*.pt", *_BESIDE),
    "npcache": ("*.bin", *_BESIDE),
}
"""Values of `load-format` with which vLLM reads what would be left out else → patterns of what it needs."""


def chosen(paths: Iterable[str], patterns: Sequence[str] = ()) -> list[str]:
    """The paths to pull.

    Args:
        paths: all that there are.
        patterns: shell patterns of those that are wanted instead, as in `*.safetensors`; a slash is no border.
    """
    if patterns:
        return [path for path in paths if any(fnmatchcase(path, each) for each in patterns)]
    candidates = [path for path in paths if not _is_foreign(path)]
    safe = {_directory(path) for path in candidates if fnmatchcase(path, SAFE)}
    whole = any("/" not in path and _is_ordinary(path) for path in candidates)
    return [path for path in candidates if not _is_twice(path, safe, whole)]


def has_weights(paths: Iterable[str]) -> bool:
    """Whether there is anything among them that vLLM could load."""
    return any(fnmatchcase(path, each) for path in paths for each in (SAFE, *TORCH, "*.gguf"))


def _is_foreign(path: str) -> bool:
    directory, _, name = path.rpartition("/")
    return directory.partition("/")[0] in FOREIGN_DIRECTORIES or any(fnmatchcase(name, each) for each in FOREIGN)


def _is_ordinary(path: str) -> bool:
    return fnmatchcase(path, SAFE) and not fnmatchcase(path, CONSOLIDATED)


def _is_twice(path: str, safe: set[str], has_ordinary: bool) -> bool:
    """Whether the same weights are there in a better form."""
    if any(fnmatchcase(path, each) for each in TORCH) or path.endswith((".bin.index.json", ".pt.index.json")):
        return _directory(path) in safe
    return has_ordinary and fnmatchcase(path, CONSOLIDATED)


def _directory(path: str) -> str:
    return path.rpartition("/")[0]
