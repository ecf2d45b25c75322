"""What a model consists of, pinned: its commit, and each file with its size and digest. Kept in the state directory.

A revision such as `main` moves; what was pulled does not, until somebody pulls again. A manifest is written before the
first byte comes, so that an interrupted pull goes on with the same commit; but it is *pending*, and takes the place of
the one before only when all is there. Then it is the measure by which the files on disk are whole, or broken.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 1
"""Of what is written. A manifest of another one is none."""

_COMMIT = re.compile(r"[A-Za-z0-9._-]{1,100}(?<!\.)")
_ETAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """One file of a model.

    Args:
        path: inside the model, with slashes.
        size: in bytes.
        etag: its SHA-256, or for a small file the number that git gives it (SHA-1), in hexadecimal digits.
    """

    path: str
    size: int
    etag: str

    @property
    def is_sound(self) -> bool:
        """Whether it can be trusted with a place on disk: no path out of the model, no name but a digest."""
        parts = self.path.split("/")
        inside = all(part not in ("", ".", "..") for part in parts) and "\0" not in self.path
        return inside and self.size >= 0 and bool(_ETAG.fullmatch(self.etag))


@dataclass(frozen=True)
class Manifest:
    """One model at one commit.

    Args:
        repo: its name on the hub.
        revision: what was asked for: a branch, a tag, a commit; empty for the hub's default.
        commit: what that was.
        files: those that were chosen of it.
        pulled_at: when the hub was asked, Unix seconds.
        selections: the patterns by which the files were chosen; several where models of one repository want different
            ones; none where that was not written down.
    """

    repo: str
    revision: str
    commit: str
    files: tuple[File, ...]
    pulled_at: float = 0.0
    version: int = field(default=VERSION)
    selections: tuple[tuple[str, ...], ...] = ()

    @property
    def subject(self) -> str:
        """As people write it: `acme/tiny`, `acme/tiny@v2`."""
        return subject_of(self.repo, self.revision)

    def covers(self, patterns: Sequence[str]) -> bool:
        """Whether the files are among these that those patterns choose, as far as is known."""
        return not self.selections or any(set(each) == set(patterns) for each in self.selections)

    def joined(self, other: "Manifest") -> "Manifest":
        """The same model with the files of both, which are of one commit."""
        files = {each.path: each for each in (*self.files, *other.files)}
        return replace(self, files=tuple(files.values()), selections=(*self.selections, *other.selections))

    @property
    def is_sound(self) -> bool:
        """Whether it can be trusted with places on disk, whoever wrote it."""
        return bool(_COMMIT.fullmatch(self.commit)) and all(each.is_sound for each in self.files)

    @property
    def unique(self) -> tuple[File, ...]:
        """The files, each content once."""
        return tuple({each.etag: each for each in self.files}.values())

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(each.size for each in self.unique)


def subject_of(repo: str, revision: str) -> str:
    """A model and the revision that is meant, as people write it."""
    return f"{repo}@{revision}" if revision else repo


def split(subject: str) -> tuple[str, str]:
    """The repository and the revision in what `subject_of` has written."""
    repo, _, revision = subject.partition("@")
    return repo, revision


def to_table(manifest: Manifest) -> dict[str, Any]:
    """As JSON has it."""
    return asdict(manifest)


def from_table(table: Any) -> Manifest | None:
    """Reads what `to_table` made; None for anything else, also for paths and names that lead out of their place."""
    try:
        files = tuple(File(str(each["path"]), int(each["size"]), str(each["etag"])) for each in table["files"])
        words = (str(table["repo"]), str(table["revision"]), str(table["commit"]))
        selections = tuple(tuple(map(str, each)) for each in table.get("selections", ()))
        manifest = Manifest(*words, files, float(table["pulled_at"]), int(table["version"]), selections)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return manifest if manifest.version == VERSION and manifest.is_sound else None


class Manifests:
    """The manifests on disk, a file each.

    Args:
        directory: made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def pending(self) -> "Manifests":
        """Those of which not all has come yet."""
        return Manifests(self._directory / "pending")

    @property
    def superseded(self) -> "Manifests":
        """Those that another commit has taken the place of, each under its own commit."""
        return Manifests(self._directory / "superseded")

    def supersede(self, manifest: Manifest) -> None:
        """Notes what a manifest is about to take the place of, whole or pending, if that is another commit."""
        for each in (self, self.pending):
            before = each.find(manifest.repo, manifest.revision)
            if before and before.commit != manifest.commit:
                self.superseded.put(replace(before, revision=before.commit))

    def __iter__(self) -> Iterator[Manifest]:
        for path in sorted(self._directory.glob("*.json")):
            if (manifest := _read(path)) is not None:
                yield manifest

    def find(self, repo: str, revision: str) -> Manifest | None:
        """What was pulled when this revision was asked for."""
        found = _read(self._path(repo, revision))
        return found if found and (found.repo, found.revision) == (repo, revision) else None

    def put(self, manifest: Manifest) -> None:
        """Keeps a manifest in the place of the one of the same revision. Raises OSError."""
        path = self._path(manifest.repo, manifest.revision)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(to_table(manifest), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def drop(self, manifest: Manifest) -> None:
        """Forgets a manifest."""
        self._path(manifest.repo, manifest.revision).unlink(missing_ok=True)

    def _path(self, repo: str, revision: str) -> Path:
        subject = subject_of(repo, revision)
        digest = hashlib.sha256(subject.encode()).hexdigest()[:8]
        return self._directory / f"{re.sub('[^A-Za-z0-9.]+', '-', subject)[:80].strip('-.')}-{digest}.json"


def _read(path: Path) -> Manifest | None:
    with suppress(OSError, ValueError, RecursionError):
        return from_table(json.loads(path.read_text(encoding="utf-8")))
    return None
