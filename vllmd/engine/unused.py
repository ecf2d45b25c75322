"""Commits that were pulled here and have made way for newer ones: found, and taken off the disk when somebody says so.

A pull does not do it by itself. The engine that runs is made of the old commit, and reads it again when it wakes; until
the new one has served, the old one is the way back; and the cache is shared by design: another program may be pinned to
a commit that vllmd has pulled, and leaves no trace of that on the disk.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vllmd.engine import stock
from vllmd.engine.hub import Shelf
from vllmd.engine.manifest import Manifest, Manifests


def prune(
    manifests: Manifests,
    hubs: Sequence[Path],
    pins: Collection[tuple[str, str]],
    in_memory: Callable[[Manifest], bool],
) -> tuple[list[str], int]:
    """Takes them off the disk. Not for the event loop.

    Args:
        manifests: what was pulled.
        hubs: the caches.
        pins: the repositories and revisions of the configured models.
        in_memory: whether an engine is, or is about to be, made of a commit.

    Returns:
        What is gone, as people write it, and how many bytes that freed.
    """
    known = [*manifests, *manifests.pending]
    meant = {*pins, *((each.repo, each.commit) for each in known)}
    gone, freed = list[str](), 0
    for each in list(manifests.superseded):
        if (each.repo, each.commit) in meant or in_memory(each):
            continue
        if (size := _drop(each, hubs, known)) is not None:
            manifests.superseded.drop(each)
            gone.append(each.subject)
            freed += size
    return gone, freed


def _drop(manifest: Manifest, hubs: Sequence[Path], known: Sequence[Manifest]) -> int | None:
    """Drops a commit wherever it lies; returns the bytes, or None if it stays somewhere."""
    kept = [each for each in known if each.repo == manifest.repo]
    try:
        freed = [stock.drop(Shelf(hub, manifest.repo), manifest, kept) for hub in hubs]
    except BlockingIOError:
        return None  # somebody works on the same model: another time
    return None if None in freed else sum(each or 0 for each in freed)
