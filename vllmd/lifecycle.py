"""The words in which an engine's life is told: states, timers, policy, events, effects.

What follows from them stands in `transitions.py`; here is only what can be said.
"""

from dataclasses import dataclass
from enum import StrEnum

from vllmd.settings import option


class State(StrEnum):
    """Where an engine is in its life; the values go over the wire."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DOZING = "dozing"
    ASLEEP = "asleep"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


ALIVE = frozenset({State.STARTING, State.READY, State.DOZING, State.ASLEEP, State.UNHEALTHY, State.STOPPING})
"""The states in which a process may exist. In all others there is none."""


class Timer(StrEnum):
    """What a state can wait for. A state has at most one timer of each name."""

    STALL = "stall"
    STABLE = "stable"
    STOP = "stop"
    BACKOFF = "backoff"


@dataclass(frozen=True)
class Policy:
    """How patient the supervisor is. All durations are seconds."""

    probe_interval_s: float = option(30.0, "seconds between two health checks of a ready engine", minimum=0.05)
    probe_timeout_s: float = option(20.0, "seconds a health check may take to bring its token", minimum=0.05)
    stall_s: float = option(
        60.0, "seconds an engine may work without showing a token until it counts as hung", minimum=0.05
    )
    failure_threshold: int = option(3, "failed health checks in a row until the engine is replaced", minimum=1)
    startup_stall_s: float = option(300.0, "seconds a start may go without any sign of progress", minimum=0.1)
    stop_timeout_s: float = option(20.0, "seconds an engine may take to end before it is killed", minimum=0.05)
    stable_after_s: float = option(120.0, "seconds an engine must stay ready until its crashes are forgiven", minimum=0)
    restart_limit: int = option(5, "restarts in a row without lasting success until vllmd gives up", minimum=0)
    backoff_initial_s: float = option(1.0, "seconds before the first restart; doubles with every crash", minimum=0)
    backoff_max_s: float = option(60.0, "the longest pause before a restart, in seconds", minimum=0)

    def backoff_s(self, crashes: int) -> float:
        """Seconds to wait before the restart that follows the `crashes`-th crash in a row (1 is the first)."""
        return min(self.backoff_initial_s * 2.0 ** min(crashes - 1, 30), self.backoff_max_s)


@dataclass(frozen=True)
class Verdict:
    """Why an engine ended.

    Args:
        cause: the class of the failure, one word or a few, stable enough for metrics.
        message: what happened, one sentence.
        hint: what to do about it.
        permanent: whether trying again cannot help.
        retry_after_s: where the fault is another's and will pass, as with a hub that is away: seconds before which a
            new try makes no sense. Such a failure is not counted, and tries have no end. None for all others.
    """

    cause: str
    message: str
    hint: str = ""
    permanent: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Engine:
    """Everything that is decided about one engine.

    Args:
        epoch: how often the state has changed.
        generation: how many processes were started; the current one bears this number.
        crashes: failures in a row that are not forgiven yet.
        setbacks: failures in a row that were another's fault; they make the pauses longer, and are held against nobody.
        restarts: restarts after a failure since the daemon began; an operator's are not counted.
        probe_failures: failed probes in a row; of a starting engine, those that it took.
        after_stop: where STOPPING leads; and DOZING, where STARTING means that it is to wake at once.
        ordered: whether it was ordered into memory (`Load`, `Restart`), and was not there yet.
        evicted: whether vllmd itself has taken it out of memory, so that a request brings it back.
        verdict: why the engine last failed.
    """

    state: State = State.STOPPED
    epoch: int = 0
    generation: int = 0
    crashes: int = 0
    setbacks: int = 0
    restarts: int = 0
    probe_failures: int = 0
    after_stop: State = State.STOPPED
    ordered: bool = False
    evicted: bool = False
    verdict: Verdict | None = None


# ── events: what happened ──


@dataclass(frozen=True)
class Load:
    """Somebody wants the model in memory.

    Args:
        ordered: whether others are to give way: an administrator wants it, or it is the default model.
    """

    ordered: bool = False


@dataclass(frozen=True)
class Wanted:
    """A request waits for the model.

    Args:
        on_demand: whether that is enough to load it, also where vllmd has not unloaded it itself.
    """

    on_demand: bool = False


@dataclass(frozen=True)
class Unload:
    """Somebody wants the model out of memory."""


@dataclass(frozen=True)
class Evict:
    """vllmd wants the memory, for another model or for nobody.

    Args:
        level: of vLLM's sleep mode, for an engine that can sleep; 0: it ends.
    """

    level: int = 0


@dataclass(frozen=True)
class Restart:
    """Somebody wants a fresh engine."""


@dataclass(frozen=True)
class Adopted:
    """An engine that an earlier vllmd has started is ours now.

    Args:
        generation: its number.
        was_ready: whether tokens came out of it then; else it is still starting.
        is_asleep: whether it was put to sleep.
    """

    generation: int
    was_ready: bool
    is_asleep: bool = False


@dataclass(frozen=True)
class Progressed:
    """A starting engine gave a sign of life."""

    epoch: int


@dataclass(frozen=True)
class ProbeOk:
    """A token came out of the engine."""

    epoch: int


@dataclass(frozen=True)
class ProbeFailed:
    """No token came out of the engine.

    Args:
        listens: whether it took the question; an engine does not before its start is over.
        certain: whether no further check is needed to call it hung.
    """

    epoch: int
    reason: str
    listens: bool = False
    certain: bool = False


@dataclass(frozen=True)
class Slept:
    """The engine sleeps, and its memory is free."""

    epoch: int


@dataclass(frozen=True)
class SleepFailed:
    """The engine did not go to sleep, or kept its memory."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Woken:
    """The engine has its memory again; whether it makes tokens has to be seen."""

    epoch: int


@dataclass(frozen=True)
class WakeFailed:
    """The engine did not wake up."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class TimerFired:
    """A timer that `SetTimer` asked for has run out."""

    epoch: int
    timer: Timer


@dataclass(frozen=True)
class Exited:
    """A generation is over: no process of it is alive."""

    generation: int
    verdict: Verdict


Asked = Load | Wanted | Unload | Evict | Restart | Adopted
"""What somebody wants of an engine, whatever it does just now."""

News = Progressed | ProbeOk | ProbeFailed | Slept | SleepFailed | Woken | WakeFailed | TimerFired
"""What has come of something that began in an epoch."""

Event = Asked | News | Exited


# ── effects: what to do about it ──


@dataclass(frozen=True)
class Spawn:
    """Start this generation."""

    generation: int


@dataclass(frozen=True)
class Adopt:
    """Go on with this generation, which lives already."""

    generation: int


@dataclass(frozen=True)
class PutToSleep:
    """Have the engine give its memory back and stay.

    Args:
        level: 1: its weights wait in main memory; 2: they are dropped.
    """

    level: int


@dataclass(frozen=True)
class Wake:
    """Have a sleeping engine take its memory again."""


@dataclass(frozen=True)
class Terminate:
    """Ask the engine to end."""


@dataclass(frozen=True)
class Kill:
    """End the engine and all its descendants at once.

    Args:
        examine: look at it first, since it is sick and nobody knows why.
    """

    examine: bool = False


@dataclass(frozen=True)
class Probe:
    """Check the engine's health once, `after_s` seconds from now."""

    after_s: float


@dataclass(frozen=True)
class SetTimer:
    """Report `TimerFired` in `seconds`, unless the state changes or the same timer is set anew before.

    Args:
        jitter: up to this part of `seconds` is added by chance, so that engines do not restart in step.
    """

    timer: Timer
    seconds: float
    jitter: float = 0.0


Effect = Spawn | Adopt | PutToSleep | Wake | Terminate | Kill | Probe | SetTimer
