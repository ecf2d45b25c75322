"""GPUs that exist only in a folder: fake engines take memory there, and fake_driver/pynvml.py tells of it.

    virtual_gpus.make(folder, 80 * GIB, 80 * GIB)       two cards, GPU-0 and GPU-1
    Daemon(environ=virtual_gpus.environ(folder))        a vllmd that sees them, and so do its engines
    virtual_gpus.held(folder)                           who holds what

`cards.json` says which cards there are, and PID.json what a process holds: as long as it lives, also after a kill -9.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1 << 30
TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Gpu:
    """One card: the driver's name for it, and the bytes of its memory."""

    uuid: str
    total: int


@dataclass(frozen=True)
class Holding:
    """The bytes of a card's memory that a process holds; the moment of its start, in ticks, tells it from a later one
    of its number."""

    pid: int
    card: int
    bytes: int
    since: int


class NotFreeError(Exception):
    """There is less free memory than was asked for: `free` bytes."""

    def __init__(self, free: int) -> None:
        super().__init__(f"{free} bytes are free")
        self.free = free


def make(folder: Path, *totals: int) -> None:
    """Cards with so many bytes of memory each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cards.json").write_text(json.dumps([{"uuid": f"GPU-{n}", "total": t} for n, t in enumerate(totals)]))


def environ(folder: Path) -> dict[str, str]:
    """The variables of a vllmd process that sees these cards and no others."""
    return {"FAKE_GPUS": str(folder), "PYTHONPATH": f"{TESTS / 'fake_driver'}:{TESTS}"}


def cards(folder: Path) -> list[Gpu]:
    return [Gpu(**each) for each in json.loads((folder / "cards.json").read_text())]


def held(folder: Path) -> list[Holding]:
    """What living processes hold."""
    found = [Holding(**json.loads(file.read_text())) for file in folder.glob("[0-9]*.json")]
    return [each for each in found if each.bytes and _since(each.pid) == each.since]


def free(folder: Path, card: int) -> int:
    """Bytes of a card's memory that nobody holds."""
    return cards(folder)[card].total - sum(each.bytes for each in held(folder) if each.card == card)


def hold(folder: Path, pid: int, card: int, size: int) -> None:
    """Lets a process hold so many bytes of a card, instead of what it has held so far.

    Raises:
        NotFreeError: others hold too much; then everything is as it was.
    """
    with _alone(folder):
        mine = sum(each.bytes for each in held(folder) if each.pid == pid)
        if size > mine + (there := free(folder, card)):
            raise NotFreeError(there)
        draft = folder / f"{pid}.draft"
        draft.write_text(json.dumps(asdict(Holding(pid, card, size, _since(pid)))))
        draft.replace(folder / f"{pid}.json")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "cards.json", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _since(pid: int) -> int:
    """When a process was started; -1 for a dead one, also where its parent does not know yet (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if stat[0] in "ZX" else int(stat[19])
