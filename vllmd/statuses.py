"""What the daemon tells of itself and its models: states, requests, usage, changes, lines of the log."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllmd.wire import known

_IN_TROUBLE = ("failed", "backoff", "unhealthy")
"""States in which the last verdict is what matters."""


@dataclass(frozen=True)
class PhaseSpan:
    """A phase of a start.

    Args:
        phase: a value of `engine.phases.Phase`.
        begun_s: seconds from the beginning of the start to the phase's first sign.
        took_s: how many seconds it lasted; None while it does.
    """

    phase: str
    begun_s: float = 0.0
    took_s: float | None = None


@dataclass(frozen=True)
class ModelStatus:
    """One model as it is now.

    Args:
        name: what it is served as.
        model: what vLLM loads.
        state: a value of `lifecycle.State`.
        default: whether it serves requests that name no model.
        phase: what a starting engine is doing; None otherwise.
        percent: how far the phase is, 0 to 100, where vLLM says so.
        eta_s: seconds until the first token, judged by an earlier start; None where there was none.
        since: when the state began, Unix seconds.
        pid: the process vllmd watches; None when there is none.
        generation: how many engines were started.
        restarts: restarts after failures since the daemon began.
        running: requests that the engine works on.
        held: requests that wait for it.
        tokens_per_s: what the streams that run now get, all together; None while none gets anything.
        cause, reason, hint: the last verdict; empty when nothing has failed.
        phases: what the present start has done so far, or the last one did; empty where another vllmd has seen it.
        places: how many requests its engine works on at once; 0 where nobody has told.
        engine_running, engine_waiting: requests that it computes, and that wait in it, as it says itself; None where it
            does not.
        kv_cache_usage: the part of its KV cache that is in use, 0 to 1, likewise.
        load: when it comes into memory, as its table says: start, demand or manual.
        on_demand: whether a request brings it into memory when it is not there.
        used_at: when its last request ended, Unix seconds; None where vllmd has seen none.
        claim_bytes: the memory that it takes of each device now, as far as it is known; None while it takes none.
    """

    name: str
    model: str = ""
    state: str = "stopped"
    default: bool = False
    phase: str | None = None
    percent: int | None = None
    eta_s: float | None = None
    since: float = 0.0
    pid: int | None = None
    generation: int = 0
    restarts: int = 0
    running: int = 0
    held: int = 0
    tokens_per_s: float | None = None
    cause: str = ""
    reason: str = ""
    hint: str = ""
    phases: tuple[PhaseSpan, ...] = ()
    places: int = 0
    engine_running: int | None = None
    engine_waiting: int | None = None
    kv_cache_usage: float | None = None
    load: str = "start"
    on_demand: bool = False
    used_at: float | None = None
    claim_bytes: int | None = None

    @property
    def summary(self) -> str:
        """State, phase and reason in a few words, such as `starting, loading weights 43 %`."""
        if self.state in _IN_TROUBLE and self.reason:
            return f"{self.state}: {self.reason}"
        if self.state == "stopped" and self.on_demand:
            return "not loaded, a request loads it"
        if self.state == "dozing":
            return "falling asleep"
        if self.state != "starting" or not self.phase:
            return self.state
        return f"starting, {self.phase}" + ("" if self.percent is None else f" {self.percent} %")

    @property
    def is_available(self) -> bool:
        """Whether nothing is missing but a request: it is ready, or a request brings it in and it is in no trouble.

        One that gives way to another for a while, and comes back, is in order all the time.
        """
        return self.state == "ready" or (self.on_demand and self.state not in _IN_TROUBLE)

    @property
    def is_passing(self) -> bool:
        """Whether the state ends by itself, so that its age is worth telling."""
        return self.state not in ("ready", "asleep", "stopped", "failed")

    def sentence(self, now: float | None = None) -> str:
        """The summary, with what is left of a state that will pass, or its age: `starting, compiling, 41 s`."""
        if not self.is_passing:
            return self.summary
        if self.eta_s is not None:
            return f"{self.summary}, {roughly(self.eta_s)} left"
        age_s = max(0.0, (time.time() if now is None else now) - self.since)
        return f"{self.summary}, {age_s:.0f} s"


def roughly(seconds: float) -> str:
    """A duration as a guess is told: `about 40 s`, `about 3 min`, `a few seconds`."""
    if seconds < 5:
        return "a few seconds"
    return f"about {5 * round(seconds / 5)} s" if seconds < 90 else f"about {round(seconds / 60)} min"


@dataclass(frozen=True)
class Continued:
    """An answer that broke off because its engine died, and goes on.

    Args:
        model: its name.
        request: the request's id.
        generation: the number of the engine that goes on.
    """

    model: str
    request: str
    generation: int


@dataclass(frozen=True)
class LogLine:
    """A line that an engine has printed.

    Args:
        at: when it came, Unix seconds.
        line: its text.
    """

    at: float
    line: str


@dataclass(frozen=True)
class RequestStatus:
    """One request for inference that is under way.

    Args:
        id: as in its answer's `X-Request-Id`; a client that chooses its own may use one twice.
        who: who asks: `uid:1000` on the Unix socket, `key:NAME` on TCP, or the IP address where no key is asked for.
        model: the model's name.
        path: the engine's route.
        state: `held` while it waits for the engine or for a place in it, `running` else.
        since: when it came, Unix seconds.
        age_s: how long ago that is.
        stream: whether its answer comes as events.
        tokens: about how many tokens have come; None where the answer comes in one piece.
        tokens_per_s: the average, without the time that it was held; None while nothing has come.
        replays: how often it was sent again because its engine died.
        continuations: how often another engine went on with its answer.
    """

    id: str
    who: str = ""
    model: str = ""
    path: str = ""
    state: str = "running"
    since: float = 0.0
    age_s: float = 0.0
    stream: bool = False
    tokens: int | None = None
    tokens_per_s: float | None = None
    replays: int = 0
    continuations: int = 0


@dataclass(frozen=True)
class Change:
    """A key of the configuration file that differs from what is in force.

    Args:
        key: its path, such as `models.tiny.args.max-model-len`; `models.tiny` for a model that comes or goes.
        before, after: the values as JSON; empty where there is none, `"…"` where it may be a secret.
        applies: a value of `settings.Applies`.
        models: whose engines a reload starts, ends, or replaces.
    """

    key: str
    before: str = ""
    after: str = ""
    applies: str = "at once"
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What one identity has under way, and has had since the daemon began.

    Args:
        who: `uid:1000` on the Unix socket, `key:NAME` on TCP, or the IP address where no key is asked for.
        requests: for inference, all that were let in.
        refused: that were not, because of its limits.
        running, held: of those under way, how many an engine works on, and how many wait.
        tokens: about how many were generated for it.
    """

    who: str
    requests: int = 0
    refused: int = 0
    running: int = 0
    held: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Status:
    """The daemon as it is now; `state` and `model` are the default model's.

    Args:
        usage: what the asker may see of what everybody has had.
        queue_limit: how many requests may wait, of all models together.
        asker: who asks, as `Usage.who` has it.
        denied: why the asker may not administer; empty if they may.
    """

    version: str
    state: str
    model: str
    since: float
    addresses: tuple[str, ...]
    models: tuple[ModelStatus, ...]
    usage: tuple[Usage, ...] = ()
    queue_limit: int = 0
    asker: str = ""
    denied: str = ""

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Status":
        """Reads what `to_json` wrote, also that of another version: unknown keys are passed over."""
        models = tuple(map(model_status, table.get("models", ())))
        usage = tuple(known(Usage, each) for each in table.get("usage", ()))
        return known(cls, {**table, "models": models, "addresses": tuple(table.get("addresses", ())), "usage": usage})


def model_status(table: Mapping[str, Any]) -> ModelStatus:
    """Reads one model's status, also that of another version."""
    return known(ModelStatus, {**table, "phases": tuple(known(PhaseSpan, each) for each in table.get("phases", ()))})


def request_status(table: Mapping[str, Any]) -> RequestStatus:
    """Reads what is said of one request, also by another version."""
    return known(RequestStatus, table)


def change(table: Mapping[str, Any]) -> Change:
    """Reads one change of the configuration, also another version's."""
    return known(Change, {**table, "models": tuple(table.get("models", ()))})


def log_line(table: Mapping[str, Any]) -> LogLine:
    """Reads one line of a log, also another version's."""
    return known(LogLine, table)
