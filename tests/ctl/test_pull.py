"""`vllmctl pull`, `verify`, `rm`, `jobs` and `models --local`: what is asked for, seen, and told of the end."""

import json
import signal
import threading

import pytest
from ctl.shell import CTRL_C, Shell, screen
from ctl.stub_daemon import StubDaemon, held_until, refuse, reply, stream, until_gone

from vllmd import sse
from vllmd.provisions import JobStatus, LocalModel
from vllmd.wire import to_json

BEGUN = JobStatus("7", "pull", "acme/m", started_at=100.0)
HALF = JobStatus("7", "pull", "acme/m", phase="downloading", done=50, total=100, bytes_per_s=10.0, eta_s=30.0)
DONE = JobStatus("7", "pull", "acme/m", "done", "downloading", 100, 100, started_at=100.0, ended_at=161.0)
FAILED = JobStatus("7", "pull", "acme/m", "failed", code="model_gated", reason="the hub says no", hint="ask it nicely")


def event(job: JobStatus) -> bytes:
    return sse.encode(json.dumps(to_json(job)), "job")


def test_progress_is_shown_and_the_end_told(daemon: StubDaemon, shell: Shell) -> None:
    done = threading.Event()
    daemon.on("POST /api/models/pull", reply({"job": to_json(BEGUN)}, 202))
    daemon.on("GET /api/events", stream(event(HALF), held_until(done), event(DONE)))
    daemon.on("GET /api/jobs/7", reply({"job": to_json(HALF), "lines": []}))
    with screen(shell, "pull", "acme/m", "--revision", "v2") as seen:
        seen.read_until("pull acme/m: downloading 50 %, 50 B of 100 B, 10 B/s, about 30 s left")
        done.set()
        assert seen.end() == 0
        assert seen.lines == ["acme/m: here, 100 B", ""]
    assert daemon.requests[0].json == {"model": "acme/m", "revision": "v2"}


def test_a_job_that_ended_before_it_could_be_followed(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/pull", reply({"job": to_json(BEGUN)}, 202))
    daemon.on("GET /api/events", stream(sse.encode("{}", "model"), until_gone))
    daemon.on("GET /api/jobs/7", reply({"job": to_json(DONE), "lines": []}))
    result = shell.run("pull", "acme/m", "--json")
    assert (result.status, result.stderr) == (0, "")
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["running", "done"]


@pytest.mark.parametrize("verb", ["pull", "verify"])
def test_why_it_failed_is_told(daemon: StubDaemon, shell: Shell, verb: str) -> None:
    daemon.on(f"POST /api/models/{verb}", reply({"job": to_json(BEGUN)}, 202))
    daemon.on("GET /api/events", stream(event(FAILED)))
    result = shell.run(verb, "acme/m")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == "vllmctl: the hub says no\n         ask it nicely\n"


def test_who_does_not_wait_is_told_where_to_look(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/verify", reply({"job": to_json(BEGUN)}, 202))
    result = shell.run("verify", "acme/m", "--repair", "--detach")
    assert (result.status, result.stdout) == (0, "pull acme/m: job 7; see:  vllmctl jobs\n")
    assert daemon.requests[0].json == {"model": "acme/m", "repair": True}


def test_who_leaves_is_told_that_it_goes_on(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("POST /api/models/pull", reply({"job": to_json(BEGUN)}, 202))
    daemon.on("GET /api/events", stream(event(HALF), until_gone))
    daemon.on("GET /api/jobs/7", reply({"job": to_json(HALF), "lines": []}))
    with screen(shell, "pull", "acme/m", keys=True) as seen:
        seen.read_until("50 %")
        seen.type(CTRL_C)
        seen.read_until("the pull goes on; to end it:  vllmctl jobs --cancel 7")
        assert seen.end() in (-signal.SIGINT, 130)


def test_jobs_are_listed_and_called_off(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/jobs", reply({"jobs": [to_json(DONE), to_json(FAILED)]}))
    lines = shell.run("jobs").stdout.splitlines()
    assert lines[0].split() == ["ID", "JOB", "AGE", "STATE"]
    assert lines[1].split() == ["7", "pull", "acme/m", "1", "min", "1", "s", "done"]
    assert lines[2].endswith("failed: the hub says no")
    daemon.on("DELETE /api/jobs/7", reply({"job": to_json(HALF)}, 202))
    assert shell.run("jobs", "--cancel", "7").stdout == "pull acme/m: called off\n"
    assert shell.run("jobs", "--cancel", "../status").status == 2


def test_the_disk_is_listed_and_cleared(daemon: StubDaemon, shell: Shell) -> None:
    whole = LocalModel("acme/m", (), "0123456789abcdef", 15_200_000_000, 15_200_000_000, True, ("chat", "code"))
    half = LocalModel("acme/n", ("v2",), "fedcba9876543210", 25, 100, False)
    other = LocalModel("gpt2", (), "11111", 7)
    daemon.on("GET /api/models/local", reply({"models": [to_json(each) for each in (whole, half, other)]}))
    assert [line.split() for line in shell.run("models", "--local").stdout.splitlines()] == [
        ["MODEL", "COMMIT", "SIZE", "WHOLE", "USED", "BY"],
        ["acme/m", "0123456789ab", "15.2", "GB", "yes", "chat,", "code"],
        ["acme/n@v2", "fedcba987654", "25", "B", "25", "%", "-"],
        ["gpt2", "11111", "7", "B", "-", "-"],
    ]
    daemon.on("DELETE /api/models/local/acme%2Fm%40v2", reply({"model": "acme/m@v2", "freed": 15_200_000_000}))
    assert shell.run("rm", "acme/m@v2").stdout == "acme/m@v2: removed, 15.2 GB freed\n"
    daemon.on("POST /api/models/prune", reply({"removed": ["acme/m@0123"], "freed": 1_500_000_000}))
    assert shell.run("rm", "--unused").stdout == "acme/m@0123: removed\n1.5 GB freed\n"
    assert shell.run("rm").status == shell.run("rm", "acme/m", "--unused").status == 2
    daemon.on("DELETE /api/models/local/acme%2Fm", refuse(409, "in_use", "acme/m is in use by chat", hint="unload it"))
    result = shell.run("rm", "acme/m")
    assert (result.status, result.stderr) == (1, "vllmctl: acme/m is in use by chat\n         unload it\n")
