"""`vllmctl status` and `vllmctl models`."""

import json
import time
from dataclasses import replace

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, reply

from vllmd import statuses, wire
from vllmd.ctl.status import duration, render, used

STATUS, MODELS = "GET /api/status", "GET /v1/models"
GIB = 1 << 30
NOW = 1_800_000_000.0


def a_status(state: str = "ready", **more: object) -> statuses.Status:
    model = statuses.ModelStatus("qwen", "Qwen/Qwen2-7B-Instruct", state, default=True, since=NOW - 100, **more)  # type: ignore[arg-type]
    return statuses.Status("0.1.0", state, "qwen", NOW - 7300, ("unix:///run/vllmd/vllmd.sock",), (model,))


@pytest.mark.parametrize(
    ("state", "status"),
    [("ready", 0), ("starting", 3), ("stopped", 3), ("unhealthy", 3), ("stopping", 3), ("backoff", 3), ("failed", 3)],
)
def test_the_exit_status_is_the_default_model_s(daemon: StubDaemon, shell: Shell, state: str, status: int) -> None:
    daemon.on(STATUS, reply(wire.to_json(a_status(state))))
    result = shell.run("status")
    assert (result.status, result.stderr) == (status, "")
    assert result.stdout.startswith(f"qwen: {state}")


@pytest.mark.parametrize(
    ("state", "on_demand", "status"),
    [("asleep", True, 0), ("asleep", False, 3), ("starting", True, 0), ("backoff", True, 3)],
)
def test_a_model_that_a_request_brings_in_is_no_trouble(
    daemon: StubDaemon, shell: Shell, state: str, on_demand: bool, status: int
) -> None:
    daemon.on(STATUS, reply(wire.to_json(a_status(state, on_demand=on_demand))))
    assert shell.run("status").status == status


def test_json_is_the_daemon_s_own(daemon: StubDaemon, shell: Shell) -> None:
    table = json.loads(json.dumps({**wire.to_json(a_status("starting")), "later": {"x": 1}}))
    daemon.on(STATUS, reply(table))
    result = shell.run("status", "--json")
    assert (result.status, json.loads(result.stdout)) == (3, table)
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "answer", [refuse(403, "denied", "no"), refuse(500, "internal_error", "oh"), reply({"nothing": 1}), reply([1])]
)
def test_a_state_that_cannot_be_told_is_4(daemon: StubDaemon, shell: Shell, answer: object) -> None:
    daemon.on(STATUS, answer)  # type: ignore[arg-type]
    result = shell.run("status", "--json")
    assert (result.status, result.stdout) == (4, "")
    assert result.stderr.startswith("vllmctl: ")


def test_a_status_in_lines() -> None:
    lines = render(a_status(pid=42, generation=3, restarts=1, running=2, held=1), NOW)
    assert lines[0] == "qwen: ready  (default)"
    assert lines[1] == "    model         Qwen/Qwen2-7B-Instruct"
    assert lines[2].endswith("(1 min 40 s)")
    assert lines[3] == "    engine        pid 42, generation 3, restarts 1"
    assert lines[4] == "    requests      2 running, 1 held"
    assert lines[5] == "vllmd 0.1.0, up 2 h 1 min, at unix:///run/vllmd/vllmd.sock"


def test_a_failure_in_lines() -> None:
    lines = render(a_status("failed", reason="out of memory", hint="take a smaller model"), NOW)
    assert lines[0] == "qwen: failed: out of memory  (default)"
    assert lines[-3:-1] == ["    last failure  out of memory", "                  take a smaller model"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (41.9, "41 s"), (60, "1 min 0 s"), (3600, "1 h 0 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_rate_is_told_where_it_is_known() -> None:
    assert render(a_status(running=2, tokens_per_s=87.25), NOW)[3] == "    requests      2 running, 0 held, 87.2 tok/s"


@pytest.mark.parametrize("verb", [["status"], ["top"], ["cancel", "8a"], ["ps"]])
def test_a_daemon_of_another_version_is_noticed_once(daemon: StubDaemon, shell: Shell, verb: list[str]) -> None:
    daemon.server_name = "vllmd/99.1.0"
    daemon.on(STATUS, reply(wire.to_json(a_status())))
    daemon.on("GET /api/requests", reply({"requests": [{"id": "8a7f"}]}))
    daemon.on("DELETE /api/requests/8a7f", reply({}, 202))
    result = shell.run(*verb)
    assert (result.status, result.stderr.count("vllmd is version 99.1.0, vllmctl is ")) == (0, 1)


def test_what_a_model_takes_and_when_it_comes_are_told_where_they_are_known() -> None:
    lines = render(a_status("asleep", load="demand", used_at=NOW - 200, claim_bytes=3 * GIB // 2, on_demand=True), NOW)
    assert lines[0] == "qwen: asleep  (default)"
    assert lines[3:-1] == [
        "    memory        1.50 GiB of each device",
        "    loaded        on demand",
        "    requests      0 running, 0 held",
        "    last used     3 min ago",
    ]
    assert "    loaded        by hand" in render(a_status(load="manual"), NOW)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "-"),
        ({"used_at": NOW - 200.0}, "3 min ago"),
        ({"used_at": NOW + 9}, "0 s ago"),
        ({"used_at": NOW - 9, "running": 1}, "now"),
    ],
)
def test_when_a_model_was_last_of_use(more: dict[str, float], text: str) -> None:
    assert used(a_status(**more).models[0], NOW) == text  # type: ignore[arg-type]


def test_models_are_a_table(daemon: StubDaemon, shell: Shell) -> None:
    found = a_status(running=2, claim_bytes=16 * GIB)
    resting = [
        statuses.ModelStatus("embeddings", state="asleep", load="demand", on_demand=True, used_at=time.time() - 200),
        statuses.ModelStatus("llama", load="demand", on_demand=True),
        statuses.ModelStatus("mixtral", load="manual"),
    ]
    daemon.on(STATUS, reply(wire.to_json(replace(found, models=(*found.models, *resting)))))
    result = shell.run("models")
    assert (result.status, result.stderr) == (0, "")
    heading, qwen, embeddings, *others = result.stdout.splitlines()
    assert heading == "MODEL       STATE                           LOAD    USED          MEMORY"
    assert qwen == "qwen        ready                           start   now        16.00 GiB"
    assert embeddings == "embeddings  asleep                          demand  3 min ago          -"
    assert [line.split("  ")[0] for line in others] == ["llama", "mixtral"]
    assert "not loaded, a request loads it  demand  -" in others[0]


def test_their_json_is_the_list_that_openai_s_clients_know(daemon: StubDaemon, shell: Shell) -> None:
    listing = {"object": "list", "data": [{"id": "qwen", "status": "ready"}, {"id": "llama", "status": "asleep"}]}
    daemon.on(MODELS, reply(listing))
    assert json.loads(shell.run("models", "--json").stdout) == listing


@pytest.mark.parametrize("table", [{"models": [{}]}, {"models": 3}, [1], {}])
def test_a_list_that_is_none_is_an_error(daemon: StubDaemon, shell: Shell, table: object) -> None:
    daemon.on(STATUS, reply(table))
    assert shell.run("models").status == 3
