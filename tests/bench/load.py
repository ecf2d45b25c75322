"""2000 streams at once for a minute, whose clients die when they like: nothing is lost, and nothing is left.

    make load, or: python tests/bench/load.py [--streams 2000] [--seconds 60] [--rate 5] [--seed N] [--fake]

A vllmd on the bench's engine in C (or the fake one), which has places for nine tenths of the clients. What is looked
at: every finished answer, token by token; and what vllmd holds before, meanwhile and afterwards: memory, descriptors,
tasks, calls, and the engine's work. tests/server/test_load.py runs the short form.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # so that `bench` is this package, wherever this was started from

from daemons import Daemon, running  # noqa: E402
from waiting import until  # noqa: E402

from bench.machine import raise_limits  # noqa: E402 (only now is it found)
from bench.visitors import Book, Crowd, Pace  # noqa: E402

RAMP_S = 3.0
LOOKS = 3
"""So often it is looked at while the load lasts, evenly."""

SETTLED_MIB = 12.0
MOST_MIB = 0.1
"""From the first look on memory may grow by so much, and in all by so much for a stream."""

COUNTING = """
import asyncio, gc, os, signal
from pathlib import Path
from vllmd import daemon

def tell():
    path = Path(os.environ["LOAD_COUNTS"])
    path.with_suffix(".new").write_text(str(len(asyncio.all_tasks())))
    path.with_suffix(".new").rename(path)

async def counting(*arguments, serve=daemon.serve):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    await serve(*arguments)

daemon.serve = counting
daemon.main()
"""
"""vllmd as it is, which tells how many tasks it has whenever it gets SIGUSR1."""


@dataclass(frozen=True)
class Look:
    """What vllmd holds at one time."""

    when: str
    resident_mib: float
    files: int
    tasks: int
    running: int
    held: int
    engine: int
    """Requests on which the engine works."""

    def line(self, book: Book) -> str:
        return (
            f"{self.when:>14} {self.resident_mib:7.1f} {self.files:6} {self.tasks:6} {self.running:8} {self.held:6} "
            f"{self.engine:7} {book.saw['whole']:8} {book.saw.total() - book.saw['whole']:6} {book.tokens:9}"
        )


HEAD = "                RSS MiB  files  tasks  running   held  engine    whole   died    tokens"


def make_daemon(streams: int, *, fake: bool, rate_per_s: float) -> Daemon:
    """A daemon whose engine has places for most of so many."""
    knobs = {"tokens": 10_000, "tokens_per_s": rate_per_s}
    queue = {"limit": streams, "running": max(1, streams * 9 // 10), "wait_s": 600}
    launcher = ("-c", COUNTING)
    counts = Path("/tmp") / f"vllmd-load-{os.getpid()}"
    if fake:
        return Daemon(environ={"LOAD_COUNTS": str(counts)}, launcher=launcher, knobs=knobs, queue=queue)
    from bench.compiled import program

    environ = {"LOAD_COUNTS": str(counts), "BENCH_ENGINE": str(program("engine"))}
    daemon = Daemon(environ=environ, launcher=launcher, queue=queue)
    vllm = daemon.folder / "env/bin/vllm"
    vllm.unlink()
    vllm.symlink_to(Path(__file__).with_name("vllm_stub.py"))
    return daemon


class Load:
    """One run.

    Args:
        daemon: runs, and is alone.
        streams: how many clients there are at once.
        say: gets lines of the report.
    """

    def __init__(
        self, daemon: Daemon, streams: int, seconds: float, pace: Pace, seed: int, say: Callable[[str], None]
    ) -> None:
        self._daemon, self._streams, self._seconds, self._say = daemon, streams, seconds, say
        self.book = Book()
        self._crowd = Crowd([daemon.socket, daemon.port], pace, random.Random(seed), self.book)

    async def run(self) -> list[str]:
        """Returns what did not hold."""
        self._say(HEAD)
        before = await self._look("before")
        began_at, looks = time.monotonic(), []
        await self._let_in()
        for number in range(1, LOOKS + 1):
            after_s = self._seconds * number / LOOKS
            await asyncio.sleep(max(0.0, began_at + after_s - time.monotonic()))
            looks.append(await self._look(f"after {after_s:.0f} s"))
        await self._crowd.leave()
        await self._settle(before)
        after = await self._look("and then")
        return [*self._wrong(), *self._left(before, after), *self._grown(before, [*looks, after])]

    async def _let_in(self) -> None:
        for _ in range(self._streams):
            self._crowd.welcome()
            await asyncio.sleep(min(RAMP_S, self._seconds / 4) / self._streams)
        places = self._streams * 9 // 10
        await until(lambda: self._daemon.model().running >= places * 0.9, "most places to be taken")

    async def _settle(self, before: Look) -> None:
        """Waits for everything to go, as far as it does: idle connections to the engine are kept for three seconds."""
        left: list[str] = []

        async def is_gone() -> bool:
            left[:] = self._left(before, await self._look(""))
            return not left

        try:
            await until(is_gone, "everything to be gone", 15)
        except AssertionError:
            self._say(f"not gone after 15 s: {'; '.join(left)}")

    # ── what there is to see ──

    async def _look(self, when: str) -> Look:
        daemon = self._daemon
        model = await asyncio.to_thread(daemon.model)
        tasks = await self._tasks()
        files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        page = (await daemon.engine.ask("/metrics")).body
        works = re.search(rb"^vllm:num_requests_running\S* (\S+)$", page, re.M)
        assert works, page
        look = Look(when, resident_mib(daemon.pid), files, tasks, model.running, model.held, int(float(works[1])))
        if when:
            self._say(look.line(self.book))
        return look

    async def _tasks(self) -> int:
        path = Path(f"/tmp/vllmd-load-{os.getpid()}")
        path.unlink(missing_ok=True)
        self._daemon.signal(signal.SIGUSR1)
        await until(path.exists, "vllmd to count its tasks")
        try:
            return int(path.read_text())
        finally:
            path.unlink()

    # ── what must hold ──

    def _wrong(self) -> list[str]:
        none = [] if self.book.saw["whole"] else ["no answer came whole"]
        return none + [f"{len(self.book.wrong)} answers are wrong, such as {each}" for each in self.book.wrong[:3]]

    def _left(self, before: Look, after: Look) -> list[str]:
        return [
            f"{getattr(after, name)} {name} are left; before there were {getattr(before, name)}"
            for name in ("files", "tasks", "running", "held", "engine")
            if getattr(after, name) > getattr(before, name)
        ]

    def _grown(self, before: Look, looks: Sequence[Look]) -> list[str]:
        first, *later = (each.resident_mib for each in looks)
        complaints = []
        if first - before.resident_mib > max(SETTLED_MIB, MOST_MIB * self._streams):
            complaints.append(f"memory grew from {before.resident_mib:.0f} MiB to {first:.0f}")
        if max(later) > first + SETTLED_MIB:
            complaints.append(f"memory goes on growing, from {first:.0f} MiB to {max(later):.0f}")
        return complaints


def resident_mib(pid: int) -> float:
    """What a process holds in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


async def load(daemon: Daemon, wanted: Any, say: Callable[[str], None] = print) -> list[str]:
    """One run on a daemon that is ready; returns what did not hold.

    Args:
        wanted: streams, seconds, rate and seed, as attributes.
    """
    pace = Pace(wanted.rate, wanted.seconds / LOOKS)
    return await Load(daemon, wanted.streams, wanted.seconds, pace, wanted.seed, say).run()


def main(argv: Sequence[str]) -> int:
    """Runs it; the exit status is 1 if something did not hold."""
    wanted = parse(argv)
    raise_limits()
    print(f"{wanted.streams} streams of {wanted.rate:g} tokens/s for {wanted.seconds:g} s, seed {wanted.seed}")
    with running(make_daemon(wanted.streams, fake=wanted.fake, rate_per_s=wanted.rate)) as daemon:
        complaints = asyncio.run(load(daemon, wanted))
    print(*complaints or ["nothing is lost, and nothing is left"], sep="\n")
    return 1 if complaints else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000, help="clients at once")
    parser.add_argument("--seconds", type=float, default=60, help="how long the load lasts")
    parser.add_argument("--rate", type=float, default=5, help="tokens a second of each stream")
    parser.add_argument("--seed", type=int, default=1, help="another one is another load")
    parser.add_argument("--fake", action="store_true", help="on the fake engine, which needs no compiler")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
