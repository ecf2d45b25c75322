"""`vllmctl wait`: for a model, for a daemon, and not for ever."""

import json
import threading
from pathlib import Path

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import Answer, Step, StubDaemon, held_until, refuse, reply, stream, until_gone

from vllmd import sse, statuses, wire

STATUS, EVENTS = "GET /api/status", "GET /api/events"


def event(state: str, name: str = "qwen", **more: object) -> bytes:
    status = statuses.ModelStatus(name, state=state, default=name == "qwen", **more)  # type: ignore[arg-type]
    return sse.encode(json.dumps(wire.to_json(status)), event="model", id=1)


def status(state: str = "starting") -> Answer:
    models = (statuses.ModelStatus("other", state="ready"), statuses.ModelStatus("qwen", state=state, default=True))
    return reply(wire.to_json(statuses.Status("0.1.0", state, "qwen", 0.0, (), models)))


def script(daemon: StubDaemon, *steps: Step) -> None:
    daemon.on(STATUS, status())
    daemon.on(EVENTS, stream(*steps, until_gone))


def test_ready_is_ready_and_silent(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, event("ready"))
    result = shell.run("wait")
    assert (result.status, result.stdout, result.stderr) == (0, "", "")


def test_it_waits_through_all_that_comes_before(daemon: StubDaemon, shell: Shell) -> None:
    before = [event(state) for state in ("stopped", "starting", "backoff", "starting", "unhealthy")]
    script(daemon, event("ready", "other"), *before, sse.comment("ping"), event("ready"))
    assert shell.run("wait").status == 0


@pytest.mark.parametrize("state", ["asleep", "stopped"])
def test_one_that_a_request_brings_in_is_as_good_as_ready(daemon: StubDaemon, shell: Shell, state: str) -> None:
    script(daemon, event(state, on_demand=True))
    assert shell.run("wait").status == 0


@pytest.mark.parametrize(
    "before",
    [
        [event(state, on_demand=True) for state in ("stopping", "dozing", "starting")],
        [event("stopped", load="demand", generation=1), event("asleep")],
    ],
    ids=["on its way", "unloaded by hand"],
)
def test_but_not_one_that_is_on_its_way_or_was_unloaded_by_hand(
    daemon: StubDaemon, shell: Shell, before: list[bytes]
) -> None:
    script(daemon, *before, event("failed", reason="out of memory"))
    assert shell.run("wait").status == 1


def test_another_model_may_be_meant(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, event("starting"), event("ready", "other"))
    assert shell.run("wait", "other").status == 0


def test_failed_is_1_with_the_reason(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, event("starting"), event("failed", reason="out of memory", hint="take a smaller model"))
    result = shell.run("wait")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == "vllmctl: qwen failed: out of memory\n         take a smaller model\n"


def test_an_unknown_model_is_1(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon)
    result = shell.run("wait", "quen")
    assert result.status == 1
    assert result.stderr == "vllmctl: no model 'quen' here\n         known are: other, qwen\n"


def test_the_timeout_is_124_with_what_was_last_known(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, event("stopped"))
    result = shell.run("wait", "--timeout", "1.5")
    assert (result.status, result.stdout) == (124, "")
    assert result.stderr == "vllmctl: not ready after 1.5 s: qwen: stopped\n         see:  vllmctl status\n"


def test_so_it_is_without_a_daemon(shell: Shell, socket_path: Path) -> None:
    result = shell.run("wait", "--timeout", "0.3")
    assert (result.status, result.stdout) == (124, "")
    assert f"not ready after 0.3 s: vllmd: cannot reach vllmd at unix://{socket_path}: no such socket" in result.stderr


def test_and_with_a_daemon_that_says_nothing(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(STATUS, until_gone)
    result = shell.run("wait", "--timeout", "0.5")
    assert (result.status, result.stdout) == (124, "")
    assert "no answer in time" in result.stderr


def test_a_daemon_that_is_not_there_yet_is_waited_for(shell: Shell, socket_path: Path) -> None:
    loaded = threading.Event()
    daemon = StubDaemon(socket_path)
    script(daemon, event("starting", phase="loading weights", percent=43), held_until(loaded), event("ready"))
    with screen(shell, "wait") as seen:
        seen.read_until("waiting for vllmd: cannot reach vllmd")
        with daemon:
            seen.read_until("waiting for qwen: starting, loading weights 43 %")
            loaded.set()
            assert seen.end() == 0
        assert seen.lines == [""]


def test_a_stream_that_breaks_is_taken_up_again(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(STATUS, status())
    daemon.on(EVENTS, stream(event("starting"), cut=True), stream(), stream(event("ready"), until_gone))
    assert shell.run("wait").status == 0
    assert [request.path for request in daemon.requests].count("/api/events") == 3


def test_missed_changes_make_it_ask_anew(daemon: StubDaemon, shell: Shell) -> None:
    missed = sse.encode('{"missed": 7}', event="missed")
    daemon.on(STATUS, status())
    daemon.on(EVENTS, stream(event("starting"), missed, until_gone), stream(event("ready"), until_gone))
    assert shell.run("wait").status == 0


@pytest.mark.parametrize(
    ("answer", "expected"), [(refuse(401, "denied", "no key"), 4), (refuse(403, "denied", "no"), 4)]
)
def test_being_denied_is_final(daemon: StubDaemon, shell: Shell, answer: Answer, expected: int) -> None:
    daemon.on(STATUS, answer)
    assert shell.run("wait").status == expected


def test_an_event_that_cannot_be_read_is_an_error(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, sse.encode("[1]", event="model"))
    result = shell.run("wait")
    assert result.status == 1
    assert "an event of the daemon cannot be read: [1]" in result.stderr


def test_progress_goes_away(daemon: StubDaemon, shell: Shell) -> None:
    script(daemon, event("starting"), event("ready"))
    with screen(shell, "wait") as seen:
        assert seen.end() == 0
        assert seen.lines == [""]
