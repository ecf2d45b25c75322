"""A vllmd on the fake engine under a steady load, and a seeded random series of faults: what holds after each of them?

`make chaos SECONDS=600 [SEED=…]`, or `python tests/chaos.py --seconds 600 [--seed N]`; tests/server/test_chaos.py runs
the short form. Each fault leaves the engine dead, sick, half started or half stopped, while clients stream through both
doors. After each the engine is made well again, and has to serve within a bound. The table at the end says for each
fault how long no client got any text, and how the answers ended that were under way.

All that must hold is in `Chaos.check` and `Chaos.check_idle`; steady_load judges answers, generations processes. No
client may see more of a fault than a pause: requests are sent again and streams go on, with the text of an undisturbed
engine. Only where the engine was stopped by order, or given up, may there be errors (`TOLD`).
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asking import Door
from daemons import UGLY, Daemon, running
from generations import GUARD, Witness, find, processes, watched
from steady_load import CHAT, COMPLETE, CONTINUED, SIMPLE, Clients, Question, question, steady
from waiting import until

from vllmd.lifecycle import ALIVE, State
from vllmd.statuses import ModelStatus, Status

TOKENS = 30
WELL: dict[str, Any] = {"tree": 1, "tokens": TOKENS, "tokens_per_s": 30}
"""The knobs of an engine that is left alone: each whole answer takes a second."""

BOUND_S = 60.0
"""Every answer ends within this time, and every engine is well again; some steps need ten seconds."""

CLIENTS = 6

IDLE_EVERY = 5
"""Steps between two pauses of the load, in which nothing may be left over."""

FDS_MORE = 12
"""Descriptors that an idle vllmd may have more than in its first pause: connections of clients who have just left."""

TASKS_MORE = 6
"""The same for tasks."""

SHOWN_CHARACTERS = 6000

SUPERVISION = {
    "probe_interval_s": 0.5,
    "probe_timeout_s": 3,
    "failure_threshold": 2,
    "stall_s": 2,
    "startup_stall_s": 4,
    "stop_timeout_s": 2,
    "restart_limit": 6,
}

REPLAYS = 8
"""Engines that one request may see die: no client shall see an error because two faults struck the same stream."""

COUNT_TASKS = """
import asyncio, gc, os, signal, sys

def write(*_):
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
    path = sys.argv[sys.argv.index("--config") + 1] + ".tasks"
    with open(path + ".draft", "w") as file:
        file.write("\\n".join(each.get_coro().__qualname__ for each in tasks))
    os.replace(path + ".draft", path)

signal.signal(signal.SIGUSR1, write)
from vllmd.daemon import main
main()
"""
"""vllmd, but for a signal at which it names the tasks of its loop."""


class ChaosError(AssertionError):
    """Something does not hold."""


@dataclass(frozen=True)
class Step:
    """What one fault did.

    Args:
        fault: its name.
        silence_s: the longest time without a token for any client.
        took_s: seconds until the engine was well again.
        saw: how the answers ended meanwhile.
    """

    fault: str
    silence_s: float
    took_s: float
    saw: Counter[str]

    def __str__(self) -> str:
        return f"{self.fault:28} {self.silence_s:5.1f} s without a token; clients saw {told(self.saw)}"


def told(saw: Counter[str]) -> str:
    """Outcomes and how often they came: `complete 12, error 5`."""
    return ", ".join(f"{what} {count}" for what, count in sorted(saw.items())) or "nothing"


class Chaos:
    """One daemon with its load.

    Args:
        daemon: running, on the fake engine.
        clients: the load.
        witness: who watches the processes.
        chance: every choice comes from it.
    """

    def __init__(self, daemon: Daemon, clients: Clients, witness: Witness, chance: random.Random) -> None:
        self.daemon = daemon
        self.clients = clients
        self.witness = witness
        self.chance = chance
        self.steps: list[Step] = []
        self._files = 0
        self._log_read = 0
        self._fds = self._tasks = 0

    # ── what faults are made of ──

    async def status(self) -> ModelStatus:
        """The model's, without stopping the load meanwhile."""
        answer = await self.daemon.unix.ask("/api/status")
        return Status.from_json(answer.json()).models[0]

    async def order(self, verb: str) -> None:
        """load, unload or restart, without waiting for its outcome."""
        answer = await self.daemon.unix.ask(f"/api/models/tiny/{verb}", b"")
        assert answer.status == 202, answer.body

    async def until_state(self, *states: str, after: int = 0) -> None:
        """Waits for one of these states, in a generation later than `after`."""

        async def is_so() -> bool:
            now = await self.status()
            return now.state in states and now.generation > after

        await until(is_so, f"{' or '.join(states)} after generation {after}", BOUND_S)

    async def until_generation(self, number: int) -> None:
        """Waits for a generation, or a later one."""

        async def is_so() -> bool:
            return (await self.status()).generation >= number

        await until(is_so, f"generation {number}", BOUND_S)

    def knobs(self, **faults: Any) -> None:
        """What the engine does from now on, or the next one from its start."""
        self.daemon.control(**WELL, **faults)

    def once(self) -> str:
        """A knob's value: the fault strikes one process only."""
        self._files += 1
        return str(self.daemon.folder / f"once{self._files}")

    async def strike(self, name: str, number: signal.Signals) -> int:
        """Sends a signal to a process of the living generation, as soon as it has one; returns the generation."""
        found: list[tuple[int, int]] = []

        async def is_there() -> bool:
            now = await self.status()
            pid = now.pid if name == LEADER else find(self.daemon, now.generation, name)
            if pid:
                found.append((now.generation, pid))
            return bool(pid)

        await until(is_there, f"an engine with a {name}", BOUND_S)
        generation, pid = found[-1]
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return generation

    # ── one step ──

    async def play(self, fault: str) -> Step:
        """Lets a fault happen, makes the engine well again, and checks. Raises ChaosError."""
        try:
            return await self._play(fault)
        except AssertionError as error:
            now = await self.status()
            raise ChaosError(f"{fault}: {error}\n{now}\n{self.daemon.log[-3000:]}") from error

    async def _play(self, fault: str) -> Step:
        self.clients.forget()
        began_at = time.monotonic()
        await FAULTS[fault](self)
        await self.heal()
        await self.be_answered()
        step = Step(fault, self.clients.silence_s(began_at), time.monotonic() - began_at, Counter(self.clients.saw))
        self.steps.append(step)
        self._check_pauses(step)
        await self.check()
        return step

    def _check_pauses(self, step: Step) -> None:
        if step.fault not in TOLD and step.saw.keys() - {COMPLETE, CONTINUED}:
            raise ChaosError(f"clients saw more than a pause: {told(step.saw)}")

    async def heal(self) -> None:
        """An engine that does what it should, at the latest after another start."""
        self.knobs()
        await self.until_state("ready", "stopped", "failed")
        await self.order("load")
        await self.until_state("ready")

    async def be_answered(self) -> None:
        """Waits until each client has had an answer; a request that falls victim to three faults would be given up."""
        enough = self.clients.saw[COMPLETE] + CLIENTS
        await until(lambda: self.clients.saw[COMPLETE] >= enough or self.clients.wrong, "complete answers", BOUND_S)

    # ── what has to hold ──

    async def check(self) -> None:
        """What has to hold after each step. Raises ChaosError."""
        wrong = [*self.clients.wrong, *self.witness.wrong]
        if wrong:
            raise ChaosError("\n".join(wrong))
        await until(self._is_consistent, "state, processes and directories to agree", BOUND_S)
        log = self.daemon.log
        if ugly := UGLY.search(log, self._log_read):
            raise ChaosError(f"the log has: {log[ugly.start() - 500 : ugly.end() + 3000]}")
        self._log_read = len(log)

    async def _is_consistent(self) -> bool:
        now = await self.status()
        generations = set(processes(self.daemon))
        directories = {int(path.suffix[1:]) for path in self.daemon.folder.glob("r/*.*")}
        living = {now.generation} if State(now.state) in ALIVE else set()
        return generations == directories == living and bool(now.pid) is bool(living)

    async def check_idle(self) -> None:
        """What has to hold while nobody asks: nothing is left over, and nothing grows. Raises ChaosError."""
        await self.clients.pause()
        await until(self._counts_nothing, "no call to be left in vllmd", BOUND_S)
        fds, tasks = len(os.listdir(f"/proc/{self.daemon.pid}/fd")), await self._count_tasks()
        self._fds, self._tasks = self._fds or fds, self._tasks or len(tasks)
        if fds > self._fds + FDS_MORE:
            raise ChaosError(f"vllmd has {fds} descriptors; in the first pause it had {self._fds}")
        if len(tasks) > self._tasks + TASKS_MORE:
            raise ChaosError(f"vllmd has {len(tasks)} tasks; in the first pause it had {self._tasks}: {tasks}")
        await self.check()
        self.clients.go_on()
        since = time.monotonic()
        await until(lambda: self.clients.heard_at > since, "text for a client", BOUND_S)

    async def _counts_nothing(self) -> bool:
        now = await self.status()
        return now.running == now.held == 0

    async def _count_tasks(self) -> list[str]:
        file = tasks_file(self.daemon)
        file.unlink(missing_ok=True)
        os.kill(self.daemon.pid, signal.SIGUSR1)
        await until(file.exists, "vllmd to count its tasks")
        return file.read_text().split("\n")


def tasks_file(daemon: Daemon) -> Path:
    """Where the launcher writes the names of vllmd's tasks."""
    return daemon.config.with_suffix(".toml.tasks")


# ── the faults ──

LEADER = "leader"
CORE, WORKER, STRAY = "VLLM::EngineCor", "VLLM::Worker", "VLLM::Stray"

Fault = Callable[[Chaos], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


def fault(act: Fault) -> Fault:
    """Enters a fault under its function's name."""
    FAULTS[act.__name__.replace("_", " ")] = act
    return act


def _signal(said: str, name: str, number: signal.Signals) -> None:
    async def act(it: Chaos) -> None:
        before = await it.strike(name, number)
        await it.until_generation(before + 1)

    FAULTS[said] = act


_signal("kill -9 leader", LEADER, signal.SIGKILL)
_signal("kill -9 EngineCore", CORE, signal.SIGKILL)
_signal("kill -9 Worker", WORKER, signal.SIGKILL)
_signal("kill -9 guard", GUARD, signal.SIGKILL)
_signal("SIGSTOP leader", LEADER, signal.SIGSTOP)
_signal("SIGSTOP EngineCore", CORE, signal.SIGSTOP)
_signal("SIGSTOP Worker", WORKER, signal.SIGSTOP)


@fault
async def stop_guard_then_restart(it: Chaos) -> None:
    before = await it.strike(GUARD, signal.SIGSTOP)
    await it.order("restart")
    await it.until_generation(before + 1)


@fault
async def hang_with_health_200(it: Chaos) -> None:
    before = await it.status()
    it.knobs(fault="hang", once=it.once())
    await it.until_generation(before.generation + 1)


@fault
async def slow_start(it: Chaos) -> None:
    it.knobs(ready_after_s=2)
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("ready", after=before)


@fault
async def crash_at_the_first_request(it: Chaos) -> None:
    before = await it.status()
    it.knobs(fault="cut", fault_request=2, fault_exit="SIGKILL")  # the first one is the health check
    await it.until_generation(before.generation + it.chance.randint(2, 4))


@fault
async def crash_during_start(it: Chaos) -> None:
    how = it.chance.choice(["exit:1", "exit:0", "signal:9", "signal:11"])
    it.knobs(start_end=how, start_at=it.chance.random(), ready_after_s=0.3)
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_generation(before + 3)


@fault
async def crashes_until_it_has_failed(it: Chaos) -> None:
    it.knobs(start_end="exit:1", start_last="ValueError: out of luck")
    await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("failed")


@fault
async def start_that_never_ends(it: Chaos) -> None:
    it.knobs(start_end="never", once=it.once(), start_term=it.chance.choice(["die", "ignore", "hang"]))
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_generation(before + 2)


@fault
async def struck_during_start(it: Chaos) -> None:
    it.knobs(ready_after_s=3)
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("starting", after=before)
    await it.strike(it.chance.choice([LEADER, CORE, GUARD]), signal.SIGKILL)
    it.knobs()
    await it.until_state("ready", after=before)


@fault
async def garbage_on_stdout(it: Chaos) -> None:
    it.knobs(garbage=1)
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("ready", after=before)


@fault
async def flood_of_lines(it: Chaos) -> None:
    it.knobs(flood=3000)  # five times what a pipe holds
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("ready", after=before)
    asked = len(it.daemon.journal("request"))
    await until(lambda: len(it.daemon.journal("request")) >= asked + 3, "some requests that flood the log", BOUND_S)


@fault
async def ignores_sigterm(it: Chaos) -> None:
    it.knobs(term=it.chance.choice(["ignore", "hang"]))
    before = await it.status()
    await it.order("restart")
    await it.until_generation(before.generation + 1)


@fault
async def restart_as_ordered(it: Chaos) -> None:
    before = await it.status()
    await it.order("restart")
    await it.until_generation(before.generation + 1)


@fault
async def unload_during_start(it: Chaos) -> None:
    it.knobs(ready_after_s=3, start_term=it.chance.choice(["die", "ignore", "hang"]))
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("starting", after=before)
    await it.order("unload")
    await it.until_state("stopped")


@fault
async def load_during_stop(it: Chaos) -> None:
    it.knobs(term_delay_s=1)
    before = await it.status()
    await it.order("unload")
    await it.until_state("stopping", "stopped")
    await it.order("load")
    await it.until_state("ready", after=before.generation)


@fault
async def restart_while_restarting(it: Chaos) -> None:
    it.knobs(term_delay_s=0.5, ready_after_s=1)
    before = await it.status()
    await it.order("restart")
    await it.until_state("stopping", "starting")
    await it.order("restart")
    await it.until_state("starting", after=before.generation)
    await it.order("restart")
    await it.until_state("ready", after=before.generation + 1)


@fault
async def orders_all_at_once(it: Chaos) -> None:
    verbs = it.chance.choices(["load", "unload", "restart"], k=it.chance.randint(2, 6))
    await asyncio.gather(*map(it.order, verbs))
    await it.until_state("ready", "stopped", "failed")


@fault
async def stray_process(it: Chaos) -> None:
    it.knobs(stray=1)
    before = await it.strike(LEADER, signal.SIGKILL)
    await it.until_state("ready", after=before)
    assert find(it.daemon, (await it.status()).generation, STRAY)
    before = await it.strike(it.chance.choice([LEADER, GUARD, CORE]), signal.SIGKILL)
    await it.until_generation(before + 1)


@fault
async def fault_while_requests_are_held(it: Chaos) -> None:
    it.knobs(ready_after_s=2)
    before = await it.strike(LEADER, signal.SIGKILL)

    async def held() -> bool:
        return (await it.status()).held > 0

    await until(held, "requests to be held", BOUND_S)
    await it.until_state("starting", after=before)
    await it.strike(it.chance.choice([LEADER, CORE, GUARD]), signal.SIGKILL)
    await it.until_state("ready", after=before + 1)


@fault
async def two_faults_at_once(it: Chaos) -> None:
    names = it.chance.sample([LEADER, CORE, WORKER, GUARD], k=2)
    before = await it.status()
    for name in names:
        await it.strike(name, it.chance.choice([signal.SIGKILL, signal.SIGSTOP]))
    await it.order("restart")
    await it.until_generation(before.generation + 1)


TOLD = {
    "crash at the first request",
    "crashes until it has failed",
    "load during stop",
    "orders all at once",
    "unload during start",
}
"""After these clients may see errors: the engine was stopped by order, or given up, or dies of requests themselves."""


# ── the run ──


def questions(door: Door) -> Iterator[Question]:
    """All that clients ask the fake engine through that door."""
    words = [f"{' ' if number else ''}tok{number}" for number in range(TOKENS)]
    for path in (CHAT, SIMPLE):
        for stream in (True, True, True, False):  # mostly streams
            for most in (TOKENS // 3, 10 * TOKENS):
                finish = "length" if most < TOKENS else "stop"
                yield question(door, path, stream=stream, max_tokens=most, text="".join(words[:most]), finish=finish)


def make_daemon() -> Daemon:
    """A daemon that counts its tasks when asked to."""
    return Daemon(
        launcher=("-c", COUNT_TASKS),
        knobs=WELL,
        supervision=SUPERVISION,
        queue={"status_after_s": 1},
        replay={"limit": REPLAYS},
    )


@asynccontextmanager
async def chaos_on(daemon: Daemon, seed: int) -> AsyncIterator[Chaos]:
    """Load and witness around a running daemon."""
    chance = random.Random(seed)
    doors = [daemon.unix, daemon.tcp] * (CLIENTS // 2)
    async with (
        watched(daemon) as witness,
        steady([list(questions(door)) for door in doors], chance, BOUND_S) as clients,
    ):
        yield Chaos(daemon, clients, witness, chance)


def deck(chance: random.Random) -> Iterator[str]:
    """Faults for ever: each once, in a new order each time."""
    while True:
        names = list(FAULTS)
        chance.shuffle(names)
        yield from names


async def run(daemon: Daemon, seed: int, seconds: float, say: Callable[[str], None]) -> list[Step]:
    """Plays faults for so many seconds; returns what they did. Raises ChaosError."""
    end = time.monotonic() + seconds
    async with chaos_on(daemon, seed) as chaos:
        await chaos.check_idle()
        for number, name in enumerate(deck(chaos.chance), 1):
            say(f"{number:4} {await chaos.play(name)}")
            if number % IDLE_EVERY == 0:
                await chaos.check_idle()
            if time.monotonic() > end:
                break
        await chaos.check_idle()
        if not any(step.saw[CONTINUED] for step in chaos.steps):
            raise ChaosError("no answer was continued")
        say(f"the slowest end of an engine, from its leader's to its last process's: {chaos.witness.slowest_s:.1f} s")
        return list(chaos.steps)


def table(steps: Iterable[Step]) -> str:
    """A row for each fault."""
    by_fault: dict[str, list[Step]] = {}
    for step in steps:
        by_fault.setdefault(step.fault, []).append(step)
    rows = ["| fault | times | s without a token: median | worst | what clients saw |", "|---|---|---|---|---|"]
    for name, each in sorted(by_fault.items()):
        silences = [step.silence_s for step in each]
        saw = sum((step.saw for step in each), Counter[str]())
        figures = f"{statistics.median(silences):.1f} | {max(silences):.1f}"
        rows.append(f"| {name} | {len(each)} | {figures} | {told(saw)} |")
    return "\n".join(rows)


def shortened(text: str) -> str:
    """The beginning and the end of a text that may hold a whole log."""
    return text if len(text) < SHOWN_CHARACTERS else f"{text[:1000]}\n[…]\n{text[-SHOWN_CHARACTERS:]}"


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description="vllmd on the fake engine, with faults.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    daemon = make_daemon()
    try:
        with running(daemon):
            steps = asyncio.run(run(daemon, arguments.seed, arguments.seconds, lambda line: print(line, flush=True)))
    except AssertionError as error:
        print(f"seed {arguments.seed}: {shortened(str(error))}", file=sys.stderr)
        return 1
    print(table(steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
