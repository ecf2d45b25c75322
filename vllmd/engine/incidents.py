"""One file for each engine that died or was replaced, bounded in number and size, and the way to read them again.

A file is written beside and renamed, so that none is ever seen half. Whatever else lies in the directory is passed
over, with a word in the log, and never touched.
"""

import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vllmd.incident import NAME, Incident, IncidentReport, read
from vllmd.wire import to_json

log = logging.getLogger(__name__)

KEEP = 100
"""Files; the oldest make way."""

TOTAL_BYTES = 16 * 1024 * 1024
"""All files together; the newest may stay whatever its size."""

READ_BYTES = 4 * 1024 * 1024
"""No file that was written here is as large; a larger one is not read."""

LAST_LINES = 200
CHARACTERS = 100_000
"""Of the last lines together, and of the stacks together."""

_KIND = ".json"
_DRAFT = ".draft"


class Archive:
    """The files.

    Args:
        directory: made when the first incident is written, for its owner alone: engines print what they were asked.
        keep, total_bytes: how many files, and how large, are kept.
    """

    def __init__(self, directory: Path, keep: int = KEEP, total_bytes: int = TOTAL_BYTES) -> None:
        self._directory = directory
        self._keep = keep
        self._total_bytes = total_bytes
        self._read: dict[tuple[str, int, int], Incident | None] = {}
        """What was found in a file of that name, time and size; None where it could not be read."""
        self._passed_over: set[str] = set()

    def write(self, report: IncidentReport) -> Incident | None:
        """Writes a file and drops the oldest ones; None, and a line in the log, if that is impossible.

        Args:
            report: it gets its name, and the present time, here.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            told = bounded(self._named(report, time.time()))
            self._put(told)
            self._drop_oldest()
        except (OSError, ValueError) as error:
            log.warning("cannot write down how generation %d of %s ended: %s", report.generation, report.model, error)
            return None
        return told.glance

    def latest(self, count: int, model: str | None = None) -> list[Incident]:
        """The newest incidents, the newest first.

        Args:
            count: so many at most.
            model: only this one's; None for all.
        """
        found: list[Incident] = []
        for path in reversed(self._files()):
            if len(found) >= count:
                break
            if (incident := self._glance(path)) and model in (None, incident.model):
                found.append(incident)
        return found

    def find(self, name: str) -> IncidentReport | None:
        """The whole incident of that name; None if there is none that can be read."""
        try:
            return _read(self.path(name)) if NAME.fullmatch(name) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._pass_over(self.path(name).name, error)
            return None

    def path(self, name: str) -> Path:
        """Where the incident of that name lies."""
        return self._directory / f"{name}{_KIND}"

    def _glance(self, path: Path) -> Incident | None:
        """What a file says, read once for as long as it stays the same."""
        try:
            facts = path.lstat()
        except OSError:
            return None  # it has made way meanwhile
        key = (path.name, facts.st_mtime_ns, facts.st_size)
        if key not in self._read:
            try:
                self._read[key] = _read(path).glance
            except (OSError, ValueError) as error:
                self._pass_over(path.name, error)
                self._read[key] = None
            if len(self._read) > 2 * self._keep:
                self._read.pop(next(iter(self._read)))
        return self._read[key]

    def _files(self) -> list[Path]:
        """The files that are named as incidents are, the oldest first."""
        try:
            entries = sorted(os.scandir(self._directory), key=lambda each: each.name)
        except OSError:
            return []
        found = []
        for each in entries:
            stem, dot, kind = each.name.rpartition(".")
            if dot + kind == _KIND and NAME.fullmatch(stem) and each.is_file(follow_symlinks=False):
                found.append(self._directory / each.name)
            elif dot + kind != _DRAFT:
                self._pass_over(each.name, "its name is none of an incident's")
        return found

    def _pass_over(self, name: str, reason: object) -> None:
        """Says once that there is something that is no incident."""
        if name not in self._passed_over:
            self._passed_over.add(name)
            log.warning("%s in %s is passed over: %s", name, self._directory, reason)

    def _named(self, report: IncidentReport, now: float) -> IncidentReport:
        """The same with its time and its name: by name is by age, also for those of one instant."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", report.model).strip("-")[:40] or "model"
        while any(self._directory.glob(f"{_stamp(now)}-*")):
            now += 0.001
        return replace(report, id=f"{_stamp(now)}-{slug}-{report.generation}", at=round(now, 3))

    def _put(self, report: IncidentReport) -> None:
        path = self.path(report.id)
        draft = path.with_suffix(_DRAFT)
        text = json.dumps(to_json(report), indent=1, ensure_ascii=False).encode(errors="backslashreplace")
        try:
            with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)

    def _drop_oldest(self) -> None:
        """Makes room; what a vllmd that was killed had begun to write goes as well."""
        for draft in self._directory.glob(f"*{_DRAFT}"):
            if NAME.fullmatch(draft.stem):
                draft.unlink(missing_ok=True)
        kept = size = 0
        for path in reversed(self._files()):
            kept, size = kept + 1, size + path.lstat().st_size
            if kept > 1 and (kept > self._keep or size > self._total_bytes):
                path.unlink(missing_ok=True)


def archive_in(state: Path) -> Archive:
    """The incidents of all models of the daemon whose state lies there."""
    return Archive(state / "incidents")


def _stamp(at: float) -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(at))}.{int(at * 1000) % 1000:03}"


def bounded(report: IncidentReport) -> IncidentReport:
    """The same, with no more lines and stacks than a file is meant to hold: the last lines, the first stacks."""
    left, processes = CHARACTERS, []
    for each in report.processes:
        processes.append(replace(each, stack=each.stack[:left]))
        left -= len(processes[-1].stack)
    lines = tuple(_last(report.lines[-LAST_LINES:], CHARACTERS))[::-1]
    return replace(report, lines=lines, processes=tuple(processes[:LAST_LINES]), gpus=report.gpus[:LAST_LINES])


def _last(lines: Sequence[str], characters: int) -> Iterator[str]:
    """The last lines, the last one first, of so many characters together."""
    for line in reversed(lines):
        if characters <= 0:
            return
        yield line[:characters]
        characters -= len(line)


def _read(path: Path) -> IncidentReport:
    """What stands in a file. Raises OSError or ValueError if it is not what its name says."""
    facts = path.lstat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > READ_BYTES:
        raise ValueError("it is no file, or too large for one")
    try:
        report = read(IncidentReport, json.loads(path.read_bytes()))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if report.id != path.stem:
        raise ValueError(f"it says that it is {report.id[:80]!r}")
    return report
