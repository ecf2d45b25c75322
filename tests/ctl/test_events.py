"""`vllmctl events`: one line for each event, whatever the event is."""

import json

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, stream

from vllmd import sse
from vllmd.ctl.events import describe

EVENTS = "GET /api/events"
MODEL = {"name": "qwen", "state": "starting", "phase": "loading weights", "percent": 43, "generation": 2, "pid": 7}
CONTINUED = {"model": "qwen", "request": "8a7f", "generation": 3}


def told(kind: str, table: dict[str, object]) -> str:
    return describe(kind, table, 0.0).partition("  ")[2]


def test_what_each_kind_says() -> None:
    assert told("model", MODEL) == "qwen: starting, loading weights 43 % (generation 2, pid 7)"
    assert told("model", {"name": "q", "state": "failed", "reason": "no memory"}) == "q: failed: no memory"
    assert told("continued", CONTINUED) == "qwen: generation 3 goes on with request 8a7f"
    assert told("missed", {"missed": 5}) == "5 events were missed"
    assert told("new in 2.0", {"x": 1}) == 'new in 2.0: {"x": 1}'


def test_the_end_of_the_daemon_is_3(daemon: StubDaemon, shell: Shell) -> None:
    events = [("model", MODEL), ("continued", CONTINUED)]
    answer = stream(*(sse.encode(json.dumps(table), kind) for kind, table in events), b": ping\n\n")
    daemon.on(EVENTS, answer)
    result = shell.run("events", "--json")
    assert result.status == 3
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"event": k, **t} for k, t in events]
    assert result.stderr.startswith("vllmctl: the daemon has closed the connection\n")
    assert len(shell.run("events").stdout.splitlines()) == 2


@pytest.mark.parametrize("data", ["{", "1", "{}"])
def test_an_event_that_cannot_be_read(daemon: StubDaemon, shell: Shell, data: str) -> None:
    daemon.on(EVENTS, stream(sse.encode(data, "model")))
    result = shell.run("events")
    assert result.status == 1
    assert result.stderr.startswith("vllmctl: an event of the daemon cannot be read: ")


def test_one_that_may_not(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(EVENTS, refuse(403, "denied", "no"))
    assert shell.run("events").status == 4


def test_a_reader_that_leaves_is_141(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(EVENTS, stream(*[sse.encode(json.dumps(MODEL), "model")] * 50_000))
    result = shell.script('"$@" events | head -1 | wc -l; echo "${PIPESTATUS[0]}"')
    assert (result.stdout, result.stderr) == ("1\n141\n", "")
