"""Long work of the daemon's own: a model is pulled, an environment is installed.

A job belongs to nobody: it goes on when the client that asked for it leaves, and ends when it is done, has failed, or
is cancelled. There is one for each subject at a time; who asks for the same again gets the one that runs. What it does
is published on the feed: every change of phase, and its figures now and then. Who does the work reports it, and cleans
up when it is cancelled: a job's end says that nothing of it runs any more.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

from vllmd.engine.feed import Feed
from vllmd.engine.pace import Pace
from vllmd.errors import JobCancelled, VllmdError, outcome_of
from vllmd.provisions import JobState, JobStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_LINES = 200
KEPT_JOBS = 32
"""So many jobs that have ended are remembered."""

PUBLISHED_S = 1.0
"""Figures of one job are published no more often; whoever asks gets the present ones."""


class Kind(StrEnum):
    """What a job does; the values are shown to people."""

    PULL = "pull"
    VERIFY = "verify"
    INSTALL = "install"
    USE = "use"


class Job(Generic[T]):
    """One piece of long work; made by `Jobs.ask`.

    Args:
        id: as in its path.
        kind: what is done.
        subject: what it is done to.
        publish: called when there is news of it.
        brings: all that comes of it, beyond what every job of its kind brings.
    """

    def __init__(
        self,
        id: str,
        kind: Kind,
        subject: str,
        publish: Callable[[JobStatus], None],
        brings: frozenset[str] = frozenset(),
    ) -> None:
        self.id = id
        self.kind = kind
        self.subject = subject
        self.brings = brings
        self.lines: list[str] = []
        self._publish = publish
        self._followers: list[Callable[[JobStatus], None]] = []
        self._started_at = time.time()
        self._ended_at: float | None = None
        self._phase = ""
        self._done: int | None = None
        self._total: int | None = None
        self._pace = Pace()
        self._error: VllmdError | None = None
        self._task: asyncio.Task[T] | None = None
        self._is_called_off = False
        self._published_at = 0.0

    # ── for who does the work ──

    def report(self, phase: str, done: int | None = None, total: int | None = None) -> None:
        """What is being done, and how far it is.

        Args:
            phase: a few words, as in "downloading".
            done, total: bytes; None where nobody counts.
        """
        is_new, now = phase != self._phase, time.monotonic()
        self._phase, self._done, self._total = phase, done, total
        self._pace = (Pace() if is_new else self._pace).after(now, done or 0)
        if is_new or now - self._published_at >= PUBLISHED_S:
            self._tell()

    def line(self, text: str) -> None:
        """Something that was said about it."""
        self.lines = [*self.lines[-KEPT_LINES + 1 :], text]
        log.info("%s: %s", self, text)

    # ── for who wants it done ──

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self._ended_at is not None

    @property
    def status(self) -> JobStatus:
        """The job as it is now."""
        now, error = time.monotonic(), self._error
        rate = None if self.is_over else self._pace.per_s(now)
        return JobStatus(
            id=self.id,
            kind=self.kind.value,
            subject=self.subject,
            state=self._state().value,
            phase=self._phase,
            done=self._done,
            total=self._total,
            bytes_per_s=None if rate is None or self._done is None else round(rate, 1),
            eta_s=None if self.is_over else self._pace.left_s(now, self._total),
            started_at=self._started_at,
            ended_at=self._ended_at,
            code=outcome_of(error).code if error else "",
            reason=error.message if error else "",
            hint=error.hint if error else "",
        )

    async def result(self) -> T:
        """What came of it; whoever stops waiting for that does not stop the job.

        Raises:
            JobCancelled: somebody called it off.
            VllmdError: it has failed.
        """
        assert self._task is not None, "it was begun when it was made"
        await asyncio.wait([self._task])
        await asyncio.sleep(0)  # `_finish` is called before whoever waits, or at the same time
        if self._error:
            # A new one each time: an exception that several raise would collect the tracebacks of all.
            raise _again(self._error)
        return self._task.result()

    @contextmanager
    def followed(self, told: Callable[[JobStatus], None]) -> Iterator[None]:
        """Calls `told` with what is published of it, for as long as the block lasts."""
        self._followers.append(told)
        try:
            yield
        finally:
            self._followers.remove(told)

    def cancel(self) -> None:
        """Calls it off. Nothing happens if it is over, or was called off: it may be putting things back."""
        if self._task and not self.is_over and not self._is_called_off:
            self._is_called_off = True
            self._task.cancel()

    # ── its life ──

    def begin(self, work: Callable[["Job[T]"], Awaitable[T]], after: Sequence["Job[Any]"] = ()) -> None:
        """Does the work, in a context of its own: what it logs is not about the request that may have brought it.

        Args:
            after: jobs that have to be over first.
        """
        self._task = asyncio.get_running_loop().create_task(self._run(work, after), context=Context())
        self._task.add_done_callback(self._finish)
        self._tell()

    async def end(self) -> None:
        """Calls it off, and returns when nothing of it runs any more."""
        self.cancel()
        if self._task:
            await asyncio.wait([self._task])

    async def _run(self, work: Callable[["Job[T]"], Awaitable[T]], after: Sequence["Job[Any]"]) -> T:
        while tasks := [each._task for each in after if each._task and not each._task.done()]:
            self.report(f"waiting for another {self.kind} of it")  # again and again: it is alive
            await asyncio.wait(tasks, timeout=PUBLISHED_S)
        log.info("%s: begins", self)
        return await work(self)

    def _finish(self, task: "asyncio.Task[T]") -> None:
        self._ended_at = time.time()
        self._error = self._failure(None if task.cancelled() else task.exception(), task.cancelled())
        state = self.status.sentence()
        hint = f" ({self._error.hint})" if self._error and self._error.hint else ""
        log.log(logging.ERROR if self._state() is JobState.FAILED else logging.INFO, "%s: %s%s", self, state, hint)
        self._tell()

    def _failure(self, error: BaseException | None, is_cancelled: bool) -> VllmdError | None:
        if is_cancelled:
            return JobCancelled(f"the {self.kind} of {self.subject} was cancelled")
        if error is None or isinstance(error, VllmdError):
            return error
        log.error("%s: unforeseen error", self, exc_info=error)
        return VllmdError(f"vllmd made a mistake: {error}", "please report it with the log")

    def _state(self) -> JobState:
        if not self.is_over:
            return JobState.RUNNING
        if isinstance(self._error, JobCancelled):
            return JobState.CANCELLED
        return JobState.FAILED if self._error else JobState.DONE

    def _tell(self) -> None:
        self._published_at = time.monotonic()
        status = self.status
        for told in (self._publish, *self._followers):
            told(status)


def _again(error: VllmdError) -> VllmdError:
    same = error.__class__.__new__(error.__class__)
    same.__dict__.update(error.__dict__)
    same.args = error.args
    return same


class Jobs(Mapping[str, Job[Any]]):
    """The jobs that run, and the last ones that have ended: id → job.

    Args:
        feed: where they are published.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._all: dict[str, Job[Any]] = {}
        self._last = 0
        self._closed: set[Kind] = set()

    def __getitem__(self, id: str) -> Job[Any]:
        return self._all[id]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def are_running(self) -> bool:
        """Whether there is any that is not over."""
        return not all(each.is_over for each in self._all.values())

    def ask(
        self,
        kind: Kind,
        subject: str,
        work: Callable[[Job[T]], Awaitable[T]],
        brings: frozenset[str] = frozenset(),
    ) -> Job[T]:
        """Begins a job, unless one that brings as much runs already: then that one is what the caller gets.

        Args:
            kind, subject: what is done, and to what; the same kind is done to one subject once at a time.
            work: does it, and reports to the job. When it is cancelled it leaves nothing behind that runs.
            brings: what the caller wants of it beyond the rest; after a job that brings less another one is begun.
        """
        running = [each for each in self._all.values() if _is(each, kind, subject)]
        if found := next((each for each in running if brings <= each.brings), None):
            return cast(Job[T], found)
        self._last += 1
        job: Job[T] = Job(str(self._last), kind, subject, self._feed.publish, brings)
        self._all[job.id] = job
        self._forget()
        job.begin(work, running)
        if kind in self._closed:
            job.cancel()
        return job

    async def close(self, *kinds: Kind) -> None:
        """Calls all of them off, or those of some kinds, and returns when nothing of them runs any more."""
        self._closed.update(kinds or Kind)
        await asyncio.gather(*(each.end() for each in self._all.values() if each.kind in self._closed))

    def _forget(self) -> None:
        over = [each.id for each in self._all.values() if each.is_over]
        for id in over[:-KEPT_JOBS]:
            del self._all[id]


def _is(job: Job[Any], kind: Kind, subject: str) -> bool:
    return (job.kind, job.subject) == (kind, subject) and not job.is_over
