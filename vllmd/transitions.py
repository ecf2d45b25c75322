"""The life of one engine, as a table.

`step(engine, event, policy) -> (engine, effects)` is the only place where anything about an engine is decided. It does
no I/O and knows no clock: what happened comes in as an event, what to do about it goes out as effects, and the
supervisor carries the one to the other. Four ideas keep it honest:

Epoch.  Every change of state raises `Engine.epoch`. Timers and probes carry the epoch in which they began, and news of
another epoch changes nothing: a start-up timer that rings late cannot kill a stopping engine, a late probe of a dead
process cannot mark its successor ready. Exits carry the generation instead: a process ends once, whatever the state.

after_stop.  Restart, unload and "replace it, it is sick" are one state, STOPPING, with different destinations. There is
no wish beside the state that could contradict it.

Forgiveness.  A crash is forgotten only after READY has lasted for `stable_after_s`. A model that loads and dies on its
first request therefore runs out of restarts instead of restarting for ever. An operator's restart is no crash, and a
start that fails because others are away for a while (`Verdict.retry_after_s`) is none of the engine's.

Stall.  A start may take as long as it likes while something moves. Only `startup_stall_s` without a sign of progress
makes it a failure. An engine that takes a health check and brings no token has come to the end of its start, and does
not move any more: else the lines that it writes about each check would keep it starting for ever.

Sleep.  An engine that sleeps is there, and has nothing to do. To wake is to start: with the same patience, the same
proof by a token, and the same way out, a fresh engine. Where sleep fails the engine ends, since its memory is wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vllmd.lifecycle import (
    Adopt,
    Adopted,
    Effect,
    Engine,
    Event,
    Evict,
    Exited,
    Kill,
    Load,
    News,
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

Step = tuple[Engine, tuple[Effect, ...]]

STARTUP_PROBE_INTERVAL_S = 0.2
"""A starting engine refuses connections until it is ready, so asking often is cheap."""


_REFUSES = "vllmd serves models that complete or embed text, and needs vLLM's own doors to do so: see `args` and `env`"

BACKOFF_JITTER = 0.25
"""Up to a quarter is added to a back-off."""


# ── moves that several rows share ──


def _spawn(engine: Engine, policy: Policy) -> Step:
    generation = engine.generation + 1
    effects = (
        Spawn(generation),
        SetTimer(Timer.STALL, policy.startup_stall_s),
        Probe(STARTUP_PROBE_INTERVAL_S),
    )
    return replace(engine, state=State.STARTING, generation=generation, probe_failures=0), effects


def _stop(engine: Engine, how: Terminate | Kill, then: State, policy: Policy) -> Step:
    return replace(engine, state=State.STOPPING, after_stop=then), (how, SetTimer(Timer.STOP, policy.stop_timeout_s))


def _stop_as_asked(engine: Engine, then: State, policy: Policy) -> Step:
    """Only a ready engine is asked to end. vLLM ignores SIGTERM in parts of its start, and hangs on it when sick."""
    how = Terminate() if engine.state is State.READY else Kill()
    return _stop(replace(engine, crashes=0), how, then, policy)


def _blame(engine: Engine, verdict: Verdict, policy: Policy) -> Engine:
    """Counts a failure; `after_stop` then says whether another try is worth it."""
    if verdict.retry_after_s is not None:
        return replace(engine, setbacks=engine.setbacks + 1, verdict=verdict, after_stop=State.BACKOFF)
    crashes = engine.crashes + 1
    hopeless = verdict.permanent or crashes > policy.restart_limit
    after_stop = State.FAILED if hopeless else State.BACKOFF
    return replace(engine, crashes=crashes, setbacks=0, verdict=verdict, after_stop=after_stop)


def _rest(engine: Engine, policy: Policy) -> Step:
    """Goes where `after_stop` leads, now that nothing is alive."""
    if engine.after_stop is State.STARTING:
        return _spawn(engine, policy)
    if engine.after_stop is State.BACKOFF:
        pause = SetTimer(Timer.BACKOFF, _pause_s(engine, policy), BACKOFF_JITTER)
        return replace(engine, state=State.BACKOFF), (pause,)
    return replace(engine, state=engine.after_stop), ()


def _pause_s(engine: Engine, policy: Policy) -> float:
    asked_for_s = (engine.verdict and engine.verdict.retry_after_s) or 0.0
    return max(policy.backoff_s(max(engine.crashes, engine.setbacks)), asked_for_s)


def _replace_sick(engine: Engine, verdict: Verdict, policy: Policy) -> Step:
    blamed = _blame(engine, verdict, policy)
    return _stop(blamed, Kill(examine=True), blamed.after_stop, policy)


# ── the rows ──


def _load(engine: Engine, event: Event, policy: Policy) -> Step:
    return _spawn(_asked_for(engine, event), policy) if _comes(engine, event) else (engine, ())


def _asked_for(engine: Engine, event: Event) -> Engine:
    """What an order makes of the past: it is forgotten, and whoever has given it waits. A request only asks."""
    if isinstance(event, Wanted):
        return engine
    ordered = isinstance(event, Restart) or (isinstance(event, Load) and event.ordered)
    return replace(engine, crashes=0, ordered=ordered, evicted=False)


def _comes(engine: Engine, event: Event) -> bool:
    """Whether a request brings the model back: not what an administrator has unloaded."""
    return not isinstance(event, Wanted) or event.on_demand or engine.evicted


def _adopted(engine: Engine, event: Event, policy: Policy) -> Step:
    """One that was ready has to prove it again; until then it counts as one whose last check has failed."""
    assert isinstance(event, Adopted)
    ours, adopt = replace(engine, generation=event.generation, probe_failures=0), Adopt(event.generation)
    if event.is_asleep:
        return replace(ours, state=State.ASLEEP, evicted=True), (adopt,)
    if event.was_ready:
        return replace(ours, state=State.UNHEALTHY), (adopt, Probe(0.0))
    patience = SetTimer(Timer.STALL, policy.startup_stall_s)
    return replace(ours, state=State.STARTING), (adopt, patience, Probe(STARTUP_PROBE_INTERVAL_S))


def _unload_dead(engine: Engine, event: Event, policy: Policy) -> Step:
    return replace(_given_up(engine), state=State.STOPPED), ()


def _given_up(engine: Engine) -> Engine:
    """What an administrator's unload makes of the past: no request brings it back."""
    return replace(engine, crashes=0, ordered=False, evicted=False)


def _unload_alive(engine: Engine, event: Event, policy: Policy) -> Step:
    return _stop_as_asked(_given_up(engine), State.STOPPED, policy)


def _restart_alive(engine: Engine, event: Event, policy: Policy) -> Step:
    return _stop_as_asked(_asked_for(engine, event), State.STARTING, policy)


def _unload_later(engine: Engine, event: Event, policy: Policy) -> Step:
    return replace(_given_up(engine), after_stop=State.STOPPED), ()


def _load_later(engine: Engine, event: Event, policy: Policy) -> Step:
    return replace(_asked_for(engine, event), after_stop=State.STARTING), ()


def _wanted_later(engine: Engine, event: Event, policy: Policy) -> Step:
    """A request that comes while the engine ends; where it ends to start again anyway, nothing is to be done."""
    if engine.after_stop is not State.STOPPED or not _comes(engine, event):
        return engine, ()
    return replace(engine, after_stop=State.STARTING), ()


def _evict(engine: Engine, event: Event, policy: Policy) -> Step:
    assert isinstance(event, Evict)
    if engine.ordered:
        return _stop_as_asked(engine, State.STARTING, policy)
    leaving = replace(engine, crashes=0, evicted=True)
    if engine.state is State.READY and event.level:
        # As patient as with a start: the first time, main memory is pinned for the weights, half a second for a GiB.
        effects = (PutToSleep(event.level), SetTimer(Timer.STALL, policy.startup_stall_s))
        return replace(leaving, state=State.DOZING, after_stop=State.STOPPED), effects
    return _stop_as_asked(leaving, State.STOPPED, policy)


def _slept(engine: Engine, event: Event, policy: Policy) -> Step:
    return _wake(engine, policy) if engine.after_stop is State.STARTING else (replace(engine, state=State.ASLEEP), ())


def _sleeps_on(engine: Engine, event: Event, policy: Policy) -> Step:
    """It was to wake, and nobody wanted it any more; unless it was ordered in the same moment."""
    if engine.ordered:
        return _wake(engine, policy)
    return replace(engine, state=State.ASLEEP, evicted=True), ()


def _sleepless(engine: Engine, event: Event, policy: Policy) -> Step:
    """Its memory is wanted, and it does not give it: it ends. That is no crash."""
    return _stop(engine, Kill(), engine.after_stop, policy)


def _died_asleep(engine: Engine, event: Event, policy: Policy) -> Step:
    """Nobody wants it now, so that nothing is to be started; or somebody does, and then it is a crash."""
    assert isinstance(event, Exited)
    if engine.state is State.DOZING and engine.after_stop is State.STARTING:
        return _exited(engine, event, policy)
    return replace(engine, state=State.STOPPED, verdict=event.verdict), ()


def _wake(engine: Engine, policy: Policy) -> Step:
    """The same generation starts once more; it is asked for a token when it says that it is awake."""
    effects = (Wake(), SetTimer(Timer.STALL, policy.startup_stall_s))
    return replace(engine, state=State.STARTING, probe_failures=0), effects


def _wake_up(engine: Engine, event: Event, policy: Policy) -> Step:
    return _wake(_asked_for(engine, event), policy)


def _woken(engine: Engine, event: Event, policy: Policy) -> Step:
    return engine, (Probe(0.0),)


def _wake_failed(engine: Engine, event: Event, policy: Policy) -> Step:
    assert isinstance(event, WakeFailed)
    return _replace_sick(engine, Verdict("did not wake", event.reason, "it is replaced by a new one"), policy)


def _exited(engine: Engine, event: Event, policy: Policy) -> Step:
    assert isinstance(event, Exited)
    return _rest(_blame(engine, event.verdict, policy), policy)


def _exited_as_asked(engine: Engine, event: Event, policy: Policy) -> Step:
    return _rest(engine, policy)


def _ordered(engine: Engine, event: Event, policy: Policy) -> Step:
    """It is on its way, and from now on an administrator waits for it."""
    assert isinstance(event, Load)
    return _asked_for(engine, event) if event.ordered else engine, ()


def _moved(engine: Engine, event: Event, policy: Policy) -> Step:
    """What it prints after it has taken a question is about our questions, and no progress."""
    if engine.probe_failures:
        return engine, ()
    return engine, (SetTimer(Timer.STALL, policy.startup_stall_s),)


def _stalled(engine: Engine, event: Event, policy: Policy) -> Step:
    silence = Verdict(
        "stalled",
        f"the start showed no sign of progress for {policy.startup_stall_s:g} s",
        "read the engine's last lines; raise supervision.startup_stall_s if they say it was still working",
    )
    return _replace_sick(engine, silence, policy)


def _not_yet(engine: Engine, event: Event, policy: Policy) -> Step:
    assert isinstance(event, ProbeFailed)
    if event.certain:
        return _replace_sick(engine, Verdict("no answers", event.reason, _REFUSES, permanent=True), policy)
    asked = replace(engine, probe_failures=engine.probe_failures + event.listens)
    return asked, (Probe(STARTUP_PROBE_INTERVAL_S),)


def _became_ready(engine: Engine, event: Event, policy: Policy) -> Step:
    effects = (SetTimer(Timer.STABLE, policy.stable_after_s), Probe(policy.probe_interval_s))
    return replace(engine, state=State.READY, probe_failures=0, setbacks=0, ordered=False, evicted=False), effects


def _still_ready(engine: Engine, event: Event, policy: Policy) -> Step:
    return engine, (Probe(policy.probe_interval_s),)


def _probe_failed(engine: Engine, event: Event, policy: Policy) -> Step:
    assert isinstance(event, ProbeFailed)
    sick = replace(engine, probe_failures=engine.probe_failures + 1)
    if event.certain or sick.probe_failures >= policy.failure_threshold:
        return _replace_sick(sick, _no_token(event.reason, sick.probe_failures), policy)
    return replace(sick, state=State.UNHEALTHY), (Probe(min(policy.probe_interval_s, 1.0)),)


def _no_token(reason: str, times: int) -> Verdict:
    often = "" if times == 1 else f" ({times} health checks in a row)"
    return Verdict("hung", f"the engine hangs: {reason}{often}", "it is replaced by a new one")


def _proved_stable(engine: Engine, event: Event, policy: Policy) -> Step:
    return replace(engine, crashes=0), ()


def _outstayed(engine: Engine, event: Event, policy: Policy) -> Step:
    """Killing is repeated until the exit is reported: there is no other way out of STOPPING."""
    return engine, (Kill(), SetTimer(Timer.STOP, policy.stop_timeout_s))


def _try_again(engine: Engine, event: Event, policy: Policy) -> Step:
    return _spawn(replace(engine, restarts=engine.restarts + 1), policy)


Key = tuple[State, type[Event] | Timer]


@dataclass(frozen=True)
class Row:
    """What an event does in a state, and every state it can lead to (for the diagram; a test holds both together)."""

    act: Callable[[Engine, Event, Policy], Step]
    leads_to: tuple[State, ...]


_AFTER_STOP = (State.STOPPED, State.STARTING, State.BACKOFF, State.FAILED)
_AFTER_CRASH = (State.BACKOFF, State.FAILED)

TRANSITIONS: dict[Key, Row] = {
    (State.STOPPED, Load): Row(_load, (State.STARTING,)),
    (State.STOPPED, Restart): Row(_load, (State.STARTING,)),
    (State.STOPPED, Wanted): Row(_load, (State.STARTING, State.STOPPED)),
    (State.STOPPED, Unload): Row(_unload_dead, (State.STOPPED,)),
    (State.STOPPED, Adopted): Row(_adopted, (State.UNHEALTHY, State.STARTING, State.ASLEEP)),
    (State.STARTING, Progressed): Row(_moved, (State.STARTING,)),
    (State.STARTING, ProbeOk): Row(_became_ready, (State.READY,)),
    (State.STARTING, ProbeFailed): Row(_not_yet, (State.STARTING, State.STOPPING)),
    (State.STARTING, Timer.STALL): Row(_stalled, (State.STOPPING,)),
    (State.STARTING, Exited): Row(_exited, _AFTER_CRASH),
    (State.STARTING, Load): Row(_ordered, (State.STARTING,)),
    (State.STARTING, Unload): Row(_unload_alive, (State.STOPPING,)),
    (State.STARTING, Restart): Row(_restart_alive, (State.STOPPING,)),
    (State.STARTING, Evict): Row(_evict, (State.STOPPING,)),
    (State.STARTING, Slept): Row(_sleeps_on, (State.ASLEEP, State.STARTING)),
    (State.STARTING, Woken): Row(_woken, (State.STARTING,)),
    (State.STARTING, WakeFailed): Row(_wake_failed, (State.STOPPING,)),
    (State.READY, ProbeOk): Row(_still_ready, (State.READY,)),
    (State.READY, ProbeFailed): Row(_probe_failed, (State.UNHEALTHY, State.STOPPING)),
    (State.READY, Timer.STABLE): Row(_proved_stable, (State.READY,)),
    (State.READY, Exited): Row(_exited, _AFTER_CRASH),
    (State.READY, Unload): Row(_unload_alive, (State.STOPPING,)),
    (State.READY, Restart): Row(_restart_alive, (State.STOPPING,)),
    (State.READY, Evict): Row(_evict, (State.DOZING, State.STOPPING)),
    (State.DOZING, Slept): Row(_slept, (State.ASLEEP, State.STARTING)),
    (State.DOZING, SleepFailed): Row(_sleepless, (State.STOPPING,)),
    (State.DOZING, Timer.STALL): Row(_sleepless, (State.STOPPING,)),
    (State.DOZING, Exited): Row(_died_asleep, (State.STOPPED, *_AFTER_CRASH)),
    (State.DOZING, Load): Row(_load_later, (State.DOZING,)),
    (State.DOZING, Wanted): Row(_wanted_later, (State.DOZING,)),
    (State.DOZING, Evict): Row(_evict, (State.STOPPING,)),
    (State.DOZING, Unload): Row(_unload_alive, (State.STOPPING,)),
    (State.DOZING, Restart): Row(_restart_alive, (State.STOPPING,)),
    (State.ASLEEP, Load): Row(_wake_up, (State.STARTING,)),
    (State.ASLEEP, Wanted): Row(_wake_up, (State.STARTING,)),
    (State.ASLEEP, Evict): Row(_evict, (State.STOPPING,)),
    (State.ASLEEP, Exited): Row(_died_asleep, (State.STOPPED,)),
    (State.ASLEEP, Unload): Row(_unload_alive, (State.STOPPING,)),
    (State.ASLEEP, Restart): Row(_restart_alive, (State.STOPPING,)),
    (State.UNHEALTHY, ProbeOk): Row(_became_ready, (State.READY,)),
    (State.UNHEALTHY, ProbeFailed): Row(_probe_failed, (State.UNHEALTHY, State.STOPPING)),
    (State.UNHEALTHY, Exited): Row(_exited, _AFTER_CRASH),
    (State.UNHEALTHY, Unload): Row(_unload_alive, (State.STOPPING,)),
    (State.UNHEALTHY, Restart): Row(_restart_alive, (State.STOPPING,)),
    (State.STOPPING, Exited): Row(_exited_as_asked, _AFTER_STOP),
    (State.STOPPING, Timer.STOP): Row(_outstayed, (State.STOPPING,)),
    (State.STOPPING, Load): Row(_load_later, (State.STOPPING,)),
    (State.STOPPING, Restart): Row(_load_later, (State.STOPPING,)),
    (State.STOPPING, Wanted): Row(_wanted_later, (State.STOPPING,)),
    (State.STOPPING, Unload): Row(_unload_later, (State.STOPPING,)),
    (State.BACKOFF, Timer.BACKOFF): Row(_try_again, (State.STARTING,)),
    (State.BACKOFF, Load): Row(_load, (State.STARTING,)),
    (State.BACKOFF, Restart): Row(_load, (State.STARTING,)),
    (State.BACKOFF, Unload): Row(_unload_dead, (State.STOPPED,)),
    (State.FAILED, Load): Row(_load, (State.STARTING,)),
    (State.FAILED, Restart): Row(_load, (State.STARTING,)),
    (State.FAILED, Unload): Row(_unload_dead, (State.STOPPED,)),
}
"""The truth about transitions. A pair that is not here changes nothing."""


def step(engine: Engine, event: Event, policy: Policy) -> Step:
    """What `event` makes of `engine`, and what has to be done about it.

    Args:
        engine: what is so far decided.
        event: what happened; stale events and events without a row change nothing.
        policy: how patient to be.

    Returns:
        The engine afterwards and the effects to carry out, in order.
    """
    row = TRANSITIONS.get((engine.state, event.timer if isinstance(event, TimerFired) else type(event)))
    if row is None or _is_stale(engine, event):
        return engine, ()
    after, effects = row.act(engine, event, policy)
    if after.state is not engine.state:
        after = replace(after, epoch=engine.epoch + 1)
    return after, effects


def _is_stale(engine: Engine, event: Event) -> bool:
    if isinstance(event, Exited):
        return event.generation != engine.generation
    return isinstance(event, News) and event.epoch != engine.epoch
