"""Every failure vllmd knows by name, and what each one means to HTTP and to the shell.

VllmdError
├── ConfigError              the configuration cannot be used; carries every problem found
├── AddressError             an address that is none, or cannot be listened on
├── RequestError             the client asked for something impossible
│   ├── ModelNotFound
│   ├── RequestNotFound
│   ├── IncidentNotFound
│   ├── JobNotFound
│   ├── EnvironmentNotFound
│   ├── UnknownFlags
│   ├── InUse
│   ├── RouteNotFound
│   ├── MethodNotAllowed
│   ├── BodyTooLarge
│   ├── TooSlow
│   ├── Unauthenticated
│   └── Denied
├── Unavailable              vllmd cannot serve now; later it may
│   ├── Overloaded
│   ├── TooMany
│   ├── NotReady
│   └── EngineFailed
├── EngineError              the engine did something wrong
│   ├── EngineUnreachable    nothing came back: the request may be sent again
│   │   └── EngineRefused    it was not even sent
│   ├── EngineSaid           the engine's own error, to be passed on as it is
│   ├── StreamBroken         the answer began and did not end as it should
│   ├── SleepError           it did not go to sleep, or did not wake
│   └── ProbeFailed          a health check without a token
│       ├── NotListening     nobody took the connection
│       └── CertainFailure   a second check would find the same
├── InstallError             the engine's environment could not be built
│   ├── NotInstallable       trying again cannot help
│   └── IndexUnreachable     the package index gives no answer, or none that helps
├── TrialFailed              a model did not come to a token in another environment
├── PullError                a model could not be fetched
│   ├── Gated                the hub gives it only to those who accepted its terms
│   ├── TokenRefused         the hub does not accept the token
│   ├── NotOnHub             the hub has no such model, or no such revision of it
│   ├── HubUnreachable       the hub gives no answer, or none that helps
│   ├── RateLimited          the hub wants to be asked less often
│   ├── NoSpace              there is no room for it
│   └── Damaged              what came, or lies on disk, is not what the hub has
├── Cancelled                somebody ended the request on purpose
│   └── JobCancelled         the same of a job
└── DaemonUnreachable        vllmctl found nobody at the address

A message says what happened; a hint says what to do about it. Both are shown to people, so neither ever holds a
traceback. `OUTCOMES` is the only place that maps an error to an HTTP status, an OpenAI error type and an exit status.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple


class ExitStatus(IntEnum):
    """What vllmctl tells the shell (cli.md §5.5; 3 and 4 follow LSB, 124 follows coreutils' timeout)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_RUNNING = 3
    DENIED = 4
    TIMEOUT = 124
    INTERRUPTED = 130
    PIPE_CLOSED = 141


class VllmdError(Exception):
    """Any failure that vllmd foresees.

    Args:
        message: what happened, one sentence without a final full stop.
        hint: what to do about it; empty when there is nothing sensible to say.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(VllmdError):
    """The configuration cannot be used.

    Args:
        problems: one finished sentence each.
    """

    def __init__(self, problems: list[str], hint: str = "mend the lines above; nothing was started or changed") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class AddressError(VllmdError):
    """An address that cannot be read, or cannot be listened on."""


class RequestError(VllmdError):
    """The client asked for something impossible.

    Args:
        param: the field of the request that is at fault, if it is one.
    """

    def __init__(self, message: str, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint)
        self.param = param


class ModelNotFound(RequestError):
    """No configured model has this name."""


class RequestNotFound(RequestError):
    """No request under way has this id."""


class IncidentNotFound(RequestError):
    """No incident of this name is kept."""


class JobNotFound(RequestError):
    """No job has this id, or none any more."""


class EnvironmentNotFound(RequestError):
    """No environment is called so, or several are."""


class UnknownFlags(RequestError):
    """A model's `args` hold flags that the vLLM of its environment does not know."""


class InUse(RequestError):
    """What is to be removed, or changed, is needed by somebody as it is."""


class RouteNotFound(RequestError):
    """Nothing is served at this path."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not fit."""


class BodyTooLarge(RequestError):
    """The request's body is over `limits.body_bytes`."""


class TooSlow(RequestError):
    """The request's body does not come, or takes too long."""


class Unauthenticated(RequestError):
    """The caller has shown no key, or one that is none."""


class Denied(RequestError):
    """The caller may not do this."""


class Unavailable(VllmdError):
    """vllmd cannot serve the request now.

    Args:
        retry_after_s: seconds after which a new try makes sense; None when nobody knows.
    """

    def __init__(self, message: str, hint: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """The queue is full."""


class TooMany(Unavailable):
    """The caller has more under way, or takes more, than it may; or it fills the queue while others wait too."""


class NotReady(Unavailable):
    """The model did not become ready in the time that the request could wait."""


class EngineFailed(Unavailable):
    """The supervisor has given up on the engine; the message is its verdict."""


class EngineError(VllmdError):
    """The engine did something wrong."""


class EngineUnreachable(EngineError):
    """The engine gave no answer at all, so that the same request can be sent again."""


class EngineRefused(EngineUnreachable):
    """The engine took no connection, so that the request was not even sent."""


class EngineSaid(EngineError):
    """The engine's own error, to be passed on as it is.

    Args:
        body: the engine's error body; None if it said nothing more.
    """

    def __init__(self, message: str, hint: str = "", body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.body = body


class StreamBroken(EngineError):
    """The engine's answer began and did not end as an answer should."""


class SleepError(EngineError):
    """The engine did not go to sleep, or kept its memory over it, or did not wake."""


class ProbeFailed(EngineError):
    """A health check that brought no token."""


class NotListening(ProbeFailed):
    """The engine takes no connections: it has not started yet, or is gone."""


class CertainFailure(ProbeFailed):
    """A failed check after which no second one is needed: the engine hangs, or refuses what every check asks."""


class InstallError(VllmdError):
    """The engine's environment could not be built."""


class NotInstallable(InstallError):
    """Nor could it be if one tried again: there is no such version, or it is made for another Python, or broken."""


class IndexUnreachable(InstallError):
    """The package index gives no answer, or none that helps. That is the fault of none of ours, and passes."""


class TrialFailed(VllmdError):
    """A model did not come to a token in another environment, and is back in its own."""


class PullError(VllmdError):
    """A model could not be fetched."""


class Gated(PullError):
    """The hub gives the model only to those who accepted its terms."""


class TokenRefused(PullError):
    """The hub does not accept the token that it is shown."""


class NotOnHub(PullError):
    """The hub has no such model or revision, or none that it would show."""


class HubUnreachable(PullError):
    """The hub gives no answer, or none that helps."""


class RateLimited(PullError):
    """The hub wants to be asked less often.

    Args:
        retry_after_s: seconds before which it does not want to be asked at all; 0 where it does not say.
    """

    def __init__(self, message: str, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class NoSpace(PullError):
    """There is no room for the model."""


class Damaged(PullError):
    """What came, or what lies on disk, is not what the hub has."""


class Cancelled(VllmdError):
    """Somebody ended the request on purpose, though its client still waited for it."""


class JobCancelled(Cancelled):
    """Somebody called a job off."""


class DaemonUnreachable(VllmdError):
    """Nobody answers at the address that vllmctl was given."""


class Outcome(NamedTuple):
    """What an error means outside: HTTP status, OpenAI's error type, a code, an exit status."""

    status: int
    type: str
    code: str
    exit_status: ExitStatus


OUTCOMES: dict[type[VllmdError], Outcome] = {
    VllmdError: Outcome(500, "server_error", "internal_error", ExitStatus.ERROR),
    ConfigError: Outcome(500, "server_error", "config_error", ExitStatus.USAGE),
    AddressError: Outcome(500, "server_error", "address_error", ExitStatus.USAGE),
    RequestError: Outcome(400, "invalid_request_error", "invalid_request", ExitStatus.ERROR),
    ModelNotFound: Outcome(404, "invalid_request_error", "model_not_found", ExitStatus.ERROR),
    RequestNotFound: Outcome(404, "invalid_request_error", "request_not_found", ExitStatus.ERROR),
    IncidentNotFound: Outcome(404, "invalid_request_error", "incident_not_found", ExitStatus.ERROR),
    JobNotFound: Outcome(404, "invalid_request_error", "job_not_found", ExitStatus.ERROR),
    EnvironmentNotFound: Outcome(404, "invalid_request_error", "environment_not_found", ExitStatus.ERROR),
    UnknownFlags: Outcome(409, "invalid_request_error", "unknown_flags", ExitStatus.ERROR),
    InUse: Outcome(409, "invalid_request_error", "in_use", ExitStatus.ERROR),
    RouteNotFound: Outcome(404, "invalid_request_error", "route_not_found", ExitStatus.ERROR),
    MethodNotAllowed: Outcome(405, "invalid_request_error", "method_not_allowed", ExitStatus.ERROR),
    BodyTooLarge: Outcome(413, "invalid_request_error", "body_too_large", ExitStatus.ERROR),
    TooSlow: Outcome(408, "invalid_request_error", "request_timeout", ExitStatus.ERROR),
    Unauthenticated: Outcome(401, "authentication_error", "invalid_api_key", ExitStatus.DENIED),
    Denied: Outcome(403, "permission_error", "denied", ExitStatus.DENIED),
    Unavailable: Outcome(503, "server_error", "unavailable", ExitStatus.ERROR),
    Overloaded: Outcome(503, "server_error", "overloaded", ExitStatus.ERROR),
    TooMany: Outcome(429, "rate_limit_error", "too_many_requests", ExitStatus.ERROR),
    NotReady: Outcome(503, "server_error", "not_ready", ExitStatus.NOT_RUNNING),
    EngineFailed: Outcome(503, "server_error", "engine_failed", ExitStatus.ERROR),
    EngineError: Outcome(502, "server_error", "engine_error", ExitStatus.ERROR),
    InstallError: Outcome(500, "server_error", "install_failed", ExitStatus.ERROR),
    IndexUnreachable: Outcome(503, "server_error", "index_unreachable", ExitStatus.ERROR),
    TrialFailed: Outcome(500, "server_error", "trial_failed", ExitStatus.ERROR),
    PullError: Outcome(502, "server_error", "pull_failed", ExitStatus.ERROR),
    Gated: Outcome(403, "permission_error", "model_gated", ExitStatus.ERROR),
    TokenRefused: Outcome(403, "permission_error", "hub_token_refused", ExitStatus.ERROR),
    NotOnHub: Outcome(404, "invalid_request_error", "not_on_hub", ExitStatus.ERROR),
    HubUnreachable: Outcome(503, "server_error", "hub_unreachable", ExitStatus.ERROR),
    RateLimited: Outcome(503, "server_error", "hub_rate_limited", ExitStatus.ERROR),
    NoSpace: Outcome(507, "server_error", "no_space", ExitStatus.ERROR),
    Damaged: Outcome(502, "server_error", "model_damaged", ExitStatus.ERROR),
    # nginx's 499; a client's library asks again after 409 and 5xx, which is the last that is wanted here.
    Cancelled: Outcome(499, "request_cancelled", "cancelled", ExitStatus.ERROR),
    DaemonUnreachable: Outcome(503, "server_error", "unreachable", ExitStatus.NOT_RUNNING),
}

_KIND_BY_CODE = {outcome.code: kind for kind, outcome in OUTCOMES.items()}
_EXIT_BY_CODE = {outcome.code: outcome.exit_status for outcome in OUTCOMES.values()}
_EXIT_BY_STATUS = {401: ExitStatus.DENIED, 403: ExitStatus.DENIED}


def outcome_of(error: VllmdError) -> Outcome:
    """What `error` means outside: its own row of `OUTCOMES`, else that of its nearest ancestor."""
    return next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)


def kind_of(code: str) -> type[VllmdError]:
    """The error that is told by `code`; VllmdError for one that is nobody's."""
    return _KIND_BY_CODE.get(code, VllmdError)


def exit_status_of(code: object, http_status: int) -> ExitStatus:
    """The exit status for an error body's `code`, or for the HTTP status where the code is the engine's own."""
    known = _EXIT_BY_CODE.get(code) if isinstance(code, str) else None
    return known or _EXIT_BY_STATUS.get(http_status, ExitStatus.ERROR)
