"""What lies in the cache of models, by what is on the disk: listed, and taken away so that the room is really free.

Snapshots share blobs: a file that did not change between two commits is there once. So what a snapshot takes is not
what its end frees, and a blob goes with the last one that needs it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vllmd.engine.hub import Shelf, size_of
from vllmd.engine.manifest import Manifest
from vllmd.provisions import LocalModel

Users = Mapping[tuple[Path, str], tuple[str, ...]]
"""(snapshot, or the model's root where none is pinned; repository) → the configured models that are made of it."""


def listing(hub: Path, manifests: Sequence[Manifest], users: Users) -> Iterator[LocalModel]:
    """The models in a cache, each of its commits by itself."""
    for root in sorted(hub.glob("models--*--*")) + sorted(each for each in hub.glob("models--*") if _is_bare(each)):
        shelf = Shelf(hub, root.name.removeprefix("models--").replace("--", "/", 1))
        known = [each for each in manifests if each.repo == shelf.repo]
        snapshots = {path.name for path in _children(shelf.root / "snapshots")}
        for commit in sorted(snapshots | {each.commit for each in known}):
            yield _model(shelf, commit, [each for each in known if each.commit == commit], users)


def _is_bare(root: Path) -> bool:
    return "--" not in root.name.removeprefix("models--")


def _model(shelf: Shelf, commit: str, manifests: Sequence[Manifest], users: Users) -> LocalModel:
    manifest = next(iter(manifests), None)
    there = sum(size for _, size in _blobs_of(shelf.snapshot(commit)))
    names = (*users.get((shelf.snapshot(commit), shelf.repo), ()), *users.get((shelf.root, shelf.repo), ()))
    return LocalModel(
        repo=shelf.repo,
        revisions=tuple(each.revision for each in manifests if each.revision),
        commit=commit,
        size=max(there, shelf.there(manifest)) if manifest else there,
        total=manifest.size if manifest else None,
        complete=shelf.is_whole(manifest) if manifest else None,
        used_by=names,
        pulled_at=manifest.pulled_at if manifest else None,
        path=str(shelf.snapshot(commit)),
    )


def commits(shelf: Shelf, manifests: Sequence[Manifest], revision: str) -> set[str]:
    """The commits on disk, or known, that are meant by a revision or the beginning of a commit; empty for all."""
    found = {path.name for path in _children(shelf.root / "snapshots")} | {each.commit for each in manifests}
    if not revision:
        return found
    named = {each.commit for each in manifests if each.revision == revision}
    with suppress(OSError):
        named.add(shelf.ref(revision).read_text().strip())
    return {each for each in found if each in named or (len(revision) >= 4 and each.startswith(revision))}


def remove(shelf: Shelf, gone: Iterable[str]) -> int:
    """Takes commits away, and all that nobody needs any more; returns how many bytes that freed.

    Raises:
        BlockingIOError: another process works on the same model.
    """
    if not shelf.root.exists():
        return 0
    with open(shelf.lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _remove(shelf, set(gone))


def _remove(shelf: Shelf, gone: set[str]) -> int:
    before = _used(shelf)
    for commit in gone:
        shutil.rmtree(shelf.snapshot(commit), ignore_errors=True)
    if not _children(shelf.root / "snapshots"):
        shutil.rmtree(shelf.root)
        return before
    for ref in (each for each in (shelf.root / "refs").rglob("*") if each.is_file()):
        if ref.read_text().strip() in gone:
            ref.unlink()
    needed = {blob for each in _children(shelf.root / "snapshots") for blob, _ in _blobs_of(each)}
    for blob in _children(shelf.blobs):
        if blob.resolve() not in needed:
            blob.unlink()
    return before - _used(shelf)


def drop(shelf: Shelf, manifest: Manifest, kept: Iterable[Manifest]) -> int | None:
    """Takes away one commit that was pulled here, and those of its files that no other commit needs.

    All else stays, unlike with `remove`: it may be another program's, and be coming just now. So does a commit that
    another program has put files into, or has a name for.

    Args:
        kept: what was pulled, or is being pulled, and stays.

    Returns:
        How many bytes that freed; None if it has to stay.

    Raises:
        BlockingIOError: another process works on the same model.
    """
    if not shelf.root.exists():
        return 0
    with open(shelf.lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_shared(shelf, manifest):
            return None
        before = _used(shelf)
        shutil.rmtree(shelf.snapshot(manifest.commit), ignore_errors=True)
        needed = {blob for each in _children(shelf.root / "snapshots") for blob, _ in _blobs_of(each)}
        coming = {file.etag for each in kept for file in each.files}
        for etag in {each.etag for each in manifest.files} - coming:
            shelf.partial(etag).unlink(missing_ok=True)
            if shelf.blob(etag).resolve() not in needed:
                shelf.blob(etag).unlink(missing_ok=True)
        return before - _used(shelf)


def _is_shared(shelf: Shelf, manifest: Manifest) -> bool:
    """Whether somebody else has a name for a commit, or has put files into it."""
    snapshot, pulled = shelf.snapshot(manifest.commit), {each.path for each in manifest.files}
    refs = (each for each in (shelf.root / "refs").rglob("*") if each.is_file())
    if any(each.read_text().strip() == manifest.commit for each in refs):
        return True
    found = (Path(directory) / name for directory, _, names in os.walk(snapshot) for name in names)
    return any(str(each.relative_to(snapshot)) not in pulled for each in found)


def _blobs_of(snapshot: Path) -> set[tuple[Path, int]]:
    """What the files of a snapshot lead to, and the sizes of that; each once."""
    files = (Path(directory) / name for directory, _, names in os.walk(snapshot) for name in names)
    return {(each.resolve(), size) for each in files if (size := size_of(each)) >= 0}


def _used(shelf: Shelf) -> int:
    """The bytes that all blobs take, partial ones too."""
    return sum(max(size_of(each), 0) for each in _children(shelf.blobs))


def _children(directory: Path) -> list[Path]:
    return [Path(each) for each in os.scandir(directory)] if directory.is_dir() else []
