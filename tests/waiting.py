"""Waiting for what other processes do: conditions with a deadline, and what /proc says about processes."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.1


async def until(condition: Callable[[], object | Awaitable[object]], what: str, deadline_s: float = 30.0) -> None:
    """Waits until a condition, a function or a coroutine function, is true.

    Args:
        what: what is waited for, for the message: "the engine to be ready".
        deadline_s: seconds; generous, as a test machine may be busy.

    Raises:
        AssertionError: it did not become true in time.
    """
    for pause_s in _pauses(what, deadline_s):
        answer = condition()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        await asyncio.sleep(pause_s)


def until_sync(condition: Callable[[], object], what: str, deadline_s: float = 30.0) -> None:
    """`until` for tests without a loop."""
    for pause_s in _pauses(what, deadline_s):
        if condition():
            return
        time.sleep(pause_s)


def _pauses(what: str, deadline_s: float) -> Iterator[float]:
    end, pause_s = time.monotonic() + deadline_s, FIRST_PAUSE_S
    while time.monotonic() < end:
        yield pause_s
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
    raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")


def alive(pid: int) -> bool:
    """Whether that process runs; a zombie does not."""
    stat = _stat(pid)
    return bool(stat) and stat[0] not in "ZX"


def descendants(pid: int) -> set[int]:
    """The processes below that one, zombies left out; without those that were adopted by init."""
    parents = {other: int(stat[1]) for other in _pids() if (stat := _stat(other)) and stat[0] not in "ZX"}
    found: set[int] = set()
    below = {pid}
    while below := {other for other, parent in parents.items() if parent in below} - found:
        found |= below
    return found


def processes_with_environ(key: str, value: str) -> set[int]:
    """The processes that were started with that environment variable, wherever in the tree they are now.

    /proc keeps the environment of the last exec, so forks that never exec are found too.
    """
    wanted = f"{key}={value}".encode()
    return {pid for pid in _pids() if wanted in _read(pid, "environ").split(b"\0") and alive(pid)}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # gone meanwhile, or somebody else's
        return b""
