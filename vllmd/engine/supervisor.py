"""The loop that owns one engine: events in, `step`, effects out.

Everything that happens to an engine becomes an event on one queue, and only this loop reads it. Nobody else changes
the engine's state: an operator's wish, a probe's result, a timer and an exit all take the same way. What the loop
decides is published as a `ModelStatus` on the feed; requests read that and wait for it, but decide nothing.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vllmd.about import about
from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.gauges import Gauges, Scraping
from vllmd.engine.generation import Generation
from vllmd.engine.incidents import archive_in
from vllmd.engine.kept import NOWHERE, Kept, Store
from vllmd.engine.library import Provide, as_configured
from vllmd.engine.lines import Lines
from vllmd.engine.plan import Plan
from vllmd.engine.probe import due, probe
from vllmd.engine.stay import UNBOUNDED, Residence, Stay
from vllmd.engine.tasks import cancel, start
from vllmd.engine.telling import Telling
from vllmd.engine.timers import Timers
from vllmd.errors import CertainFailure, NotListening, SleepError
from vllmd.errors import ProbeFailed as NoToken
from vllmd.lifecycle import (
    ALIVE,
    Adopt,
    Adopted,
    Effect,
    Engine,
    Event,
    Evict,
    Exited,
    Kill,
    Load,
    Policy,
    Probe,
    ProbeFailed,
    ProbeOk,
    Progressed,
    PutToSleep,
    Restart,
    SetTimer,
    SleepFailed,
    Slept,
    Spawn,
    State,
    Terminate,
    Timer,
    TimerFired,
    Unload,
    Verdict,
    Wake,
    WakeFailed,
    Wanted,
    Woken,
)
from vllmd.statuses import ModelStatus
from vllmd.transitions import step

log = logging.getLogger(__name__)

_OVER = (State.READY, State.STOPPED, State.FAILED)

PROGRESS_INTERVAL_S = 1.0
"""Signs of progress closer together than this, or than a tenth of the patience with a start, count once."""


class Supervisor:
    """One model's engine.

    Args:
        plan: what to run.
        policy: how patient to be; another one may take its place.
        feed: where every change of state and phase is published.
        on_sign_of_life: called at most once a second while a start makes progress.
        store: keeps the engine while one vllmd follows another.
        provide: sees to it that a model is on the disk.
        residence: where engines have memory.
    """

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        feed: Feed,
        on_sign_of_life: Callable[[], None] = lambda: None,
        store: Store = NOWHERE,
        provide: Provide = as_configured,
        residence: Residence = UNBOUNDED,
    ) -> None:
        self.plan = plan
        self.engine = Engine()
        self.lines = Lines()
        self.probes: Counter[str] = Counter()
        """How many health checks there were, by their result."""
        self.policy = policy
        self.expected_until = 0.0
        """Until when a client may come again that did not want to wait, in `time.monotonic`'s seconds."""
        self._holds: list[str] = []
        self._feed = feed
        self._on_sign_of_life = on_sign_of_life
        self._store = store
        self._provide = provide
        self._residence = residence
        self._stay: Stay | None = None
        self._kept: Kept | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._generation: Generation | None = None
        self._client: EngineClient | None = None
        self._scraping: Scraping | None = None
        self._telling: Telling | None = None
        self._timers = Timers()
        self._probing: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._living: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._archive = archive_in(plan.state)
        self._is_closing = False
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
        engine, verdict, generation = self.engine, self.engine.verdict, self._generation
        progress = generation.progress if generation and engine.state is State.STARTING else None
        return ModelStatus(
            name=self.name,
            model=self.plan.model.model,
            state=engine.state.value,
            default=self.plan.model.default,
            phase=progress.phase.value if progress else None,
            percent=progress.percent if progress else None,
            eta_s=generation.left_s if generation and progress else None,
            since=self._since,
            pid=generation.pid if generation else None,
            generation=engine.generation,
            restarts=engine.restarts,
            cause=verdict.cause if verdict else "",
            reason=verdict.message if verdict else "",
            hint=verdict.hint if verdict else "",
            phases=generation.spans if generation else (),
            load=self.plan.model.load,
            on_demand=self.on_demand,
            claim_bytes=self._stay.claim or None if self._stay else None,
        )

    async def gauges(self) -> Gauges | None:
        """What a ready engine says of its own load; None where it does not, or takes too long."""
        return await self._scraping.latest() if self._scraping and self.client else None

    @property
    def client(self) -> EngineClient | None:
        """The way to the engine while it is ready; advice only, it may die the next moment."""
        return self._client if self.engine.state is State.READY and not self._holds else None

    def sentence(self) -> str:
        """What a request for the model waits for, or why it need not."""
        if self._holds and self.engine.state is State.READY:
            return self._holds[-1]
        return self.status.sentence()

    @property
    def pause_s(self) -> float | None:
        """Seconds until the next start is tried, while it is put off; None otherwise."""
        return self._timers.left_s(Timer.BACKOFF)

    @property
    def on_demand(self) -> bool:
        """Whether a request brings the model into memory: as its table says, or because vllmd took it out itself."""
        load = self.plan.model.load
        return not self._is_closing and (load == "demand" or (load != "manual" and self.engine.evicted))

    @property
    def is_out(self) -> bool:
        """Whether the model is not in memory, and no request brings it back."""
        return self.engine.state in (State.STOPPED, State.ASLEEP) and not self.on_demand

    @property
    def is_hopeless(self) -> bool:
        """Whether nobody need wait for the engine: it comes to nothing by itself, and nobody is about to renew it."""
        return (self.engine.state is State.FAILED or self.is_out) and not self._holds

    @property
    def environment(self) -> Path | None:
        """Where the vLLM lies that runs now, as far as that is known."""
        return self._generation.environment if self._generation and self.engine.state in ALIVE else None

    @property
    def is_stopping(self) -> bool:
        """Whether the engine was told to end: what it still answers may be cut short."""
        return self.engine.state is State.STOPPING

    @property
    def ends_by_order(self) -> bool:
        """Whether somebody has unloaded the model, or wants a fresh engine: this one did not fail."""
        state, after_stop = self.engine.state, self.engine.after_stop
        return state is State.STOPPED or (self.is_stopping and after_stop in (State.STOPPED, State.STARTING))

    @property
    def _about(self) -> dict[str, object]:
        return about(model=self.name, generation=self.engine.generation)

    def begin(self) -> None:
        """vllmd has started, or the model has come: it is loaded if its table says so, the default one first."""
        if self.plan.model.load == "start":
            self.post(Load(ordered=self.plan.model.default))

    def want(self, again_within_s: float = 0.0) -> None:
        """A request waits for the model, or its client will not wait, and may come again within so many seconds."""
        self.expected_until = max(self.expected_until, time.monotonic() + again_within_s)
        if self.plan.model.load != "manual" and not self._is_closing:
            self.post(Wanted(on_demand=self.plan.model.load == "demand"))

    def post(self, event: Event) -> None:
        """Tells the supervisor that something happened, or that somebody wants something."""
        self._events.put_nowait(event)

    async def wait_for(self, *states: State) -> State:
        """Waits until the engine is in one of `states`; returns which."""
        await self._until(lambda: self.engine.state in states)
        return self.engine.state

    async def outcome(self) -> Verdict | None:
        """Waits until the first engine is ready, has failed, or has ended as somebody wanted; returns why it failed."""
        await self._until(lambda: bool(self.engine.verdict or (self.engine.generation and self.engine.state in _OVER)))
        return self.engine.verdict

    async def wait_beyond(self, generation: int, *states: State) -> State:
        """Waits until a later engine than `generation` is in one of `states`, or none is wanted; returns the state."""
        await self._until(lambda: self.engine.state is State.STOPPED or self._is_beyond(generation, states))
        return self.engine.state

    def _is_beyond(self, generation: int, states: Sequence[State]) -> bool:
        return self.engine.generation > generation and self.engine.state in states

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Looks whenever something was published."""
        seen = self._feed.last
        while not is_so():
            await self._feed.after(seen)
            seen = self._feed.last

    @contextmanager
    def holding(self, why: str = "a new engine starts when the running requests have ended") -> Iterator[None]:
        """No new request gets to the engine for as long as the block lasts.

        Args:
            why: is told to those who wait.
        """
        self._holds.append(why)
        try:
            yield
        finally:
            self._holds.remove(why)
            self._publish()  # whoever waits for the engine looks again

    async def renew(self, plan: Plan) -> None:
        """Runs something else from now on; returns when the old engine has begun to end, or the next one to start.

        A model that was unloaded stays so; one that sleeps is unloaded. One that was given up is tried again.
        """
        self.plan, before, seen = plan, self.engine, self._feed.last
        if before.state is State.STOPPED:
            return
        self.post(Evict() if before.state in (State.DOZING, State.ASLEEP) else Restart())
        while self.engine.state not in (State.STOPPING, State.STOPPED) and self.engine.generation == before.generation:
            await self._feed.after(seen)
            seen = self._feed.last

    def adopt(self, kept: Kept) -> None:
        """Goes on with an engine that an earlier vllmd has started, and that suits the plan (`Kept.obstacle`)."""
        assert kept.record is not None, "without one it suits no plan"
        self._kept = kept
        record = kept.record
        self.post(Adopted(record.generation, record.was_ready, is_asleep=bool(record.sleep_level)))

    def leave(self) -> bool:
        """Lets go of the engine for the next vllmd to adopt; returns False where that cannot be: close it then."""
        is_on_its_way = self.engine.state is State.STOPPING or (self._moving is not None and not self._moving.done())
        return not is_on_its_way and self._generation is not None and self._generation.leave()

    async def close(self) -> None:
        """Unloads the model for good, and returns when nothing of its engine is alive."""
        self._is_closing = True
        self.post(Unload())
        await self.wait_for(State.STOPPED)

    # ── the loop ──

    async def run(self) -> None:
        """Carries events to `step` and effects to the world, until it is cancelled; then nothing stays alive."""
        try:
            while True:
                self._take(await self._events.get())
        finally:
            self._timers.clear()
            for task in (self._probing, self._moving, self._ending, self._living):
                await cancel(task)

    def _take(self, event: Event) -> None:
        if isinstance(event, ProbeOk | ProbeFailed):
            self.probes[_result_of(event)] += 1
        before = self.engine
        self.engine, effects = step(before, event, self.policy)
        if self.engine.state is not before.state:
            self._enter(before)
        for effect in effects:
            self._perform(effect)
        if self.engine.state is not before.state:
            self._publish()

    def _enter(self, before: Engine) -> None:
        """A new state begins: what the old one was waiting for is off."""
        self._timers.clear()
        for task in (self._probing, self._moving):
            if task:
                task.cancel()
        self._since = time.time()
        if self.engine.state is State.READY and self._generation:
            self._generation.became_ready()
        verdict = self.engine.verdict
        if verdict and verdict is not before.verdict:
            hint = f" ({verdict.hint})" if verdict.hint else ""
            log.error("%s: %s%s", self.name, verdict.message, hint, extra=self._about)
        log.info("%s: %s → %s", self.name, before.state, self.engine.state, extra=self._about)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn(number):
                self._begin(number, None)
            case Adopt(number):
                self._begin(number, self._kept)
            case PutToSleep(level):
                self._moving = start(self._put_to_sleep(level, self.engine.epoch))
            case Wake():
                self._moving = start(self._wake(self.engine.epoch))
            case Terminate():
                self._living_generation().terminate()
            case Kill(examine):
                self._ending = start(_end(self._living_generation(), examine))
            case Probe(after_s):
                if self._probing:
                    self._probing.cancel()
                self._probing = start(self._probe(self._living_client(), after_s, self.engine.epoch))
            case SetTimer(timer, seconds, jitter):
                fired = TimerFired(self.engine.epoch, timer)
                self._timers.set(timer, seconds * (1 + random.random() * jitter), partial(self.post, fired))

    def _begin(self, number: int, kept: Kept | None) -> None:
        self._telling = Telling(self.name, number)
        # Made at once, not by the task: the next effect may be to kill it.
        news = (self._on_progress, self._on_line, self._moved)
        self._stay = self._residence.stay(self)
        self._generation = Generation(number, self.plan, *news, self._store, kept, self._provide, self._stay)
        self._client = EngineClient(self.plan.socket(number))
        self._scraping = Scraping(self._client)
        self._living = start(self._live(self._generation, self._client))

    def _living_generation(self) -> Generation:
        assert self._generation is not None, "effects on an engine come only while one is alive"
        return self._generation

    def _living_client(self) -> EngineClient:
        assert self._client is not None, "effects on an engine come only while one is alive"
        return self._client

    async def _live(self, generation: Generation, client: EngineClient) -> None:
        """One generation, from its start to the report of its exit."""
        async with client:
            try:
                verdict = await generation.run()
            except Exception as error:
                log.exception("%s: unforeseen error", self.name)
                verdict = Verdict("internal error", f"vllmd made a mistake: {error}", "please report it with the log")
            finally:
                if self._telling:
                    self._telling.end()
        self.post(Exited(generation.number, verdict))  # first of all: whatever fails below, the end is told
        self._keep_incident(generation, verdict)

    def _keep_incident(self, generation: Generation, verdict: Verdict) -> None:
        """Writes down an end that nobody asked for: the engine's own, or one that it forced."""
        if self.is_stopping:
            if self.engine.after_stop not in (State.BACKOFF, State.FAILED) or self.engine.verdict is None:
                return
            verdict = self.engine.verdict
        if verdict.retry_after_s is not None and self.engine.setbacks:
            return  # a night without a hub is one incident
        if incident := self._archive.write(generation.report(verdict)):
            path = self._archive.path(incident.id)
            log.info("%s: what is known of its end: %s", self.name, path, extra=self._about)
            self._feed.publish(incident)

    async def _probe(self, client: EngineClient, after_s: float, epoch: int) -> None:
        await due(client, after_s)
        try:
            await probe(client, self.name, self.policy)
        except NoToken as error:
            listens, certain = not isinstance(error, NotListening), isinstance(error, CertainFailure)
            self.post(ProbeFailed(epoch, error.message, listens=listens, certain=certain))
        except Exception as error:
            log.exception("%s: unforeseen error in a health check", self.name)
            self.post(ProbeFailed(epoch, f"vllmd made a mistake: {error}"))
        else:
            self.post(ProbeOk(epoch))

    async def _put_to_sleep(self, level: int, epoch: int) -> None:
        try:
            await self._living_generation().sleep(self._living_client(), level)
        except SleepError as error:
            log.warning("%s: does not sleep, and is unloaded: %s", self.name, error.message, extra=self._about)
            self.post(SleepFailed(epoch, error.message))
        else:
            self.post(Slept(epoch))

    async def _wake(self, epoch: int) -> None:
        try:
            is_awake = await self._living_generation().wake(self._living_client())
        except SleepError as error:
            self.post(WakeFailed(epoch, error.message))
        else:
            self.post(Woken(epoch) if is_awake else Slept(epoch))

    # ── news from the generation ──

    def _on_progress(self) -> None:
        if self.engine.state is State.STARTING:
            self._publish()
            self._moved()

    def _on_line(self, line: str) -> None:
        if self._telling:
            self._telling.line(line)
        self.lines.add(line)
        self._moved()

    def _moved(self) -> None:
        now, interval_s = asyncio.get_running_loop().time(), min(PROGRESS_INTERVAL_S, self.policy.startup_stall_s / 10)
        if self.engine.state is State.STARTING and now - self._progressed_at >= interval_s:
            self._progressed_at = now
            self.post(Progressed(self.engine.epoch))
            self._on_sign_of_life()

    def _publish(self) -> None:
        self._feed.publish(self.status)


PROBE_RESULTS = ("ok", "failed", "not_listening")


def _result_of(event: ProbeOk | ProbeFailed) -> str:
    if isinstance(event, ProbeOk):
        return "ok"
    return "failed" if event.listens else "not_listening"


async def _end(generation: Generation, examine: bool) -> None:
    try:
        if examine:
            await generation.examine()
    finally:
        generation.kill()
