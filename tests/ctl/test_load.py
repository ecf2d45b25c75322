"""`vllmctl load`, `unload`, `restart`: what is asked for, and what is said of the outcome."""

import threading

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import Answer, Exchange, StubDaemon, held_until, refuse, reply

from vllmd import statuses, wire


def model(state: str, **more: object) -> dict[str, object]:
    return wire.to_json(statuses.ModelStatus("qwen", state=state, **more))  # type: ignore[arg-type]


def status(*models: statuses.ModelStatus) -> Answer:
    return reply(wire.to_json(statuses.Status("0.1.0", "stopped", "qwen", 0.0, (), models)))


@pytest.mark.parametrize(("verb", "state"), [("load", "ready"), ("restart", "ready"), ("unload", "stopped")])
def test_the_outcome_is_waited_for_and_said(daemon: StubDaemon, shell: Shell, verb: str, state: str) -> None:
    daemon.on(f"POST /api/models/qwen/{verb}?wait=1", reply(model(state)))
    result = shell.run(verb, "qwen")
    assert (result.status, result.stdout, result.stderr) == (0, f"qwen: {state}\n", "")
    assert shell.run(verb, "qwen", "-q").stdout == ""


def test_what_is_unloaded_may_come_back_by_a_request(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/qwen/unload?wait=1", reply(model("stopped", on_demand=True)))
    result = shell.run("unload", "qwen")
    assert (result.status, result.stdout) == (0, "qwen: not loaded, a request loads it\n")


@pytest.mark.parametrize(("verb", "state"), [("load", "stopped"), ("restart", "failed"), ("unload", "starting")])
def test_another_outcome_is_a_failure(daemon: StubDaemon, shell: Shell, verb: str, state: str) -> None:
    daemon.on(f"POST /api/models/qwen/{verb}?wait=1", reply(model(state, reason="no memory", hint="buy some")))
    result = shell.run(verb, "qwen")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith(f"vllmctl: qwen: {state}")


def test_a_load_that_fails_says_why(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(
        "POST /api/models/qwen/load?wait=1", refuse(503, "engine_failed", "qwen failed: no memory", hint="buy some")
    )
    result = shell.run("load", "qwen")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == "vllmctl: qwen failed: no memory\n         buy some\n"


def test_no_block_only_asks(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/qwen/load", reply({"model": "qwen", "watch": "/api/events"}, 202))
    result = shell.run("load", "qwen", "--no-block")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == "qwen: load asked for; follow it with:  vllmctl status\n"


def test_without_a_name_the_default_model_is_meant(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/status", status(statuses.ModelStatus("other"), statuses.ModelStatus("qwen", default=True)))
    daemon.on("POST /api/models/qwen/load?wait=1", reply(model("ready")))
    assert shell.run("load").stdout == "qwen: ready\n"


def test_or_the_only_one(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/status", status(statuses.ModelStatus("qwen")))
    daemon.on("POST /api/models/qwen/unload?wait=1", reply(model("stopped")))
    assert shell.run("unload").stdout == "qwen: stopped\n"


def test_without_a_default_the_names_are_listed(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/status", status(statuses.ModelStatus("a"), statuses.ModelStatus("b")))
    result = shell.run("load")
    assert result.status == 1
    assert result.stderr == "vllmctl: no default model here\n         known are: a, b\n"


def test_names_are_quoted(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/Qwen%2FQwen3%208B%3F/load?wait=1", reply(model("ready")))
    assert shell.run("load", "Qwen/Qwen3 8B?").status == 0


def test_who_may_not_is_told_so(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/qwen/load?wait=1", refuse(403, "denied", "uid 1 may not", hint="root may"))
    result = shell.run("load", "qwen")
    assert (result.status, result.stderr) == (4, "vllmctl: uid 1 may not\n         root may\n")


def test_a_terminal_sees_what_is_going_on(daemon: StubDaemon, shell: Shell) -> None:
    done = threading.Event()

    def answer(exchange: Exchange) -> None:
        held_until(done)(exchange)
        reply(model("ready"))(exchange)

    daemon.on("POST /api/models/qwen/load?wait=1", answer)
    with screen(shell, "load", "qwen") as seen:
        seen.read_until("load qwen ...")
        done.set()
        assert seen.end() == 0
        assert seen.lines == ["qwen: ready", ""]
