"""`/openapi.json` describes what is served, all of it, and what comes back is as described, whatever is sent."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from daemons import Daemon, running
from fuzz import parsers, routes
from fuzz.tally import Until
from schemathesis.core.failures import FailureGroup

from vllmd import keys, provisions, statuses, wire
from vllmd.incident import Incident, IncidentReport
from vllmd.keys import Scope
from vllmd.server import openapi
from vllmd.server.openai import INFERENCE

LOOPS = ("uvloop",)


@pytest.fixture
def described(daemon: Daemon) -> Any:
    return daemon.fetch("/openapi.json")[1]


def test_every_route_is_described_with_what_it_answers(described: Any) -> None:
    assert described["openapi"] == "3.1.0"
    assert set(described["paths"]) == set(openapi.ANSWERS), "a new route needs a line in openapi.ANSWERS"
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["responses"]["200"]["content"], path
    assert set(INFERENCE) <= set(described["paths"])
    verb = described["paths"][openapi.ORDER]["post"]["parameters"][1]
    assert verb["schema"]["enum"] == ["load", "unload", "restart"]


def test_the_dataclasses_are_the_schemas(described: Any) -> None:
    schemas = described["components"]["schemas"]
    told = (
        statuses.Status,
        statuses.RequestStatus,
        statuses.LogLine,
        statuses.Change,
        provisions.JobStatus,
        provisions.LocalModel,
    )
    for cls in (*told, provisions.EnvironmentStatus, wire.PromptRequest, Incident, IncidentReport):
        assert set(schemas[cls.__name__]["properties"]) == {each.name for each in fields(cls)}
    temperature = schemas["PromptRequest"]["properties"]["temperature"]
    assert (temperature["minimum"], temperature["maximum"], temperature["type"]) == (0, 2, ["number", "null"])


def test_a_status_is_as_described(daemon: Daemon, described: Any) -> None:
    schema = {"$ref": "#/components/schemas/Status", "components": described["components"]}
    validator = jsonschema_rs.validator_for(schema)
    status = daemon.fetch("/api/status")[1]
    validator.validate(status)
    assert not validator.is_valid(status | {"models": 1}), "it would be seen"
    del status["state"]
    assert not validator.is_valid(status)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A daemon that asks for keys, and one that may administer."""
    file: Path = tmp_path_factory.mktemp("fuzz") / "keys"
    key, text = keys.new("fuzz", Scope.ADMIN)
    keys.change(file, lambda old: (*old, key))
    # Nothing is to be installed for real when somebody is asked to.
    with running(Daemon(access={"keys": str(file)}, environ={"PIP_NO_INDEX": "1"})) as daemon:
        yield daemon, {"authorization": f"Bearer {text}"}


@pytest.mark.timeout(300)
def test_whatever_is_sent_the_answer_is_as_described_and_the_next_request_answered(
    guarded: tuple[Daemon, dict[str, str]],
) -> None:
    daemon, headers = guarded
    tallies = routes.fuzz(daemon, headers, Until(0), examples=4)
    served = {f"{verb.upper()} {path}" for path, verbs in openapi_paths(daemon).items() for verb in verbs}
    assert {tally.target for tally in tallies} == served - {" ".join(each) for each in routes.ENDLESS}
    assert all(tally.inputs and tally.inputs == tally.answered for tally in tallies)
    assert daemon.order("load", wait=True)[0] == 200


def openapi_paths(daemon: Daemon) -> dict[str, Any]:
    paths: dict[str, Any] = daemon.fetch("/openapi.json")[1]["paths"]
    return paths


def test_an_answer_that_is_not_as_described_would_be_found(daemon: Daemon, described: Any) -> None:
    answer = described["paths"]["/health"]["get"]["responses"]["200"]["content"]["application/json"]
    answer["schema"]["properties"]["status"] = {"type": "integer"}
    described["paths"] = {"/health": described["paths"]["/health"]}
    with pytest.raises(FailureGroup, match="violates schema"):
        routes.fuzz(daemon, {}, Until(0), examples=1, description=described)


@pytest.mark.parametrize("target", parsers.TARGETS)
def test_whatever_is_read_is_made_out_or_refused_by_name(target: str) -> None:
    assert parsers.play(target, 0, examples=60) >= 60
