"""The parts of the bench that are written in C, compiled where they are new or have changed."""

import shutil
import subprocess
from pathlib import Path

from bench.machine import BUILT

SOURCES = Path(__file__).parent
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-O2")


def program(name: str) -> Path:
    """The executable made of NAME.c. Raises SystemExit where it cannot be made."""
    source, target = SOURCES / f"{name}.c", BUILT / name
    newest = max(each.stat().st_mtime for each in (source, *SOURCES.glob("*.h")))
    if not target.exists() or target.stat().st_mtime < newest:
        _compile(source, target)
    return target


def _compile(source: Path, target: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("bench: it needs a C compiler:  apt-get install gcc libc6-dev")
    print(f"compiling {source.name}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_suffix(".new")  # renamed when it is complete, so that it is never half of one
    ran = subprocess.run([compiler, *FLAGS, "-o", str(whole), str(source)], check=False)
    if ran.returncode:
        raise SystemExit(f"bench: {source} cannot be compiled; if headers are missing:  apt-get install libc6-dev")
    whole.replace(target)
