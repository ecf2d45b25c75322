"""`/api/incidents`: an engine dies, everybody who follows hears of it, and what is known can be read."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, running
from waiting import until, until_sync

from vllmd import keys
from vllmd.keys import Scope

INCIDENTS, EVENTS = "/api/incidents", "/api/events"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The headers that show a key of the daemon's, good for inference."""
    file: Path = tmp_path_factory.mktemp("keys") / "keys"
    key, text = keys.new("ci", Scope.INFERENCE)
    keys.change(file, lambda old: (*old, key))
    return {"authorization": f"Bearer {text}", "x-file": str(file)}


@pytest.fixture(scope="module")
def struck(shown: dict[str, str]) -> Iterator[Daemon]:
    """A daemon whose engine has died once, with a file of somebody else's among the incidents."""
    with running(Daemon(access={"keys": shown.pop("x-file")})) as daemon:
        os.kill(daemon.engine_pid, signal.SIGKILL)
        until_sync(lambda: listed(daemon), "the incident to be written")
        (daemon.folder / "s" / "incidents" / "20990101T000000.000-tiny-1.json").write_text("{")
        yield daemon


def listed(daemon: Daemon, query: str = "") -> list[dict[str, Any]]:
    status, body = daemon.fetch(f"{INCIDENTS}{query}")
    assert status == 200, body
    found: list[dict[str, Any]] = body["incidents"]
    return found


def test_what_is_known_of_an_end(struck: Daemon) -> None:
    (incident,) = listed(struck, "?model=tiny&limit=5")
    assert sorted(incident) == sorted(
        ("id", "at", "model", "generation", "cause", "reason", "hint", "lived_s", "was_ready")
    )
    assert (incident["model"], incident["generation"], incident["was_ready"]) == ("tiny", 1, True)
    assert incident["reason"] == struck.model().reason != ""
    status, whole = struck.fetch(f"{INCIDENTS}/{incident['id']}")
    assert status == 200
    assert {key: whole[key] for key in incident} == incident
    assert any("Application startup complete" in line for line in whole["lines"])
    assert whole["versions"]["kernel"] == os.uname().release
    assert f"{incident['id']}.json" in struck.log, "where it lies stands in the log"
    assert "20990101T000000.000-tiny-1.json" in struck.log, "what cannot be read is told"
    assert struck.fetch(f"{INCIDENTS}/20990101T000000.000-tiny-1")[0] == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{INCIDENTS}?model=tini", 404, "model_not_found"),
        (f"{INCIDENTS}?limit=x", 400, "invalid_request"),
        (f"{INCIDENTS}/nothing", 404, "incident_not_found"),
        (f"{INCIDENTS}/..%2F..%2Fvllmd.toml", 404, "incident_not_found"),
        (f"{INCIDENTS}/a/b", 404, "incident_not_found"),
    ],
)
def test_what_there_is_not(struck: Daemon, path: str, status: int, code: str) -> None:
    answer = struck.fetch(path)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    assert listed(struck, "?limit=0") == []


async def test_whoever_may_see_the_status_and_the_log_may_see_these(struck: Daemon, shown: dict[str, str]) -> None:
    (incident,) = listed(struck)
    for path in (INCIDENTS, f"{INCIDENTS}/{incident['id']}", "/api/status", "/api/logs", "/api/logs?follow=1"):
        assert (await struck.tcp.ask(path)).status == 401, path
    for path in (INCIDENTS, f"{INCIDENTS}/{incident['id']}", "/api/status", "/api/logs"):
        assert (await struck.tcp.ask(path, headers=shown)).status == 200, path


async def test_who_follows_hears_of_it(struck: Daemon) -> None:
    struck.wait_for("ready")
    before = len(listed(struck))
    async with struck.unix.stream(EVENTS) as following:
        await following.until(b"event: model")
        os.kill(struck.engine_pid, signal.SIGKILL)
        await following.until(b"event: incident")
        await following.until(b"\n\n")
        (told,) = [each.json() for each in following.events if each.name == "incident"]
    assert told == listed(struck, "?limit=1")[0], "the newest first"
    assert (told["model"], told["generation"], len(listed(struck))) == ("tiny", 2, before + 1)
    await until(lambda: struck.model().state == "ready", "the next engine")
