"""One file for each engine that died or was replaced: the verdict and the evidence, bounded in number and size."""

import json
import logging
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vllmd.engine.evidence import Evidence
from vllmd.lifecycle import Verdict

log = logging.getLogger(__name__)

KEEP = 50
"""Files; the oldest make way."""

LAST_LINES = 200
LINE_CHARACTERS = 2000


@dataclass(frozen=True)
class Incident:
    """An engine's end that nobody asked for.

    Args:
        model, generation: whose.
        verdict: why.
        lived_s: seconds from its start to its end.
        was_ready: whether it had served.
        lines: what it printed last.
        evidence: what was found while it still lay there; None if it was gone already.
    """

    model: str
    generation: int
    verdict: Verdict
    lived_s: float
    was_ready: bool
    lines: tuple[str, ...]
    evidence: Evidence | None


class Incidents:
    """The files.

    Args:
        directory: made when the first incident is written, for its owner alone: engines print what they were asked.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, incident: Incident) -> Path | None:
        """Writes a file and drops the oldest ones; None, and a line in the log, if that is impossible."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", incident.model).strip("-")[:40]
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        path = self._directory / f"{stamp}-{slug}-{incident.generation}.json"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(
                os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600),
                "w",
                encoding="utf-8",
                errors="backslashreplace",
            ) as file:
                json.dump(_table(incident, stamp), file, indent=1, ensure_ascii=False)
            self._drop_oldest()
        except (OSError, ValueError) as error:
            log.warning("cannot write the incident %s: %s", path, error)
            return None
        return path

    def _drop_oldest(self) -> None:
        for path in sorted(self._directory.glob("*.json"))[:-KEEP]:
            path.unlink(missing_ok=True)


def _table(incident: Incident, stamp: str) -> dict[str, object]:
    lines = [line[:LINE_CHARACTERS] for line in incident.lines[-LAST_LINES:]]
    return {"at": stamp, **asdict(incident), "lines": lines}
