"""The tree of failures, as it is drawn and as it is."""

import re
from collections.abc import Iterator

import pytest

from vllmd import errors
from vllmd.errors import (
    OUTCOMES,
    BodyTooLarge,
    ConfigError,
    DaemonUnreachable,
    Denied,
    EngineError,
    EngineFailed,
    EngineUnreachable,
    ExitStatus,
    MethodNotAllowed,
    ModelNotFound,
    NotReady,
    Overloaded,
    ProbeFailed,
    RequestError,
    RouteNotFound,
    StreamBroken,
    Unavailable,
    VllmdError,
    exit_status_of,
    outcome_of,
)

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, VllmdError)]


def drawn() -> Iterator[tuple[str, str]]:
    """Each class in the docstring's tree with the one that it hangs from."""
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"(?P<branch>(?:[│ ]   )*[├└]── |)(?P<name>[A-Z]\w+)(?: {2,}|$)", line):
            depth = len(match["branch"])
            above = [each for each in above if each[0] < depth]
            yield match["name"], above[-1][1] if above else "Exception"
            above.append((depth, match["name"]))


def test_the_tree_is_drawn_as_it_is() -> None:
    assert dict(drawn()) == {each.__name__: each.__mro__[1].__name__ for each in CLASSES}


def test_the_tree_is_drawn_in_the_order_of_the_classes() -> None:
    assert [name for name, _ in drawn()] == [each.__name__ for each in CLASSES]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_outcome(kind: type[VllmdError]) -> None:
    error = ConfigError(["it broke"]) if kind is ConfigError else kind("it broke")
    outcome = outcome_of(error)
    assert 400 <= outcome.status < 600
    assert outcome.type
    assert re.fullmatch("[a-z_]+", outcome.code)
    assert outcome.exit_status is not ExitStatus.OK
    # Nobody has to fall back on "internal error" but the tree's own root.
    assert (outcome is OUTCOMES[VllmdError]) is (kind is VllmdError)


def test_codes_are_no_homonyms() -> None:
    codes = [outcome.code for outcome in OUTCOMES.values()]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize(
    ("error", "status", "code", "exit_status"),
    [
        (VllmdError("x"), 500, "internal_error", 1),
        (ConfigError(["x"]), 500, "config_error", 2),
        (RequestError("x"), 400, "invalid_request", 1),
        (ModelNotFound("x"), 404, "model_not_found", 1),
        (RouteNotFound("x"), 404, "route_not_found", 1),
        (MethodNotAllowed("x"), 405, "method_not_allowed", 1),
        (BodyTooLarge("x"), 413, "body_too_large", 1),
        (Denied("x"), 403, "denied", 4),
        (Unavailable("x"), 503, "unavailable", 1),
        (Overloaded("x"), 503, "overloaded", 1),
        (NotReady("x"), 503, "not_ready", 3),
        (EngineFailed("x"), 503, "engine_failed", 1),
        (EngineError("x"), 502, "engine_error", 1),
        (EngineUnreachable("x"), 502, "engine_error", 1),
        (StreamBroken("x"), 502, "engine_error", 1),
        (ProbeFailed("x"), 502, "engine_error", 1),
        (DaemonUnreachable("x"), 503, "unreachable", 3),
    ],
)
def test_what_an_error_means_outside(error: VllmdError, status: int, code: str, exit_status: int) -> None:
    outcome = outcome_of(error)
    assert (outcome.status, outcome.code, int(outcome.exit_status)) == (status, code, exit_status)


def test_what_an_error_says() -> None:
    error = NotReady("m is not ready", "wait a little", 5)
    assert (str(error), error.message, error.hint, error.retry_after_s) == (
        "m is not ready",
        "m is not ready",
        "wait a little",
        5,
    )
    assert RequestError("x", param="stop").param == "stop"
    assert (Unavailable("x").retry_after_s, RequestError("x").param, VllmdError("x").hint) == (None, None, "")


def test_a_config_error_lists_its_problems() -> None:
    error = ConfigError(["a: wrong", "b: wrong"])
    assert (error.problems, error.message) == (["a: wrong", "b: wrong"], "a: wrong\nb: wrong")


@pytest.mark.parametrize(
    ("code", "http_status", "exit_status"),
    [
        ("not_ready", 503, ExitStatus.NOT_RUNNING),
        ("denied", 403, ExitStatus.DENIED),
        ("engine_failed", 0, ExitStatus.ERROR),
        ("something_new", 403, ExitStatus.DENIED),
        ("something_new", 401, ExitStatus.DENIED),
        ("something_new", 500, ExitStatus.ERROR),
        (400, 400, ExitStatus.ERROR),
        (None, 0, ExitStatus.ERROR),
        ([], 403, ExitStatus.DENIED),
        ({}, 418, ExitStatus.ERROR),
    ],
)
def test_the_exit_status_of_an_error_body(code: object, http_status: int, exit_status: ExitStatus) -> None:
    assert exit_status_of(code, http_status) is exit_status


def test_vllmctl_ends_as_the_daemons_error_would() -> None:
    for outcome in OUTCOMES.values():
        assert exit_status_of(outcome.code, outcome.status) is outcome.exit_status


def test_exit_statuses_are_the_shells() -> None:
    # cli.md: 3 and 4 follow LSB, 124 coreutils' timeout, 128+n a signal.
    assert {each.name: int(each) for each in ExitStatus} == {
        "OK": 0,
        "ERROR": 1,
        "USAGE": 2,
        "NOT_RUNNING": 3,
        "DENIED": 4,
        "TIMEOUT": 124,
        "INTERRUPTED": 130,
        "PIPE_CLOSED": 141,
    }
