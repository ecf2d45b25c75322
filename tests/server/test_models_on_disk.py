"""Models that a daemon pulls: at a load, when asked, in a job that outlives who asked; and off the disk again."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, running
from loopback_hub import LoopbackHub, etag_of
from pulls import MODEL, MORE, NEEDED, REPO, SIZE, TOKEN, WEIGHTS
from waiting import until_sync

from vllmd.engine.hub import Shelf, size_of
from vllmd.engine.transfer import PIECE_BYTES

ROOT = Path(__file__).parents[1]
"""A directory: it is served as it is, and nobody is asked about it."""

Begin = Callable[..., Daemon]


@pytest.fixture
def begin(hub: LoopbackHub) -> Iterator[Begin]:
    """Starts a daemon whose model `tiny` is `acme/tiny` on the hub."""
    with ExitStack() as stack:

        def begin(*, ready: bool = True, **table: Any) -> Daemon:
            environ = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
            daemon = Daemon(environ=environ)
            model = {**daemon.tiny(), "model": REPO, **table}
            daemon.configure({}, {"models": {"tiny": model}})
            return stack.enter_context(running(daemon, ready=ready))

        yield begin


def shelf_of(daemon: Daemon) -> Shelf:
    return Shelf(daemon.folder / "hf" / "hub", REPO)


def job_of(daemon: Daemon, id: str) -> dict[str, Any]:
    return dict(daemon.fetch(f"/api/jobs/{id}")[1]["job"])


def ended(daemon: Daemon, id: str) -> dict[str, Any]:
    until_sync(lambda: job_of(daemon, id)["state"] != "running", "the job to end", 90)
    return job_of(daemon, id)


def pull(daemon: Daemon, **body: Any) -> str:
    status, answer = daemon.fetch("/api/models/pull", "POST", {"model": REPO, **body})
    assert status == 202, answer
    return str(answer["job"]["id"])


def fetchers(daemon: Daemon) -> set[int]:
    """The programs that fetch for this daemon."""

    def fetches(pid: int) -> bool:
        try:
            return b"vllmd.engine.pulling" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return {pid for pid in daemon.everybody() if fetches(pid)}


def ctl(daemon: Daemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "VLLMD_HOST": f"unix://{daemon.socket}"}
    argv = [sys.executable, "-m", "vllmd.ctl", *arguments]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=90, check=False)


def test_a_load_fetches_what_is_missing_and_is_pinned(hub: LoopbackHub, begin: Begin) -> None:
    hub.faults.pace_s = 0.02
    daemon = begin(ready=False)

    def is_seen() -> bool:
        model = daemon.model()
        return model.phase == "downloading" and (model.percent or 0) > 5 and model.eta_s is not None

    until_sync(is_seen, "the load to say how far it is, and how long still", 60)
    asked_for = pull(daemon)
    assert asked_for == pull(daemon, model="tiny"), "who asks for the same joins"
    hub.faults.pace_s = 0
    daemon.wait_for("ready", 90)
    assert ended(daemon, asked_for)["state"] == "done", "it came after the load's own, which asks for no newer commit"
    commit = hub.heads[REPO]["main"]
    (started,) = [each["argv"] for each in daemon.journal("start")]
    snapshot = shelf_of(daemon).snapshot(commit)
    assert str(snapshot) in started
    assert {each.name: each.read_bytes() for each in snapshot.iterdir()} == NEEDED
    environ = Path(f"/proc/{daemon.engine_pid}/environ").read_bytes().split(b"\0")
    assert b"HF_HUB_OFFLINE=1" in environ, "it asks nobody"
    assert daemon.model().model == REPO
    assert hub.sent_bytes == SIZE

    # The branch moves: a load stays with what was pulled, until somebody pulls.
    moved = hub.put(REPO, {**MODEL, "model-00002-of-00002.safetensors": MORE[::-1]})
    asked = len(hub.asked)
    assert daemon.order("restart", wait=True)[0] == 200
    assert len(hub.asked) == asked
    assert ended(daemon, pull(daemon))["state"] == "done"
    assert ctl(daemon, "rm", "--unused").stdout == "0 B freed\n", "the engine is made of it"
    assert daemon.order("restart", wait=True)[0] == 200
    assert str(shelf_of(daemon).snapshot(moved)) in daemon.journal("start")[-1]["argv"]
    assert TOKEN not in daemon.log
    assert not any("harness" in path for _, _, path, _ in hub.asked), "the hub is not told what else runs here"

    # What is used is not removed; what is not, is, and what nobody shares is free again.
    status, refusal = daemon.fetch(f"/api/models/local/{REPO}", "DELETE")
    assert (status, refusal["error"]["code"]) == (409, "in_use")
    assert "tiny" in refusal["error"]["message"]
    listed = {each["commit"]: each for each in daemon.fetch("/api/models/local")[1]["models"]}
    assert listed[moved]["used_by"] == ["tiny"]
    assert (listed[moved]["complete"], listed[moved]["size"]) == (True, SIZE)
    assert ctl(daemon, "rm", "--unused").stdout == f"{REPO}@{commit}: removed\n700 kB freed\n"
    assert daemon.order("unload", wait=True)[0] == 200
    answer = daemon.fetch(f"/api/models/local/{REPO}@{moved[:8]}x", "DELETE")
    assert answer[1]["error"]["code"] == "not_on_hub"
    assert ctl(daemon, "verify", "tiny").stdout == f"{REPO}: whole, 3.7 MB\n"
    assert ctl(daemon, "rm", "tiny").stdout == "tiny: removed, 3.7 MB freed\n"
    assert not shelf_of(daemon).root.exists()
    assert daemon.fetch("/api/models/local")[1] == {"models": []}


def test_killed_in_the_middle_the_next_daemon_goes_on(hub: LoopbackHub, begin: Begin) -> None:
    hub.faults.pace_s = 0.02
    daemon = begin(ready=False)
    partial = shelf_of(daemon).partial(etag_of("m.safetensors", WEIGHTS))
    until_sync(lambda: size_of(partial) > 2 * PIECE_BYTES, "some of it to come", 60)
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    until_sync(lambda: not fetchers(daemon), "the program that fetches to be gone")
    come = size_of(partial)
    hub.faults.pace_s = 0
    daemon.start()
    assert hub.begun[partial.stem] == [0, come], "it goes on from the bytes that were there"


def test_a_stop_in_the_middle_is_no_failure(hub: LoopbackHub, begin: Begin) -> None:
    hub.faults.pace_s = 0.02
    daemon = begin(ready=False)
    partial = shelf_of(daemon).partial(etag_of("m.safetensors", WEIGHTS))
    until_sync(lambda: size_of(partial) > 0, "some of it to come", 60)
    assert daemon.stop() == 0
    assert "→ failed" not in daemon.log
    assert not list(daemon.folder.rglob("incidents/*.json"))


def test_a_job_is_called_off_and_taken_up_again(hub: LoopbackHub, begin: Begin) -> None:
    daemon = begin(model=str(ROOT))
    hub.faults.pace_s = 0.02
    id = pull(daemon)
    until_sync(lambda: (job_of(daemon, id)["done"] or 0) > 2 * PIECE_BYTES, "some of it to come", 60)
    job = job_of(daemon, id)
    assert (job["kind"], job["subject"], job["phase"], job["total"]) == ("pull", REPO, "downloading", SIZE)
    refusal = daemon.fetch(f"/api/models/local/{REPO}", "DELETE")[1]["error"]
    assert refusal["code"] == "in_use"
    assert asyncio.run(daemon.tcp.ask(f"/api/jobs/{id}", method="DELETE")).status == 403
    assert daemon.fetch(f"/api/jobs/{id}", "DELETE")[0] == 202
    assert ended(daemon, id)["state"] == "cancelled"
    assert not fetchers(daemon)
    hub.faults.pace_s = 0
    listed = ctl(daemon, "models", "--local").stdout
    assert " %" in listed, "it says how much of it is there"
    come = size_of(shelf_of(daemon).partial(etag_of("m.safetensors", WEIGHTS)))
    lines = ctl(daemon, "pull", REPO, "--json").stdout.splitlines()
    assert json.loads(lines[-1])["state"] == "done"
    assert come > 0
    assert hub.begun[etag_of("m.safetensors", WEIGHTS)] == [0, come]
    assert ctl(daemon, "pull", REPO).stdout == f"{REPO}: here, 3.7 MB\n"
    rows = [line.split() for line in ctl(daemon, "jobs").stdout.splitlines()[1:]]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("1", "pull", REPO, "cancelled"),
        ("2", "pull", REPO, "done"),
        ("3", "pull", REPO, "done"),
    ]


def test_what_cannot_be_pulled_is_said_by_the_load_and_the_command(hub: LoopbackHub, begin: Begin) -> None:
    hub.put("acme/gated", MODEL)
    hub.gated.add("acme/gated")
    hub.token = "another"
    daemon = begin(ready=False, model="acme/gone")
    daemon.wait_for("failed", 60)
    model = daemon.model()
    assert model.cause in ("token refused", "model not found")
    assert model.hint
    assert not daemon.journal("start")
    failed = ctl(daemon, "pull", "acme/gone")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "does not accept the token" in failed.stderr
    assert TOKEN not in failed.stderr + daemon.log
    broken = ctl(daemon, "pull", "/srv/models/mine")
    assert broken.returncode == 1
    assert "is no name of a model" in broken.stderr


def test_a_hub_that_is_away_is_waited_for_without_end(hub: LoopbackHub, begin: Begin) -> None:
    hub.faults.status = {REPO: (503, {}, 10**6)}
    daemon = begin(ready=False)
    # Three failures of its own would be one too many.
    until_sync(lambda: daemon.model().restarts > 3, "it to be tried again and again", 90)
    model = daemon.model()
    assert model.state in ("backoff", "starting")
    assert (model.cause, "answers 503" in model.reason) == ("hub unreachable", True)
    refused = asyncio.run(daemon.unix.ask("/api/prompt", {"prompt": "hi"}, headers={"X-Vllmd-Wait": "0"}))
    assert refused.status == 503
    assert int(refused.header("retry-after")) > 0
    status, told = daemon.order("load", wait=True)
    assert (status, told["error"]["code"]) == (503, "not_ready"), "who gives orders is not kept waiting for all of it"
    assert "answers 503" in told["error"]["message"]
    hub.faults.status = {}
    daemon.wait_for("ready", 90)
    assert len(list(daemon.folder.rglob("incidents/*.json"))) == 1, "a night without a hub is one incident"


def test_a_load_waits_for_whoever_fetches_the_same_for_longer_than_its_own_patience(begin: Begin) -> None:
    daemon = begin(model=str(ROOT), ready=False)
    daemon.wait_for("ready")
    lock = shelf_of(daemon).lock
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        model = {**daemon.tiny(), "model": REPO}
        daemon.configure({}, {"models": {"tiny": model}, "supervision": {"startup_stall_s": 6}})
        assert daemon.fetch("/api/reload", "POST")[0] == 200
        until_sync(lambda: daemon.model().phase == "waiting for another", "the load to wait", 60)
        generation = daemon.model().generation
        until_sync(lambda: time.time() - daemon.model().since > 13, "more than twice its patience to pass", 60)
        assert (daemon.model().phase, daemon.model().generation) == ("waiting for another", generation)


def test_events_tell_of_jobs(hub: LoopbackHub, begin: Begin) -> None:
    daemon = begin(model=str(ROOT))
    hub.faults.pace_s = 0.01
    argv = [sys.executable, "-m", "vllmd.ctl", "events", "--json"]
    environ = {**os.environ, "VLLMD_HOST": f"unix://{daemon.socket}"}
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        json.loads(events.stdout.readline())  # the present: from here on nothing is missed
        id = pull(daemon)
        told: list[dict[str, Any]] = []
        while not told or told[-1]["state"] == "running":
            event = json.loads(events.stdout.readline())
            told += [event] if event["event"] == "job" else []
        events.terminate()
    assert {each["id"] for each in told} == {id}
    assert {"asking the hub", "downloading"} <= {each["phase"] for each in told}
    assert (told[-1]["state"], told[-1]["done"]) == ("done", SIZE)
