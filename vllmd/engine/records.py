"""What is known of an environment since it was built: a file in it, written before it got its name."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllmd.engine.distributions import named

FILE = "vllmd.json"


@dataclass(frozen=True)
class Record:
    """An environment as it was built.

    Args:
        requirement: what was installed.
        interpreter: the real path of the Python that it was built with; empty where nobody knows.
        version: what `vllm --version` said.
        flags: the flags of `vllm serve`; none where they could not be listed.
        bytes: what it takes of the disk.
        installed_at: Unix seconds.
    """

    requirement: str
    interpreter: str = ""
    version: str = ""
    flags: tuple[str, ...] = ()
    bytes: int = 0
    installed_at: float = 0.0


def write(root: Path, record: Record) -> None:
    """Writes the record of the environment at `root`, as a whole."""
    fresh = root / f".{FILE}"
    fresh.write_text(json.dumps(asdict(record), indent=1))
    fresh.replace(root / FILE)


def read(root: Path) -> Record | None:
    """The record of the environment at `root`; of one without, what its name tells. None if it is no environment."""
    try:
        return _parse(json.loads((root / FILE).read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        requirement = named(root.name)
        return Record(requirement) if requirement else None


def _parse(table: Mapping[str, Any]) -> Record:
    return Record(
        str(table["requirement"]),
        str(table["interpreter"]),
        str(table["version"]),
        tuple(map(str, table["flags"])),
        int(table["bytes"]),
        float(table["installed_at"]),
    )


def disk_use(root: Path) -> int:
    """How many bytes of the disk a directory takes, stat(2); what it shares with uv's cache is counted."""
    files = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sum(os.lstat(each).st_blocks * 512 for each in files)
