"""The cache of models on disk, as huggingface_hub lays it out, so that vLLM and every other program find them in it.

    HUB/models--acme--tiny/blobs/ETAG                  what a file holds, by its SHA-256 (small ones: git's SHA-1)
                           blobs/ETAG.incomplete       so much of it as has come
                           snapshots/COMMIT/PATH       a link to the blob
                           refs/REVISION               the commit that this revision was when it was last asked for

A blob under its final name is whole: it came under another one, was compared with its digest, and lay on the disk.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine.manifest import Manifest

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?(?<![.-])", re.ASCII)
"""As the hub has them: `gpt2`, `acme/tiny-1.5b`."""

_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w./+-]{0,199}(?<![./])", re.ASCII)
"""A branch, a tag or a commit; also the name of a file below `refs`."""

_TRUE = ("1", "ON", "YES", "TRUE")


def is_name(model: str) -> bool:
    """Whether `model` may be the name of a model on a hub: no path, no cloud's URI, no file."""
    return bool(_NAME.fullmatch(model)) and not model.endswith((".git", ".gguf", ".ipynb"))


def is_revision(text: str) -> bool:
    """Whether `text` may be a revision of a model."""
    return bool(_REVISION.fullmatch(text))


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether somebody has said that the hub is not to be asked."""
    return any(environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def is_of_modelscope(environ: Mapping[str, str]) -> bool:
    """Whether vLLM is told to take names for those of ModelScope (vllm/envs.py)."""
    return environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")


def cache_of(environ: Mapping[str, str]) -> Path:
    """Where models lie for a process with these variables (huggingface_hub/constants.py)."""
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    if chosen.startswith("~/") and environ.get("HOME"):
        return Path(environ["HOME"]) / chosen[2:]
    return Path(chosen).expanduser()


@dataclass(frozen=True)
class Shelf:
    """The place of one model in the cache.

    Args:
        hub: the cache.
        repo: the model's name on the hub.
    """

    hub: Path
    repo: str

    @property
    def root(self) -> Path:
        """Everything of it."""
        return self.hub / f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """What its files hold."""
        return self.root / "blobs"

    @property
    def lock(self) -> Path:
        """Whoever changes anything of it holds this, flock(2)."""
        return self.root / ".vllmd.lock"

    def snapshot(self, commit: str) -> Path:
        """The model as it was at `commit`."""
        return self.root / "snapshots" / commit

    def ref(self, revision: str) -> Path:
        """The file that says which commit a revision was."""
        return self.root / "refs" / (revision or "main")

    def blob(self, etag: str) -> Path:
        """What a file holds."""
        return self.blobs / etag

    def partial(self, etag: str) -> Path:
        """So much of it as has come."""
        return self.blobs / f"{etag}.incomplete"

    def there(self, manifest: Manifest) -> int:
        """How many bytes of a model have come."""
        return sum(min(each.size, self._come(each.etag)) for each in manifest.unique)

    def has_some(self, revision: str) -> bool:
        """Whether anybody has ever put a revision here, maybe in part: by its name, or as a commit."""
        return self.ref(revision).exists() or bool(revision and self.snapshot(revision).exists())

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every file of a model is there, in the size that it should have."""
        snapshot = self.snapshot(manifest.commit)
        return all(size_of(snapshot / each.path) == each.size for each in manifest.files)

    def _come(self, etag: str) -> int:
        whole = size_of(self.blob(etag))
        return max(size_of(self.partial(etag)), 0) if whole < 0 else whole


def size_of(path: Path) -> int:
    """The size of the file that a path leads to, in bytes; -1 if it leads nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
