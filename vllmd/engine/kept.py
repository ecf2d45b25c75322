"""Engines that outlive one vllmd to be adopted by the next: what systemd keeps of them, and who may have it.

Of each engine four descriptors go into systemd's file descriptor store (FDSTORE=1 in sd_notify(3)): the three of its
tether, and a record (memfd_create(2)) of what it is. systemd holds them while the service restarts, after whatever end
of vllmd, and lets go of them when it stops or fails for good. Then the lifeline closes, and the guard ends the engine.
So nobody has to tell a stop from a restart for promise 2, and an engine lives without a vllmd only as long as systemd
is about to start one.

Nothing that was stored is trusted to fit: the record says which model the engine serves and how, and what does not
match the present configuration is ended.
"""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from vllmd.engine import evidence, gpu, tree
from vllmd.engine.plan import Plan
from vllmd.engine.tether import Tether, mark
from vllmd.passed import STORED, Passed

VERSION = 1
"""Of the record and of what is said over the lifeline. A vllmd adopts engines of its own version alone."""

RECORD, LIFELINE, LOG, GUARD = "record", "lifeline", "log", "guard"
PARTS = (LIFELINE, LOG, GUARD, RECORD)


class Store(Protocol):
    """Where descriptors outlive vllmd (notify.Notifier)."""

    @property
    def has_store(self) -> bool:
        """Whether anything is kept."""

    def keep(self, name: str, fd: int) -> None:
        """Keeps a copy of `fd` under `name`."""

    def forget(self, name: str) -> None:
        """Closes what is kept under `name`."""


class Nowhere:
    """The store of a vllmd whose engines end with it."""

    has_store = False

    def keep(self, name: str, fd: int) -> None:
        """Keeps nothing."""

    def forget(self, name: str) -> None:
        """Has nothing."""


NOWHERE = Nowhere()


@dataclass(frozen=True)
class Record:
    """What a vllmd has to know of an engine that it did not start.

    Args:
        model: its name.
        generation: its number.
        digest: the plan's; another one is another engine.
        directory: the generation's.
        guard, leader: process numbers, of the guard and of vLLM.
        token: by which all its processes are known.
        was_ready: whether tokens ever came out of it.
        sleep_level: at which it sleeps; 0 if it does not.
        is_moving: whether it is falling asleep or waking up, so that nobody can tell which memory it has.
    """

    model: str
    generation: int
    digest: str
    directory: str
    guard: int
    leader: int
    token: str
    was_ready: bool = False
    sleep_level: int = 0
    is_moving: bool = False
    version: int = VERSION


def encode(record: Record) -> bytes:
    """As it is stored."""
    return json.dumps(asdict(record)).encode()


def decode(data: bytes) -> Record | None:
    """Reads what `encode` wrote; None for anything else, another version's record included."""
    try:
        record = Record(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers, flags = {"generation", "guard", "leader", "sleep_level", "version"}, {"was_ready", "is_moving"}
    kinds: dict[str, type] = {**dict.fromkeys(numbers, int), **dict.fromkeys(flags, bool)}
    sound = all(type(value) is kinds.get(name, str) for name, value in asdict(record).items())
    return record if sound and record.version == VERSION else None


class Keeping:
    """One engine in the store, for as long as it lives.

    Args:
        store: where.
        record: what it is.
        file: the record's.
    """

    def __init__(self, store: Store, record: Record, file: int) -> None:
        self._store = store
        self._record = record
        self._file = file

    def became_ready(self) -> None:
        """A token came out of it."""
        self._note(replace(self._record, was_ready=True))

    def sleeps(self, level: int) -> None:
        """It was put to sleep at that level, or at level 0 woken up."""
        self._note(replace(self._record, sleep_level=level, is_moving=False))

    def moves(self) -> None:
        """It begins to fall asleep, or to wake up."""
        self._note(replace(self._record, is_moving=True))

    def _note(self, record: Record) -> None:
        self._record = record
        _write(self._file, record)

    def end(self) -> None:
        """The engine has ended: nothing of it needs to be kept."""
        _forget(self._store, _stem(self._record))
        self.let_go()

    def let_go(self) -> None:
        """The store goes on without us."""
        os.close(self._file)


def keep(store: Store, tether: Tether, record: Record) -> Keeping:
    """Puts a living engine into the store."""
    file = os.memfd_create(f"{STORED}{RECORD}")
    _write(file, record)
    fds = {LIFELINE: tether.lifeline.fileno(), LOG: tether.log, GUARD: tether.pidfd, RECORD: file}
    for part, fd in fds.items():
        store.keep(_name(_stem(record), part), fd)
    return Keeping(store, record, file)


def _write(file: int, record: Record) -> None:
    data = encode(record)
    os.pwrite(file, data, 0)
    os.ftruncate(file, len(data))


def _stem(record: Record) -> str:
    return Path(record.directory).name


def _name(stem: str, part: str) -> str:
    return f"{STORED}{stem}.{part}"


def _forget(store: Store, stem: str) -> None:
    for part in PARTS:
        store.forget(_name(stem, part))


@dataclass(frozen=True)
class Kept:
    """What systemd has passed of one engine.

    Args:
        stem: what the names of its descriptors have in common.
        fds: part → descriptor, all of them.
        record: what it is; None where that cannot be read.
        tether: what holds it, made of those descriptors; None where one is missing.
    """

    stem: str
    fds: Mapping[str, int]
    record: Record | None
    tether: Tether | None

    def obstacle(self, plans: Mapping[str, Plan]) -> str:
        """Why nobody can go on with it; empty if its model's supervisor can.

        Args:
            plans: model → what would be run now.
        """
        if self.record is None:
            return "what is kept of it was written by another version, or is damaged"
        if self.tether is None:
            return "a part of what held it is missing"
        plan = plans.get(self.record.model)
        if plan is None:
            return "its model is not configured any more"
        if (plan.digest, str(plan.directory(self.record.generation))) != (self.record.digest, self.record.directory):
            return "its model, arguments, variables or environment have changed"
        if self.record.is_moving:
            return "it was falling asleep or waking up"
        return "" if self.tether.is_alive else "it has ended meanwhile"

    async def end(self, store: Store) -> None:
        """Ends it; returns when nothing of it is alive."""
        family = set(evidence.family(self.tether.guard)) if self.tether and self.tether.is_alive else set[int]()
        if LIFELINE in self.fds:
            _cut(self.fds[LIFELINE])
        if self.record:
            await asyncio.to_thread(tree.sweep, mark(self.record.token))
            shutil.rmtree(self.record.directory, ignore_errors=True)
        await gpu.memory_is_back(family)
        _forget(store, self.stem)
        self._close()

    def _close(self) -> None:
        if self.tether:
            self.tether.let_go()
        held = {LIFELINE, GUARD} if self.tether else set[str]()
        for fd in (fd for part, fd in self.fds.items() if part not in held):
            os.close(fd)


def _cut(fd: int) -> None:
    """Cuts a lifeline, for all who hold it."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as lifeline:
        lifeline.shutdown(socket.SHUT_WR)


def found(passed: Iterable[Passed]) -> list[Kept]:
    """The engines among the descriptors that systemd passes."""
    engines: dict[str, dict[str, int]] = {}
    for each in passed:
        if each.is_stored:
            os.set_inheritable(each.fd, False)
            stem, _, part = each.name.removeprefix(STORED).rpartition(".")
            engines.setdefault(stem, {})[part] = each.fd
    return [_kept(stem, fds) for stem, fds in engines.items()]


def _kept(stem: str, fds: Mapping[str, int]) -> Kept:
    record = _read(fds[RECORD]) if RECORD in fds else None
    tether = None
    if record and fds.keys() >= set(PARTS):
        lifeline = socket.socket(fileno=fds[LIFELINE])
        lifeline.setblocking(False)
        tether = Tether(record.guard, fds[GUARD], lifeline, fds[LOG], record.token)
    return Kept(stem, fds, record, tether)


def _read(fd: int) -> Record | None:
    with suppress(OSError):
        return decode(os.pread(fd, 65536, 0))
    return None
