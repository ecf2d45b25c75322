"""A model on disk, file by file, compared with what the hub said of it when it was pulled."""

from collections.abc import Callable

from vllmd.engine.hub import Shelf, size_of
from vllmd.engine.manifest import File, Manifest
from vllmd.engine.transfer import digest
from vllmd.errors import Damaged

SHOWN = 3
"""So many broken files are named in one sentence."""

Say = Callable[[str, object], None]
"""Says something of a kind (`pulling`)."""


def verify(manifest: Manifest, shelf: Shelf, say: Say, *, is_repaired: bool) -> None:
    """Compares all files of a model with what they should be, and names the broken ones.

    Args:
        is_repaired: takes the broken ones away, to be fetched anew.

    Raises:
        Damaged: some are broken, and stay so.
    """
    broken, done = [], 0
    for file in manifest.files:
        say("progress", ["verifying", done, manifest.size])
        if complaint := fault(file, shelf, manifest.commit):
            say("line", f"{file.path}: {complaint}")
            broken.append(file)
        done = min(done + file.size, manifest.size)
    say("progress", ["verifying", manifest.size, manifest.size])
    if is_repaired:
        for file in broken:
            shelf.blob(file.etag).unlink(missing_ok=True)
            (shelf.snapshot(manifest.commit) / file.path).unlink(missing_ok=True)
    elif broken:
        names = ", ".join(file.path for file in broken[:SHOWN]) + (", …" if len(broken) > SHOWN else "")
        message = f"{len(broken)} of {len(manifest.files)} files of {manifest.subject} are broken: {names}"
        raise Damaged(message, f"fetch them anew:  vllmctl verify --repair {manifest.subject}")


def fault(file: File, shelf: Shelf, commit: str) -> str:
    """What is wrong with a file on disk; empty if nothing is."""
    path = shelf.snapshot(commit) / file.path
    found = size_of(path)
    if found < 0:
        return "it is missing"
    if found != file.size:
        return f"it has {found} bytes instead of {file.size}"
    return "" if digest(path, file) == file.etag else "its content differs from the hub's"
