"""One life of an engine: from its environment to the end of its last descendant."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vllmd import __version__
from vllmd.engine import evidence, gpu, memory, records
from vllmd.engine.causes import Cause
from vllmd.engine.client import EngineClient
from vllmd.engine.distributions import installed
from vllmd.engine.environment import Environment, ensure
from vllmd.engine.evidence import Evidence
from vllmd.engine.flags import require_known
from vllmd.engine.gauges import TRACE
from vllmd.engine.hub_verdicts import verdict_on
from vllmd.engine.kept import RECORD, Keeping, Kept, Record, Store, keep
from vllmd.engine.library import Provide
from vllmd.engine.phases import Phase, Progress, read_line
from vllmd.engine.plan import Plan
from vllmd.engine.process import Process, adopt, spawn
from vllmd.engine.redaction import redacted, secrets_in
from vllmd.engine.sleeping import put_to_sleep, wake
from vllmd.engine.startups import Recorder, Startups
from vllmd.engine.stay import Stay
from vllmd.engine.verdict import explain
from vllmd.engine.whole import WAITING
from vllmd.errors import (
    IndexUnreachable,
    InstallError,
    JobCancelled,
    NotInstallable,
    PullError,
    UnknownFlags,
    VllmdError,
)
from vllmd.incident import IncidentReport, Versions
from vllmd.lifecycle import Verdict
from vllmd.provisions import JobStatus
from vllmd.statuses import PhaseSpan

T = TypeVar("T")

LAST_LINES = 1000
"""Lines of the engine's output that are kept to explain its end: with many workers each prints a traceback."""

CPU_INTERVAL_S = 2.0
"""How often a start is looked at for work that prints nothing."""

CPU_SHARE = 0.05
"""The part of one core that counts as work; waiting processes use less for their timers."""

_CALLED_OFF = Verdict("stopped as asked", "the start was called off")


class Generation:
    """One life of an engine.

    Args:
        number: 1 for the first.
        plan: what to run.
        on_progress: called whenever the phase or its percentage changes.
        on_line: called with each line that the engine or the installer prints.
        on_work: called when a start did something that cannot be seen in its lines.
        store: keeps the engine for the next vllmd.
        kept: the engine, where an earlier vllmd has started it; None to start one.
        provide: sees to it that the model is on the disk.
        stay: its time in memory.
    """

    def __init__(
        self,
        number: int,
        plan: Plan,
        on_progress: Callable[[], None],
        on_line: Callable[[str], None],
        on_work: Callable[[], None],
        store: Store,
        kept: Kept | None,
        provide: Provide,
        stay: Stay,
    ) -> None:
        self.number = number
        self.was_ready = bool(kept and kept.record and kept.record.was_ready)
        self.progress: Progress | None = None
        self.environment: Path | None = None
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._evidence = Evidence()
        self._began_at = time.time() - (evidence.lived_s(kept.record.guard) if kept and kept.record else 0.0)
        self._plan = plan
        self._secrets = secrets_in({**plan.environ, **plan.model.env})
        self._on_progress = on_progress
        self._on_line = on_line
        self._on_work = on_work
        self._now = asyncio.get_running_loop().time
        self._startups = Startups(plan.state / "startups.json")
        self._earlier = self._startups.recall(plan.key) if kept is None else None
        self._recorder = Recorder(self._now())
        self._store = store
        self._kept = kept
        self._keeping: Keeping | None = None
        self._provide = provide
        self._stay = stay
        self._sleep_level = kept.record.sleep_level if kept and kept.record else 0
        self._pull: JobStatus | None = None
        self._process: Process | None = None
        self._preparing: asyncio.Task[Any] | None = None
        self._asked_to_end = False
        self._is_left = False
        self._has_woken = False

    @property
    def pid(self) -> int | None:
        """vLLM's own process (its API server), while there is one."""
        return self._process.leader if self._process else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the first token, judged by an earlier start like this one; None if there was none.

        A download says itself how long it takes; the start comes after it.
        """
        if self._pull and self._pull.eta_s is not None:
            return self._pull.eta_s + (self._earlier.total_s if self._earlier else 0.0)
        if self.was_ready or self.progress is None or self._earlier is None:
            return None
        return self._earlier.left_s(self.progress, self._recorder.in_phase_s(self._now()))

    @property
    def spans(self) -> tuple[PhaseSpan, ...]:
        """The phases of its start, or of its last wake; none where an earlier vllmd has seen that begin."""
        return self._recorder.spans() if self._kept is None or self._has_woken else ()

    async def run(self) -> Verdict:
        """Runs the engine; returns why it ended, and only when no process of it is alive any more."""
        try:
            if self._asked_to_end and self._kept is None:
                return _CALLED_OFF
            beginning = await self._begin()
            return beginning if isinstance(beginning, Verdict) else await self._live(beginning)
        except asyncio.CancelledError:
            if self._asked_to_end and not _being_cancelled():
                return _CALLED_OFF
            raise
        except (VllmdError, OSError) as error:
            return _why_not(error)
        finally:
            self._stay.end()
            self._recorder.end(self._now())
            if not self._is_left:
                self._plan.remove_directory(self.number)

    def became_ready(self) -> None:
        """The first token came: the start is over, and worth remembering if it was seen from its beginning."""
        self._recorder.end(self._now())
        if not self.was_ready and self._kept is None and (timeline := self._recorder.finish(self._now())):
            self._startups.remember(self._plan.key, timeline)
        if not self.was_ready and self._keeping:
            self._keeping.became_ready()
        self.was_ready = True
        self.progress = None

    async def sleep(self, client: EngineClient, level: int) -> None:
        """Has the engine give its memory back, and sees that it does. Raises SleepError if it does not."""
        self._note_move()
        await self._stay.rest(partial(put_to_sleep, client, level))
        self._note_sleep(level)

    async def wake(self, client: EngineClient) -> bool:
        """Waits until there is memory, and has the engine take it.

        Returns:
            Whether it is awake; it sleeps on if nobody waits for it any more.

        Raises:
            SleepError: it does not wake.
        """
        self._recorder, self._has_woken = Recorder(self._now()), True
        if not await self._stay.resume(self._waits_for_memory):
            return False
        self._note_move()
        self._report(Progress(Phase.WAKING_UP))
        await wake(client, self._sleep_level)
        self._note_sleep(0)
        return True

    def _note_move(self) -> None:
        if self._keeping:
            self._keeping.moves()

    def _note_sleep(self, level: int) -> None:
        self._sleep_level = level
        if self._keeping:
            self._keeping.sleeps(level)

    def leave(self) -> bool:
        """Lets go of the engine without ending it, if the next vllmd can go on with it; returns whether it can."""
        self._is_left = self._process is not None and self._keeping is not None and not self._asked_to_end
        if self._is_left and self._process:
            self._process.let_go()
        return self._is_left

    def terminate(self) -> None:
        """Asks the engine to end; what prepares for it is called off."""
        self._asked_to_end = True
        if self._process:
            self._process.terminate()
        elif self._preparing:
            self._preparing.cancel()

    def kill(self) -> None:
        """Ends the engine and all its descendants now."""
        self._asked_to_end = True
        if self._process:
            self._process.kill()
        elif self._preparing:
            self._preparing.cancel()

    async def examine(self) -> None:
        """Keeps what can be learned of a sick engine; takes at most `evidence.LIMIT_S` seconds."""
        if self._process:
            self._evidence = await evidence.examine(self._process.pid)

    def report(self, verdict: Verdict) -> IncidentReport:
        """What is known of its end; when it is written down it gets its name."""
        vllm, python = installed(self.environment) if self.environment else ("", "")
        gpus = self._evidence.gpus
        return IncidentReport(
            id="",
            at=0.0,
            model=self._plan.name,
            generation=self.number,
            cause=verdict.cause,
            reason=verdict.message,
            hint=verdict.hint,
            lived_s=round(time.time() - self._began_at, 3),
            was_ready=self.was_ready,
            permanent=verdict.permanent,
            config_digest=self._plan.digest,
            versions=Versions(__version__, vllm, python, os.uname().release, gpus.driver),
            gpus=gpus.lines,
            processes=self._evidence.processes,
            lines=tuple(self.lines),
        )

    async def _environment(self) -> Environment:
        settings = self._plan.environment
        if settings.path:
            return self._plan.existing_environment()
        folder = self._plan.state / "environments"
        return await ensure(
            settings.requirement,
            folder,
            settings.python,
            self._take_install,
            index=settings.index,
            asker=self._plan.name,
            alive=self._on_work,
        )

    async def _needs(self) -> tuple[Environment, Path | None]:
        """All that an engine needs before it can start: an environment that knows its flags, and its model."""
        environment = await self._environment()
        self.environment = environment.root
        if record := records.read(environment.root):
            require_known(self._plan.model.args, record.version or record.requirement, record.flags)
        try:
            return environment, await self._provide(self._plan, self._take_pull)
        finally:
            self._pull = None

    async def _prepare(self, work: Coroutine[Any, Any, T]) -> T:
        """Something that comes before the engine, and that can be called off."""
        task = asyncio.ensure_future(work)
        if self._asked_to_end:  # when the work before this had just ended
            task.cancel()
        self._preparing = task
        try:
            return await task
        finally:
            task.cancel()
            self._preparing = None

    async def _begin(self) -> AbstractAsyncContextManager[Process] | Verdict:
        """A start, or what goes on with the engine that is there; or why there is none."""
        if self._kept and self._kept.record and self._kept.tether:
            self.environment = _root_of(self._kept.record.leader)
            self._stay.inherit(self._plan, self.environment, is_asleep=bool(self._sleep_level))
            return adopt(self._kept.tether, self._kept.record.leader, self._take_line)
        environment, snapshot = await self._prepare(self._needs())
        if refusal := await self._prepare(self._stay.begin(self._plan, environment.root, self._waits_for_memory)):
            return refusal
        self._plan.make_directory(self.number)
        command = self._plan.command(self.number, environment, snapshot, can_sleep=self._stay.can_sleep)
        return spawn(command, self._take_line)

    async def _live(self, beginning: AbstractAsyncContextManager[Process]) -> Verdict:
        if not self.was_ready:
            self._report(Progress(Phase.STARTING_UP))
        killed_before = memory.oom_kills()
        async with beginning as process:
            self._process = process
            if self._asked_to_end:
                process.kill()
            with self._kept_safe(process):
                async with self._watching(process):
                    end = await process.wait()
        self._process = None
        killed = memory.kills_since(killed_before)
        return explain(end, tuple(self.lines), was_ready=self.was_ready, asked=self._asked_to_end, oom_kills=killed)

    @contextmanager
    def _kept_safe(self, process: Process) -> Iterator[None]:
        """Outlives vllmd in the store, for as long as it lives."""
        self._keeping = self._keep(process)
        try:
            yield
        finally:
            if self._keeping and self._is_left:
                self._keeping.let_go()
            elif self._keeping:
                self._keeping.end()
            self._keeping = None

    def _keep(self, process: Process) -> Keeping | None:
        if self._kept and self._kept.record:
            return Keeping(self._store, self._kept.record, self._kept.fds[RECORD])
        if not self._store.has_store or process.leader is None:
            return None
        record = Record(
            model=self._plan.name,
            generation=self.number,
            digest=self._plan.digest,
            directory=str(self._plan.directory(self.number)),
            guard=process.pid,
            leader=process.leader,
            token=process.tether.token,
        )
        return keep(self._store, process.tether, record)

    @asynccontextmanager
    async def _watching(self, process: Process) -> AsyncIterator[None]:
        """Looks for work that prints nothing, until the start is over; at the end, for the GPU's memory."""
        family: set[int] = set()
        watch = asyncio.create_task(self._watch(process.pid, family))
        try:
            yield
        finally:
            watch.cancel()
        if not self._asked_to_end:  # else it was looked at before it was killed
            self._evidence = Evidence(gpus=await gpu.facts())
        await gpu.memory_is_back(family)

    async def _watch(self, guard: int, family: set[int]) -> None:
        """Calls `on_work` while the engine's processes use the CPU; `family` collects their numbers."""
        before = evidence.cpu_s(guard)
        while not self.was_ready:
            await asyncio.sleep(CPU_INTERVAL_S)
            family.update(evidence.family(guard))
            now = evidence.cpu_s(guard)
            if now - before > CPU_SHARE * CPU_INTERVAL_S:
                self._on_work()
            before = now

    def _take_install(self, line: str) -> None:
        line = redacted(line, self._secrets)
        self._report(Progress(Phase.WAITING if line.startswith(WAITING) else Phase.INSTALLING))
        self.lines.append(line)
        self._on_line(line)

    def _take_pull(self, status: JobStatus) -> None:
        """News of a download; bytes that came are a sign of life, and so is that another one is not over yet."""
        is_waiting = status.phase.startswith(WAITING)
        if self._pull is None or status.done != self._pull.done or is_waiting:
            self._on_work()
        self._pull = status
        self._report(Progress(Phase.WAITING) if is_waiting else Progress(Phase.DOWNLOADING, status.percent))

    def _waits_for_memory(self) -> None:
        """It waits still; that others have their turn is no stall of its own."""
        self._report(Progress(Phase.WAITING_FOR_MEMORY))
        self._on_work()

    def _take_line(self, line: str) -> None:
        if line.endswith(TRACE):  # nobody but vllmd can have asked
            return
        line = redacted(line, self._secrets)
        self.lines.append(line)
        self._on_line(line)
        if not self.was_ready:
            self._report(read_line(line, self.progress or Progress(Phase.STARTING_UP)))

    def _report(self, progress: Progress) -> None:
        """How far its start has come, or its wake."""
        if progress != self.progress:
            self._recorder.note(progress.phase, self._now())
            self.progress = progress
            self._on_progress()


def _root_of(leader: int) -> Path | None:
    """The environment that a running engine was started from: it is `ROOT/bin/python ROOT/bin/vllm serve …`."""
    try:
        words = Path(f"/proc/{leader}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    python = Path(os.fsdecode(words[0]))
    return python.parent.parent if python.is_absolute() else None  # else it calls itself something


def _why_not(error: VllmdError | OSError) -> Verdict:
    """Why an engine was not even started."""
    match error:
        case IndexUnreachable():
            return Verdict(Cause.INDEX_UNREACHABLE, error.message, error.hint, retry_after_s=0.0)
        case InstallError():
            return Verdict("install failed", error.message, error.hint, permanent=isinstance(error, NotInstallable))
        case UnknownFlags():
            return Verdict(Cause.BAD_ARGUMENT, error.message, error.hint, permanent=True)
        case PullError():
            return verdict_on(error)
        case JobCancelled():
            return Verdict("pull cancelled", error.message, "pull or load it again", permanent=True)
        case VllmdError():
            return Verdict("cannot start", error.message, error.hint)
    return Verdict("cannot start", f"cannot prepare the start: {error}", "check the directories in [paths]")


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
