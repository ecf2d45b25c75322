"""Clients that stall or leave, engines that die: what memory and how many milliseconds each relay takes for it."""

import os
import signal
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from waiting import until_sync

from bench import asking
from bench.machine import Memory
from bench.relays import Setting, Way, answers, told, vllmd

STALL_LEAST_S, STALL_MOST_S, LOOK_INTERVAL_S = 1.5, 8.0, 0.05
TIMES = 7
SLOW_MS = 500.0
"""Who is so slow is asked no second time."""

PREFILL_S = 3
"""Silence before the first token, and so the time after which the most careless relay notices that nobody listens."""

NS_PER_MS = 1e6
STAMP = b'"content":"0'
"""What the first token of a stream looks like."""


@dataclass(frozen=True)
class Stalled:
    """A client that does not read, of an engine that sends as fast as it can.

    Args:
        growth_kib: the most that the relay grew by.
        is_flat: whether it did not grow in the second half of the time.
        engine_sent_kib: what the engine got rid of, and so lies in the relay and in sockets.
    """

    growth_kib: int
    is_flat: bool
    engine_sent_kib: int


@dataclass(frozen=True)
class Delay:
    """Milliseconds that something took, several times."""

    median_ms: float
    worst_ms: float
    times: int

    @staticmethod
    def of(all_ms: Sequence[float]) -> "Delay":
        return Delay(round(statistics.median(all_ms), 3), round(max(all_ms), 3), len(all_ms))


def stalled(way: Way) -> Stalled:
    """Opens a stream without end, reads nothing of it, and watches until the engine can send no more."""
    before, sent_before = Memory.of(way.pids).own_kib, told(way.engine())["bytes"]
    with asking.open_stream(way.address, "rate=0", 100_000_000, way.key):
        grown = [each - before for each in _watch(way)]
        sent = told(way.engine())["bytes"] - sent_before
    _until_idle(way)
    middle = len(grown) // 2
    return Stalled(max(grown), max(grown[middle:]) <= max(grown[:middle]) + 64, sent // 1024)


def _watch(way: Way) -> list[int]:
    """KiB of the relay's own memory in equal intervals, for as long as the engine gets on, and longer."""
    seen: list[int] = []
    tokens, began_at = [told(way.engine())["tokens"]], time.monotonic()
    for number in range(1, int(STALL_MOST_S / LOOK_INTERVAL_S)):
        time.sleep(max(0.0, began_at + number * LOOK_INTERVAL_S - time.monotonic()))  # equal intervals are the point
        seen.append(Memory.of(way.pids).own_kib)
        tokens.append(told(way.engine())["tokens"])
        is_still = len(tokens) > 10 and tokens[-1] == tokens[-10]
        if is_still and number * LOOK_INTERVAL_S > STALL_LEAST_S:
            break
    return seen


def gone(way: Way, said: str, sign: bytes) -> Delay:
    """From the moment when a client closes its connection to that when the engine sees its own closed.

    Args:
        said: how the engine is to answer.
        sign: what the client waits for before it leaves; empty: until the engine has the request.
    """
    all_ms: list[float] = []
    while len(all_ms) < TIMES and not (all_ms and all_ms[-1] > SLOW_MS):
        all_ms.append(_leave(way, said, sign))
    return Delay.of(all_ms)


def _leave(way: Way, said: str, sign: bytes) -> float:
    aborted = told(way.engine())["aborted"]
    with asking.open_stream(way.address, said, key=way.key) as connection:
        if sign:
            asking.read_until(connection, sign)
        until_sync(lambda: told(way.engine())["open"], "the engine to stream")
        left_ns = time.monotonic_ns()
    until_sync(lambda: told(way.engine())["aborted"] > aborted, f"{way.name} to notice that its client is gone")
    _until_idle(way)
    return (told(way.engine())["last_aborted_ns"] - left_ns) / NS_PER_MS


def _until_idle(way: Way) -> None:
    until_sync(lambda: not told(way.engine())["open"], "the engine to be idle")


def killed(setting: Setting, times: int) -> Delay:
    """From an engine's SIGKILL to the error event that vllmd's client reads, where no other engine may continue."""
    with vllmd(setting, "vllmd-killed", replays=0) as (way, *_):
        return Delay.of([_kill(way) for _ in range(times)])


def _kill(way: Way) -> float:
    until_sync(lambda: answers(way), "vllmd to answer")
    with asking.open_stream(way.address, "rate=50", key=way.key) as connection:
        asking.read_until(connection, STAMP)
        killed_ns = time.monotonic_ns()
        os.kill(told(way.engine())["pid"], signal.SIGKILL)
        asking.read_until(connection, b'"error"')
        return (time.monotonic_ns() - killed_ns) / NS_PER_MS


def measure(setting: Setting, ways: Sequence[Way], kills: int) -> dict[str, dict[str, object]]:
    """All of it, by way; of vllmd only its main door, of the direct way nothing.

    Args:
        kills: how many engines of vllmd's are killed.
    """
    found: dict[str, dict[str, object]] = {}
    for way in (each for each in ways if each.name not in ("direct", "vllmd-unix", "vllmd-prompt")):
        print(f"faults     {way.name}", flush=True)
        found[way.name] = {
            "stalled": asdict(stalled(way)),
            "gone_mid_stream": asdict(gone(way, "rate=50", STAMP)),
            "gone_in_prefill": asdict(gone(way, f"rate=50 prefill={PREFILL_S}", b"")),
        }
    if kills and "vllmd" in found:
        print("faults     engine killed", flush=True)
        with suppress(AssertionError):
            found["vllmd"]["engine_killed"] = asdict(killed(setting, kills))
    return found
