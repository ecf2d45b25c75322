"""The program that fetches and verifies models: `python -m vllmd.engine.pulling ORDER`, with the order as JSON.

A process of its own, so that hundreds of megabytes of libraries and buffers go when it goes, nothing of it can hold up
the event loop, and to kill it is to cancel it. It says what it does in lines of JSON, of one key each:

    {"line": "…"}                     for people
    {"progress": ["downloading", done, total]}
    {"error": [code, message, hint]}  the last line, if it failed; of RateLimited the seconds too
    {"done": true}                    the last line, if not

It dies with the process that started it (PR_SET_PDEATHSIG, prctl(2)): what has come stays, and the next one goes on.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from vllmd.engine.hub import Shelf
from vllmd.engine.hub_errors import Asked, explained
from vllmd.engine.manifest import File, Manifest, Manifests
from vllmd.engine.selection import chosen, has_weights
from vllmd.engine.transfer import PIECE_BYTES, Place, fetch, link
from vllmd.engine.verifying import Say, verify
from vllmd.errors import NoSpace, NotOnHub, PullError, RateLimited, outcome_of
from vllmd.provisions import size

AT_ONCE = 8
"""Files that are fetched at the same time, as huggingface_hub does."""

PROGRESS_S = 0.25

SPARE_BYTES = 256 << 20
"""Room that a download leaves to others."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Verb(StrEnum):
    """What to do with a model."""

    PULL = "pull"
    """Ask the hub what the revision is now, and fetch that."""

    COMPLETE = "complete"
    """Fetch what is missing of what was pulled, and other files of that commit if others are wanted now. Where nothing
    was pulled, like PULL."""

    VERIFY = "verify"
    """Compare what lies on disk with its digests."""

    REPAIR = "repair"
    """The same, and fetch anew what is broken."""


@dataclass(frozen=True)
class Order:
    """What to do.

    Args:
        verb: a `Verb`.
        repo: the model's name on the hub.
        revision: a branch, tag or commit; empty for the hub's default.
        patterns: of the files that are wanted; empty for those that vLLM needs.
        hub: the cache.
        state: the directory of the manifests.
        parent: the process with which this one is to die.
    """

    verb: str
    repo: str
    revision: str
    patterns: tuple[str, ...]
    hub: str
    state: str
    parent: int


def encode(order: Order) -> str:
    """As the command line has it."""
    return json.dumps(asdict(order))


def decode(text: str) -> Order:
    """Reads what `encode` wrote."""
    table = json.loads(text)
    return Order(**{**table, "patterns": tuple(table["patterns"])})


class Hub:
    """The hub that huggingface_hub's own variables name."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi, constants, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES  # what it holds back of its 10 MB is lost when a connection breaks
        self.endpoint = constants.ENDPOINT
        self.has_token = bool(get_token())
        self._api = HfApi()

    def manifest(self, repo: str, revision: str, patterns: Sequence[str]) -> Manifest:
        """What the model is at the moment. Raises what huggingface_hub raises, and NotOnHub if nothing fits."""
        info = self._api.model_info(repo, revision=revision or None, files_metadata=True, timeout=30)
        found = {each.path: each for each in map(_file, info.siblings or ())}
        files = tuple(found[path] for path in chosen(found, patterns))
        if not files or not (patterns or has_weights(each.path for each in files)):
            raise NotOnHub(
                f"{repo} holds no weights that vLLM loads", "those are safetensors, .bin and .pt; or set `files`"
            )
        manifest = Manifest(repo, revision, info.sha or "", files, time.time(), selections=(tuple(patterns),))
        if not manifest.is_sound:
            raise PullError(f"what the model hub says of the files of {repo} makes no sense", "is HF_ENDPOINT a hub?")
        return manifest

    def place(self, manifest: Manifest, file: File) -> Place:
        """Where a file's bytes lie. The token goes to the hub itself and to nobody that it points at."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        url = hf_hub_url(manifest.repo, file.path, revision=manifest.commit, endpoint=self.endpoint)
        location = get_hf_file_metadata(url, timeout=30).location
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if not location.startswith(f"{self.endpoint}/"):
            headers.pop("authorization", None)
        return Place(location, headers)


def _file(sibling: Any) -> File:
    etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return File(sibling.rfilename, -1 if sibling.size is None else sibling.size, etag or "")


def carry_out(order: Order, say: Say) -> None:
    """Does what is ordered. Raises PullError and its kin."""
    shelf, manifests, hub = Shelf(Path(order.hub), order.repo), Manifests(Path(order.state)), Hub()
    try:
        _be_alone(shelf, say)
        agreed = None if order.verb == Verb.PULL else manifests.find(order.repo, order.revision)
        if order.verb == Verb.COMPLETE and agreed is None:
            agreed = manifests.pending.find(order.repo, order.revision)
        if order.verb in (Verb.VERIFY, Verb.REPAIR) and agreed:
            verify(agreed, shelf, say, is_repaired=order.verb == Verb.REPAIR)
        if order.verb != Verb.VERIFY:
            _pull(order, agreed, shelf, hub, manifests, say)
    except Exception as error:
        raise explained(error, Asked(hub.endpoint, order.repo, order.revision, hub.has_token)) from error


def _pull(order: Order, agreed: Manifest | None, shelf: Shelf, hub: Hub, manifests: Manifests, say: Say) -> None:
    manifest = agreed
    if manifest is None:
        say("progress", ["asking the hub", None, None])
        manifest = hub.manifest(order.repo, order.revision, order.patterns)
    elif order.verb == Verb.COMPLETE and not manifest.covers(order.patterns):
        say("progress", ["asking the hub", None, None])
        manifest = manifest.joined(hub.manifest(order.repo, manifest.commit, order.patterns))
    free = shutil.disk_usage(shelf.root).free
    check_room(manifest.size - shelf.there(manifest), free, manifest.subject, shelf.hub)
    manifests.supersede(manifest)
    manifests.pending.put(manifest)
    with _repeated(partial(_tell, shelf, manifest, say)):
        _fetch_all(manifest, shelf, lambda file: hub.place(manifest, file))
    _note(shelf, manifest)
    manifests.put(manifest)
    manifests.pending.drop(manifest)


def check_room(need: int, free: int, subject: str, hub: Path) -> None:
    """Raises NoSpace if `need` bytes do not fit into the `free` ones of the cache."""
    if need > 0 and need > free - SPARE_BYTES:
        where = f"where models lie ({hub})"
        message = f"{subject} needs {size(need)} more, and {size(max(free, 0))} are free {where}"
        raise NoSpace(message, "make room:  vllmctl models --local;  vllmctl rm MODEL;  or set paths.cache")


def _fetch_all(manifest: Manifest, shelf: Shelf, find: Callable[[File], Place]) -> None:
    """Small files first: what is wrong with the model shows early."""
    pool = ThreadPoolExecutor(AT_ONCE)
    files = sorted(manifest.unique, key=lambda file: file.size)
    tasks = [pool.submit(fetch, file, shelf, find) for file in files]
    try:
        for task in as_completed(tasks):
            task.result()
    finally:
        # Of a failure nobody has to wait for the others: whoever started this program ends it then.
        pool.shutdown(wait=False, cancel_futures=True)
    for file in manifest.files:
        link(file, shelf, manifest.commit)


def _note(shelf: Shelf, manifest: Manifest) -> None:
    """Lets others find the commit by the revision's name, as huggingface_hub does."""
    if manifest.revision != manifest.commit:
        ref = shelf.ref(manifest.revision)
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(f".{ref.name}.{os.getpid()}")
        fresh.write_text(manifest.commit)
        fresh.replace(ref)


def _be_alone(shelf: Shelf, say: Say) -> None:
    """Nobody else changes the same model until this process ends: two would write into one file."""
    shelf.root.mkdir(parents=True, exist_ok=True)
    lock = os.open(shelf.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("line", "waiting for another process that works on the same model")
        with _repeated(lambda: say("progress", ["waiting for another process", None, None])):
            fcntl.flock(lock, fcntl.LOCK_EX)


def _tell(shelf: Shelf, manifest: Manifest, say: Say) -> None:
    """Tells how much has come, by what lies on the disk."""
    done = shelf.there(manifest)
    say("progress", ["downloading" if done < manifest.size else "verifying", done, manifest.size])


@contextmanager
def _repeated(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` now and then until the block is left, and once more then."""
    over = threading.Event()

    def run() -> None:
        is_last = False
        while not is_last:
            is_last = over.is_set()
            tell()
            over.wait(PROGRESS_S)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def die_with(parent: int) -> bool:
    """Has the kernel kill this process when the one that started it ends; returns whether that one is still there."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def run(text: str, say: Say) -> int:
    """Carries out the order in `text`; returns the exit status. What went wrong is the last thing said."""
    order = decode(text)
    if not die_with(order.parent):
        return 1
    try:
        carry_out(order, say)
    except PullError as error:
        more = [error.retry_after_s] if isinstance(error, RateLimited) else []
        say("error", [outcome_of(error).code, error.message, error.hint, *more])
        return 1
    say("done", True)
    return 0


def to_stdout(key: str, value: object) -> None:
    """Says something in a line of JSON."""
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({key: value}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], to_stdout))
