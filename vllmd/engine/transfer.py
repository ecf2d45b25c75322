"""One file from the hub to the disk: from where it broke off, compared with its digest, and only then in its place.

huggingface_hub's own downloads begin anew after an interruption (file_download.py, `_download_to_tmp_and_move`), so its
parts are used: the question where a file lies, and `http_get`, which goes on from a given byte.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vllmd.engine.hub import Shelf, size_of
from vllmd.engine.manifest import File
from vllmd.errors import Damaged

TRIES = 5
"""In a row without a new byte."""

PAUSE_S = 0.5
"""Before the second try; each later one waits twice as long."""

NOTHING_BEHIND = 416
"""The HTTP status of a file that ends where it was to go on."""

PIECE_BYTES = 1 << 18
"""So much is written, and read, at a time."""


class Place(NamedTuple):
    """Where a file's bytes are to be had.

    Args:
        url: there.
        headers: to be sent along; the token only to the hub itself.
    """

    url: str
    headers: dict[str, str]


Find = Callable[[File], Place]
"""Asks the hub where a file lies."""


def fetch(file: File, shelf: Shelf, find: Find) -> None:
    """Brings a file's content to its blob.

    Raises:
        Damaged: it came twice, and was not what it should be.
        Exception: what huggingface_hub, the network and the disk raise.
    """
    if size_of(shelf.blob(file.etag)) == file.size:
        return
    shelf.blobs.mkdir(parents=True, exist_ok=True)
    partial = shelf.partial(file.etag)
    for _ in range(2):
        _complete(file, partial, find)
        if digest(partial, file) == file.etag:
            _flush(partial)
            partial.replace(shelf.blob(file.etag))
            return
        partial.unlink()
    raise Damaged(
        f"{file.path} came twice, and both times damaged", "a proxy on the way may change it; try again later"
    )


def link(file: File, shelf: Shelf, commit: str) -> None:
    """Lets the model at `commit` have the file."""
    name = shelf.snapshot(commit) / file.path
    target = os.path.relpath(shelf.blob(file.etag), name.parent)
    if name.is_symlink() and os.readlink(name) == target:
        return
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{name.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(name)


def digest(path: Path, file: File) -> str:
    """The digest of what lies at `path`, of the kind that `file.etag` is."""
    if len(file.etag) == 64:
        found = hashlib.sha256()
    else:  # git's own name for it: what it counts as begins with its size
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as content:
        while piece := content.read(PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """Has all of a file on the disk, also what a process wrote that was killed."""
    with open(path, "rb") as content:
        os.fsync(content.fileno())


def _complete(file: File, partial: Path, find: Find) -> None:
    """Gets what is missing of `partial`, in several tries if it must be."""
    tries = 0
    while (before := size_of(partial)) != file.size:
        error = _try(file, partial, find)
        come = size_of(partial)
        if come > file.size:
            partial.unlink()
        tries = 1 if before < come < file.size else tries + 1
        if come != file.size and (tries >= TRIES or (error and not _may_pass(error))):
            raise error or Damaged(f"{file.path} ends after {max(come, 0)} of {file.size} bytes", "try again later")
        if come != file.size:
            time.sleep(PAUSE_S * 2 ** (tries - 1))


def _try(file: File, partial: Path, find: Find) -> Exception | None:
    """Gets the rest of a file; returns what came in between, if anything did."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    try:
        place = find(file)
        with open(partial, "ab") as content:
            try:
                http_get(place.url, content, resume_size=content.tell(), headers=place.headers)
            finally:
                content.flush()
    except HfHubHTTPError as error:
        return None if error.response.status_code == NOTHING_BEHIND else error
    except Exception as error:
        return error
    return None


def _may_pass(error: Exception) -> bool:
    """Whether the same may go well a moment later."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 408
    if isinstance(error, httpx2.TransportError):
        return not isinstance(error, httpx2.UnsupportedProtocol)
    return isinstance(error, OSError) and error.errno is None  # "Consistency check failed": it was cut
