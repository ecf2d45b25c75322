"""The loop that owns one engine: events in, `step`, effects out.

Everything that happens to an engine becomes an event on one queue, and only this loop reads it. Nobody else changes
the engine's state: an operator's wish, a probe's result, a timer and an exit all take the same way. What the loop
decides is published as a `ModelStatus` on the feed; requests read that and wait for it, but decide nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.generation import Generation, Plan
from vllmd.engine.phases import Progress
from vllmd.engine.probe import probe
from vllmd.errors import ProbeFailed as NoToken
from vllmd.lifecycle import (
    Effect,
    Engine,
    Event,
    Exited,
    Kill,
    Policy,
    Probe,
    ProbeFailed,
    ProbeOk,
    Progressed,
    SetTimer,
    Spawn,
    State,
    Terminate,
    Timer,
    TimerFired,
    Unload,
    Verdict,
)
from vllmd.transitions import step
from vllmd.wire import ModelStatus

log = logging.getLogger(__name__)
engine_log = logging.getLogger("vllmd.engine.output")

PROGRESS_INTERVAL_S = 1.0
"""Signs of progress closer together than this, or than a tenth of the patience with a start, count once."""


class Supervisor:
    """One model's engine.

    Args:
        plan: what to run.
        policy: how patient to be.
        feed: where every change of state and phase is published.
        on_sign_of_life: called at most once a second while a start makes progress.
    """

    def __init__(
        self, plan: Plan, policy: Policy, feed: Feed, on_sign_of_life: Callable[[], None] = lambda: None
    ) -> None:
        self.plan = plan
        self.engine = Engine()
        self._policy = policy
        self._feed = feed
        self._on_sign_of_life = on_sign_of_life
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._generation: Generation | None = None
        self._client: EngineClient | None = None
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._probing: asyncio.Task[None] | None = None
        self._living: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._progressed_at = 0.0
        self._since = time.time()

    # ── what others may do: read, wait, post ──

    @property
    def name(self) -> str:
        """What the model is served as."""
        return self.plan.name

    @property
    def status(self) -> ModelStatus:
        """The engine as it is now."""
        engine, progress, verdict = self.engine, self._progress, self.engine.verdict
        return ModelStatus(
            name=self.name,
            model=self.plan.model.model,
            state=engine.state.value,
            default=self.plan.model.default,
            phase=progress.phase.value if progress else None,
            percent=progress.percent if progress else None,
            since=self._since,
            pid=self._generation.pid if self._generation else None,
            generation=engine.generation,
            restarts=engine.restarts,
            cause=verdict.cause if verdict else "",
            reason=verdict.message if verdict else "",
            hint=verdict.hint if verdict else "",
        )

    @property
    def client(self) -> EngineClient | None:
        """The way to the engine while it is ready; advice only, it may die the next moment."""
        return self._client if self.engine.state is State.READY else None

    @property
    def last_lines(self) -> list[str]:
        """What the current or the last generation printed last."""
        return list(self._generation.lines) if self._generation else []

    def post(self, event: Event) -> None:
        """Tells the supervisor that something happened, or that somebody wants something."""
        self._events.put_nowait(event)

    async def wait_for(self, *states: State) -> State:
        """Waits until the engine is in one of `states`; returns which."""
        seen = self._feed.last
        while self.engine.state not in states:
            await self._feed.after(seen)
            seen = self._feed.last
        return self.engine.state

    async def close(self) -> None:
        """Unloads the model and returns when nothing of its engine is alive."""
        self.post(Unload())
        await self.wait_for(State.STOPPED)

    # ── the loop ──

    async def run(self) -> None:
        """Carries events to `step` and effects to the world, until it is cancelled; then nothing stays alive."""
        try:
            while True:
                self._take(await self._events.get())
        finally:
            self._forget_timers()
            await _cancel(self._probing)
            await _cancel(self._living)

    def _take(self, event: Event) -> None:
        before = self.engine
        self.engine, effects = step(before, event, self._policy)
        if self.engine.state is not before.state:
            self._enter(before)
        for effect in effects:
            self._perform(effect)
        if self.engine.state is not before.state:
            self._publish()

    def _enter(self, before: Engine) -> None:
        """A new state begins: what the old one was waiting for is off."""
        self._forget_timers()
        if self._probing:
            self._probing.cancel()
        self._since = time.time()
        if self.engine.state is not State.STARTING:
            self._progress = None
        if self.engine.state is State.READY and self._generation:
            self._generation.was_ready = True
        verdict = self.engine.verdict
        if verdict and verdict is not before.verdict:
            log.error("%s: %s%s", self.name, verdict.message, f" ({verdict.hint})" if verdict.hint else "")
        log.info("%s: %s → %s", self.name, before.state, self.engine.state)

    def _forget_timers(self) -> None:
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn(number):
                # At once, not in the task: the next event may already be the one that ends it.
                self._generation = Generation(number, self.plan, self._on_progress, self._on_line)
                self._living = _start(self._live(self._generation))
            case Terminate():
                self._living_generation().terminate()
            case Kill():
                self._living_generation().kill()
            case Probe(after_s):
                self._probe(after_s)
            case SetTimer(timer, seconds):
                self._set_timer(timer, seconds)

    def _living_generation(self) -> Generation:
        assert self._generation is not None, "effects on an engine come only while one is alive"
        return self._generation

    async def _live(self, generation: Generation) -> None:
        """One generation, from its start to the report of its exit."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(EngineClient(generation.socket))
            try:
                verdict = await generation.run()
            except Exception as error:
                log.exception("%s: unforeseen error", self.name)
                verdict = Verdict("internal error", f"vllmd made a mistake: {error}", "please report it with the log")
        self.post(Exited(generation.number, verdict))

    def _set_timer(self, timer: Timer, seconds: float) -> None:
        if timer in self._timers:
            self._timers[timer].cancel()
        fired = TimerFired(self.engine.epoch, timer)
        self._timers[timer] = asyncio.get_running_loop().call_later(seconds, self.post, fired)

    def _probe(self, after_s: float) -> None:
        if self._probing:
            self._probing.cancel()
        self._probing = _start(self._probe_once(after_s, self.engine.epoch))

    async def _probe_once(self, after_s: float, epoch: int) -> None:
        await asyncio.sleep(after_s)
        assert self._client is not None
        try:
            await probe(self._client, self.name, self._policy.probe_timeout_s)
        except NoToken as error:
            self.post(ProbeFailed(epoch, error.message))
        else:
            self.post(ProbeOk(epoch))

    # ── news from the generation ──

    def _on_progress(self, progress: Progress) -> None:
        if self.engine.state is State.STARTING:
            self._progress = progress
            self._publish()
            self._moved()

    def _on_line(self, line: str) -> None:
        engine_log.info("%s: %s", self.name, line)
        self._moved()

    def _moved(self) -> None:
        now, interval_s = asyncio.get_running_loop().time(), min(PROGRESS_INTERVAL_S, self._policy.startup_stall_s / 10)
        if self.engine.state is State.STARTING and now - self._progressed_at >= interval_s:
            self._progressed_at = now
            self.post(Progressed(self.engine.epoch))
            self._on_sign_of_life()

    def _publish(self) -> None:
        self._feed.publish(self.status)


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    task.add_done_callback(_complain)
    return task


def _complain(task: asyncio.Task[None]) -> None:
    """A task that ends in an unforeseen error must not end in silence."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("internal error: %s", error, exc_info=error)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task and not task.done():
        task.cancel()
        await asyncio.wait([task])
