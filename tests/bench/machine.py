"""This machine, as the bench uses it: cores, limits, memory of processes, versions, and processes that end with it."""

import os
import platform
import re
import resource
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build/bench"
ENDS_WITHIN_S = 20.0


@dataclass(frozen=True)
class Cores:
    """Who runs where. The relay has a core of its own, so that it is neither helped nor held up by the others."""

    relay: int
    engine: int
    load: int

    @staticmethod
    def shared_out() -> "Cores":
        """The last core is the relay's; the first ones the engine's and the clients', which share one if need be."""
        mine = sorted(os.sched_getaffinity(0))
        others = mine[:-1] or mine
        return Cores(mine[-1], others[0], others[-1])


@dataclass(frozen=True)
class Memory:
    """What processes hold, in KiB: resident, and what is theirs alone."""

    resident_kib: int
    own_kib: int

    @staticmethod
    def of(pids: Collection[int]) -> "Memory":
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
        return Memory(
            sum(_kib(text, "Rss") for text in texts),
            sum(_kib(text, "Private_Clean") + _kib(text, "Private_Dirty") for text in texts),
        )


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}: +(\d+) kB", text, re.M)
    return int(found[1]) if found else 0


def raise_limits() -> int:
    """Lets this process and its children open as many files as they may; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextmanager
def running(
    argv: Sequence[str | Path], log: Path, core: int, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on that core, its output in `log`, ended with the block.

    Args:
        env: variables beside this process's own.
    """
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # inherited from its first moment on, by its own children too
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}, cwd=cwd
            )
    finally:
        os.sched_setaffinity(0, mine)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def facts(product: Path) -> dict[str, str | int | None]:
    """What the figures depend on: the product's revision, versions, the machine."""
    return {
        "revision": _revision(product),
        "python": platform.python_version(),
        "aiohttp": _version("aiohttp"),
        "uvloop": _version("uvloop"),
        "nproc": os.cpu_count(),
        "kernel": platform.release(),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _revision(product: Path) -> str | None:
    argv = ["git", "-C", str(product), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
