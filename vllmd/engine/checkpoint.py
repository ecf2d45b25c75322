"""A model's files: where they are, what config.json says, and how large the weights are in memory.

Only headers are read: a safetensors file begins with the length of a JSON table (8 bytes, little-endian) that names
every tensor, its type and its shape. A model that is named as on the hub is looked for in the cache that the engine
would look in (huggingface_hub: models--ORGANISATION--NAME/refs and /snapshots).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from vllmd.engine.hub import is_of_modelscope
from vllmd.engine.shape import Unknown, text_config

HEADER_BYTES = 100_000_000
"""The longest header that safetensors allows."""

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that are turned into the model's own when they are loaded → bytes in the file."""

_INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_OPTIONAL = re.compile(
    r"vision|visual|image|audio|speech|mtp|nextn|eagle|draft|rotary|inv_freq|projector", re.IGNORECASE
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_THERE = "its files are not here yet"
_INCOMPLETE = "its files are not complete"


@dataclass(frozen=True)
class Part:
    """Some of the weights.

    Args:
        floats: how many plain numbers they hold; each takes as many bytes as the engine's `dtype`.
        others: bytes of all else, such as quantised numbers, which stay as they are.
    """

    floats: int = 0
    others: int = 0

    def bytes(self, value_bytes: float) -> int:
        """Their size in memory."""
        return int(self.floats * value_bytes) + self.others

    def __add__(self, other: "Part") -> "Part":
        return Part(self.floats + other.floats, self.others + other.others)


@dataclass(frozen=True)
class Weights:
    """All weights of a model.

    Args:
        all: what is loaded usually.
        least: what is loaded in any case: not what only pictures, sounds or speculation need.
    """

    all: Part
    least: Part


@dataclass(frozen=True)
class Checkpoint:
    """What the files say.

    Args:
        config: config.json.
        weights: their size.
    """

    config: Mapping[str, Any]
    weights: Weights | Unknown


def find(model: str, environ: Mapping[str, str], revision: str | None, download_dir: str | None) -> Path | Unknown:
    """The directory of a model's files.

    Args:
        model: a directory, or a name on the hub.
        environ: the engine's variables.
        revision, download_dir: the flags of that name.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if is_of_modelscope(environ):
        return Unknown(_NOT_THERE)
    repository = (Path(download_dir) if download_dir else _hub(environ)) / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / _commit(repository, revision or "main")
    return snapshot if snapshot.parent.name == "snapshots" and snapshot.is_dir() else Unknown(_NOT_THERE)


def _hub(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it has fetched (its constants.py)."""
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "~") / ".cache") / "huggingface"
    return Path(environ.get("HF_HOME") or home).expanduser() / "hub"


def _commit(repository: Path, revision: str) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        return "."
    return commit if _COMMIT.fullmatch(commit) else "."


def read(directory: Path) -> Checkpoint | Unknown:
    """What the files in a directory say; takes as long as the disk needs for their headers."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        if not isinstance(config, dict):
            return Unknown("its config.json is none")
        return Checkpoint(config, _weights(directory, config))
    except FileNotFoundError:
        return Unknown(_NOT_THERE)
    except (OSError, ValueError, RecursionError) as error:
        return Unknown(f"its config.json cannot be read: {error}")


def _weights(directory: Path, config: Mapping[str, Any]) -> Weights | Unknown:
    try:
        if files := _safetensors(directory):
            return weigh([tensor for file in files for tensor in headers(file)], config)
        if files := sorted(directory.glob("pytorch_model*.bin")):
            return _unread(sum(each.stat().st_size for each in files), config)
        return Unknown(_INCOMPLETE)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Unknown(_INCOMPLETE)


def _safetensors(directory: Path) -> list[Path]:
    """The files that are loaded: those that the index names, else all but copies in another layout."""
    index = directory / _INDEX
    if index.exists():
        return [directory / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    found = [each for each in sorted(directory.glob("*.safetensors")) if not each.name.startswith("adapter")]
    named = [each for each in found if each.name.startswith("model")]
    return named or found


def headers(file: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, type, count of numbers and bytes of every tensor in a safetensors file. Raises OSError or ValueError."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= HEADER_BYTES:
            raise ValueError(f"{file} is no safetensors file")
        table = json.loads(opened.read(length))
        if file.stat().st_size < 8 + length + max(each["data_offsets"][1] for each in _tensors(table).values()):
            raise ValueError(f"{file} is cut off")
    for name, tensor in _tensors(table).items():
        begin, end = tensor["data_offsets"]
        yield name, str(tensor["dtype"]), prod(tensor["shape"]), end - begin


def _tensors(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in table.items() if name != "__metadata__"}


def weigh(tensors: list[tuple[str, str, int, int]], config: Mapping[str, Any]) -> Weights:
    """The sum of tensors as `headers` gives them.

    Layers beyond those that config.json counts are for speculation. A `lm_head` that is tied is a copy.
    """
    inner = text_config(config)
    layers, tied = inner.get("num_hidden_layers"), inner.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    usual = least = Part()
    for name, kind, count, size in tensors:
        part = Part(floats=count) if kind in FLOATS else Part(others=size)
        found, is_head = _LAYER.search(name), name.endswith("lm_head.weight")
        if found and isinstance(layers, int) and int(found[1]) >= layers:
            continue
        usual += Part() if is_head and tied else part
        least += Part() if (is_head and tied is not False) or _OPTIONAL.search(name) else part
    return Weights(usual, least)


def _unread(size: int, config: Mapping[str, Any]) -> Weights:
    """Of files that would have to be run to be read, the size tells: at most 8, mostly 2 or 4 bytes a number."""
    kind = str(config.get("torch_dtype") or config.get("dtype") or "float32")
    return Weights(Part(floats=size // (4 if kind == "float32" else 2)), Part(floats=size // 8))
