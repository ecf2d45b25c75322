"""What daemon and vllmctl say to each other in JSON: status, the simple door's request, error bodies, paths."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeVar

from vllmd.errors import EngineError, EngineSaid, RequestError, VllmdError, outcome_of
from vllmd.settings import Problem, option, read

T = TypeVar("T")

SHOWN_CHARACTERS = 500
"""The longest message of an error."""


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

    @property
    def summary(self) -> str:
        """State, phase and reason in a few words, such as `starting, loading weights 43 %`."""
        if self.state in ("failed", "backoff", "unhealthy") and self.reason:
            return f"{self.state}: {self.reason}"
        if self.state != "starting" or not self.phase:
            return self.state
        return f"starting, {self.phase}" + ("" if self.percent is None else f" {self.percent} %")

    @property
    def is_passing(self) -> bool:
        """Whether the state ends by itself, so that its age is worth telling."""
        return self.state not in ("ready", "stopped", "failed")

    def sentence(self, now: float | None = None) -> str:
        """The summary, with what is left of a state that will pass, or its age: `starting, compiling, 41 s`."""
        if not self.is_passing:
            return self.summary
        if self.eta_s is not None:
            return f"{self.summary}, {_about(self.eta_s)} left"
        age_s = max(0.0, (time.time() if now is None else now) - self.since)
        return f"{self.summary}, {age_s:.0f} s"


def _about(seconds: float) -> str:
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
class LocalModel:
    """A model on the daemon's disk, at one commit.

    Args:
        repo: its name on the hub.
        revisions: by which it was asked for, but for the hub's default.
        commit: what it is.
        size: what of it is there, in bytes; commits share files, so that not all of it may be its own.
        total: what it should be; None where vllmd did not pull it.
        complete: whether all of it is there; None where vllmd did not pull it.
        used_by: the configured models that are made of it.
        pulled_at: when the hub was asked, Unix seconds; None where vllmd did not pull it.
        path: its directory.
    """

    repo: str
    revisions: tuple[str, ...] = ()
    commit: str = ""
    size: int = 0
    total: int | None = None
    complete: bool | None = None
    used_by: tuple[str, ...] = ()
    pulled_at: float | None = None
    path: str = ""


class JobState(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobStatus:
    """Long work of the daemon's own as it is now: a model that is pulled, an environment that is installed.

    Args:
        id: as in its path.
        kind: what is done: `pull`, `verify`, `install`.
        subject: what it is done to.
        state: a value of `JobState`.
        phase: what is being done, in a few words.
        done, total: bytes; None where nobody counts them.
        bytes_per_s: how fast it goes of late; None while nobody can know.
        eta_s: seconds until the phase is over; None while nobody can know.
        started_at, ended_at: Unix seconds; the second is None while it runs.
        code, reason, hint: why it failed; empty if it did not.
    """

    id: str
    kind: str = ""
    subject: str = ""
    state: str = "running"
    phase: str = ""
    done: int | None = None
    total: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    code: str = ""
    reason: str = ""
    hint: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state != JobState.RUNNING

    @property
    def percent(self) -> int | None:
        """How much of the phase is done, 0 to 100; None where nobody knows the whole."""
        if self.done is None or self.total is None:
            return None
        return min(100, 100 * self.done // self.total) if self.total else 100

    def sentence(self) -> str:
        """The job in a few words: `downloading 43 %, 6.5 of 15.2 GB, 118 MB/s, about 75 s left`."""
        if self.is_over:
            return f"{self.state}: {self.reason}" if self.reason and self.state == JobState.FAILED else self.state
        words = [" ".join(filter(None, [self.phase or "begins", _percent(self.percent)]))]
        if self.done is not None and self.total is not None:
            words.append(f"{size(self.done)} of {size(self.total)}")
        if self.bytes_per_s is not None:
            words.append(f"{size(round(self.bytes_per_s))}/s")
        if self.eta_s is not None:
            words.append(f"{_about(self.eta_s)} left")
        return ", ".join(words)


@dataclass(frozen=True)
class EnvironmentStatus:
    """A version of vLLM that is installed, in an environment of its own.

    Args:
        id: the name of its directory.
        requirement: what was installed.
        version: what it calls itself.
        current: whether models run in it that have nothing of their own.
        models: those that run in it, or would if they were loaded.
        bytes: what it takes of the disk; None where nobody has counted.
        installed_at: Unix seconds; None where nobody knows.
    """

    id: str
    requirement: str = ""
    version: str = ""
    current: bool = False
    models: tuple[str, ...] = ()
    bytes: int | None = None
    installed_at: float | None = None


def _percent(percent: int | None) -> str:
    return "" if percent is None else f"{percent} %"


def size(count: int) -> str:
    """A count of bytes as people write it, in powers of ten as disks and downloads are sold: `15.2 GB`."""
    amount, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    for larger in units:
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"


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
class Fit:
    """Whether the memory is there that a model's engine needs; of several GPUs, each has such a share of it.

    Args:
        model: its name.
        verdict: `yes`, `tight`, `no` or `unknown`.
        reason, hint: why not, and what to do about it; empty where all is well.
        permanent: it would not fit if nobody else held memory either.
        device: `GPU` or `CPU`; empty where that is not known.
        devices: how many share the model.
        max_model_len: tokens of the longest sequence.
        weights_bytes, kv_token_bytes, kv_sequence_bytes: on each device; of one token, and of the longest sequence.
        kv_bytes: the KV cache that is set aside, whatever a sequence needs; None: what is left.
        allowance_bytes: for all else, as in starts that were recorded.
        needed_bytes: the sum of weights, KV cache and allowance.
        total_bytes, allowed_bytes, free_bytes: each device's memory: all, what the engine may have, what is free.
        longest: the largest `max-model-len` that fits; None where none does, or nobody knows.
        share: the least `gpu-memory-utilization` that fits; None likewise.
    """

    model: str
    verdict: str = "unknown"
    reason: str = ""
    hint: str = ""
    permanent: bool = False
    device: str = ""
    devices: int = 1
    max_model_len: int | None = None
    weights_bytes: int | None = None
    kv_token_bytes: int | None = None
    kv_sequence_bytes: int | None = None
    kv_bytes: int | None = None
    allowance_bytes: int | None = None
    needed_bytes: int | None = None
    total_bytes: int | None = None
    allowed_bytes: int | None = None
    free_bytes: int | None = None
    longest: int | None = None
    share: float | None = None


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
        usage = tuple(_known(Usage, each) for each in table.get("usage", ()))
        return _known(cls, {**table, "models": models, "addresses": tuple(table.get("addresses", ())), "usage": usage})


def dumps(value: object) -> str:
    """JSON in which text stays readable, unless it holds what UTF-8 cannot carry (half a surrogate pair)."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


class Told(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_json(value: Told) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return asdict(value)


def model_status(table: Mapping[str, Any]) -> ModelStatus:
    """Reads one model's status, also that of another version."""
    return _known(ModelStatus, {**table, "phases": tuple(_known(PhaseSpan, each) for each in table.get("phases", ()))})


def request_status(table: Mapping[str, Any]) -> RequestStatus:
    """Reads what is said of one request, also by another version."""
    return _known(RequestStatus, table)


def local_model(table: Mapping[str, Any]) -> LocalModel:
    """Reads what is said of one model on the disk, also by another version."""
    lists = {key: tuple(table.get(key, ())) for key in ("revisions", "used_by")}
    return _known(LocalModel, {**table, **lists})


def job_status(table: Mapping[str, Any]) -> JobStatus:
    """Reads what is said of one job, also by another version."""
    return _known(JobStatus, table)


def environment_status(table: Mapping[str, Any]) -> EnvironmentStatus:
    """Reads what is said of one environment, also by another version."""
    return _known(EnvironmentStatus, {**table, "models": tuple(table.get("models", ()))})


def change(table: Mapping[str, Any]) -> Change:
    """Reads one change of the configuration, also another version's."""
    return _known(Change, {**table, "models": tuple(table.get("models", ()))})


def fit(table: Mapping[str, Any]) -> Fit:
    """Reads a sum, also another version's."""
    return _known(Fit, table)


def log_line(table: Mapping[str, Any]) -> LogLine:
    """Reads one line of a log, also another version's."""
    return _known(LogLine, table)


def _known(cls: type[T], table: Mapping[str, Any]) -> T:
    names = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in table.items() if key in names})


@dataclass(frozen=True)
class PromptRequest:
    """The simple door's request; None stands for what the client left out."""

    prompt: str = option("", "the question")
    system: str | None = option(None, "the system prompt")
    model: str | None = option(None, "the model's name")
    temperature: float | None = option(None, "sampling temperature", minimum=0, maximum=2)
    top_p: float | None = option(None, "nucleus sampling", minimum=0, maximum=1)
    max_tokens: int | None = option(None, "the longest answer, in tokens", minimum=1)
    stop: tuple[str, ...] | None = option(None, "strings that end the answer")
    seed: int | None = option(None, "seed of the sampling")
    stream: bool = option(True, "events as they come, or one JSON object at the end")

    def messages(self) -> list[dict[str, str]]:
        """The chat that the engine is asked to continue."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class PullRequest:
    """Which model is to be fetched, or verified."""

    model: str = option("", "the name of a configured model, or a name on the hub")
    revision: str | None = option(None, "a branch, tag or commit; the hub's default where it is left out")
    repair: bool = option(False, "verify: fetch anew what is broken")


@dataclass(frozen=True)
class InstallRequest:
    """Which vLLM is to be installed."""

    version: str | None = option(None, "of vLLM; the one that vllmd was made with where it is left out")
    variant: str | None = option(None, "cuda, cpu or rocm; what suits the machine where it is left out")


@dataclass(frozen=True)
class UseRequest:
    """Who is to run in an environment."""

    model: str | None = option(None, "the name of a configured model; all of them where it is left out")


ENVELOPE = ("input", "output_only", "wait_for_completion", "workflow_id")


def read_prompt(body: object) -> PromptRequest:
    """Reads the body of `POST /api/prompt`.

    Raises:
        RequestError: it is no object, has no prompt, an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(body, Mapping):
        raise RequestError("the body is not a JSON object", 'send {"prompt": "…"}')
    table = {key: value for key, value in body.items() if value is not None}
    if isinstance(table.get("stop"), str):
        table["stop"] = [table["stop"]]
    problems: list[Problem] = []
    request = read(PromptRequest, table, "", problems)
    for problem in problems:
        known = ", ".join(each.name for each in fields(PromptRequest))
        raise RequestError(str(problem), f"the fields are {known}", param=problem.place)
    if not request.prompt.strip():
        said = "prompt: it is empty" if "prompt" in table else "prompt: missing"
        raise RequestError(said, 'send {"prompt": "your question"}', param="prompt")
    return request


def read_workflow_run(body: object) -> PromptRequest:
    """Reads the body of `POST /api/workflows/runs`: the same request in model-compose's envelope.

    Raises:
        RequestError: as `read_prompt`, or the envelope has an unknown key or no object in `input`.
    """
    if not isinstance(body, Mapping) or "input" not in body:
        raise RequestError("input: missing", 'send {"input": {"prompt": "…"}}', param="input")
    for key in body:
        if key not in ENVELOPE:
            raise RequestError(f"{key}: unknown key", f"known are {', '.join(ENVELOPE)}", param=str(key))
    if not isinstance(body["input"], Mapping):
        raise RequestError("input: expected an object", 'send {"input": {"prompt": "…"}}', param="input")
    return read_prompt(body["input"])


def error_body(error: VllmdError) -> dict[str, Any]:
    """An error as clients of OpenAI's API expect it, with whose it is and what to do about it."""
    if isinstance(error, EngineSaid) and error.body is not None:
        return dict(error.body)
    outcome = outcome_of(error)
    param = error.param if isinstance(error, RequestError) else None
    body = {
        "message": _cut(error.message),
        "type": outcome.type,
        "code": outcome.code,
        "param": _cut(param) if param else None,
        "source": "engine" if isinstance(error, EngineError) else "vllmd",
        "hint": error.hint,
    }
    return {"error": body}


def _cut(text: str) -> str:
    """A client that sent a megabyte in the wrong place need not get it back."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
