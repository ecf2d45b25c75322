"""All routes of a running daemon, fed by schemathesis from the description that it serves itself."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
import schemathesis
from daemons import Daemon
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks as openapi_checks

from fuzz.tally import Tally, Until
from vllmd.routes import OPENAPI

ENDLESS = frozenset({("GET", "/api/events")})
"""Streams that never end: they cannot be waited for."""

PATIENCE_S = 60.0
EXAMPLES = 25
"""So many inputs at a time; between them the clock is looked at."""

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]

Feed = Callable[[Case[Any]], None]


def fuzz(
    daemon: Daemon,
    headers: Mapping[str, str],
    until: Until,
    first_seed: int = 0,
    examples: int = EXAMPLES,
    description: Any = None,
) -> list[Tally]:
    """Feeds every route again and again until the time is up, each at least once.

    Args:
        daemon: it runs, and serves its description.
        headers: sent along: a key.
        first_seed: the same one makes the same inputs.
        description: of the routes; None for the daemon's own.
        examples: so many inputs for a route at a time, valid ones and as many that are not.

    Raises:
        AssertionError: an answer was not as described, or the next request was not answered.
    """
    if description is None:
        described = requests.get(f"{daemon.url}{OPENAPI}", headers=dict(headers), timeout=PATIENCE_S)
        description = described.json()
    tallies: dict[str, Tally] = {}
    for round_number in _rounds(until):
        schema = schemathesis.openapi.from_dict(description)
        for operation in (each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)):
            if (operation.method.upper(), operation.path) in ENDLESS:
                continue
            name = f"{operation.method.upper()} {operation.path}"
            tally = tallies.setdefault(name, Tally(name, "schemathesis", answered=0))
            for mode in GenerationMode:
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    _play(strategy, _feeder(daemon, headers, tally), first_seed + round_number, examples)
                except Exception as error:
                    if type(error).__name__ not in ("Unsatisfiable", "InvalidArgument"):
                        raise
    return list(tallies.values())


def _rounds(until: Until) -> Iterator[int]:
    number = 0
    while not number or not until.is_over:
        yield number
        number += 1


def _play(strategy: Any, feed: Feed, number: int, examples: int) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def play(case: Case[Any]) -> None:
        feed(case)

    play()


def _feeder(daemon: Daemon, headers: Mapping[str, str], tally: Tally) -> Feed:
    def feed(case: Case[Any]) -> None:
        if isinstance(case.query, dict) and case.path == "/api/logs":
            case.query.pop("follow", None)  # another stream without an end
        tally.inputs += 1
        try:
            response = case.call(base_url=daemon.url, headers=dict(headers), timeout=PATIENCE_S)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError, ValueError):
            tally.inputs -= 1  # the client would not even send it
            return
        case.validate_response(response, checks=CHECKS)
        assert requests.get(f"{daemon.url}/health", timeout=PATIENCE_S).status_code == 200
        assert tally.answered is not None
        tally.answered += 1

    return feed
