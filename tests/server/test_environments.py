"""Versions of vLLM side by side: installed, used, and left again by themselves where they bring no token.

The versions are the fake engine in wheels made here: 1 and 2 serve, 3 dies at its start, 4 refuses what it is asked, 5
listens and never answers, and 9 never tells its version, so that its installation lasts as long as a test likes.
"""

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, running
from loopback_index import loopback_index
from service_manager import Manager, Service
from waiting import until, until_sync
from wheels import engine, settings, write_wheel

from vllmd.engine.distributions import repair_of
from vllmd.engine.environment import environment_path, find_interpreter
from vllmd.engine.variants import look, requirement, suited

ENVIRONMENTS = "/api/environments"
NO_MEMORY = {
    "memory not free": "ValueError: Free memory on device cuda:0 (8.1/79.1 GiB) on startup is less than desired GPU "
    "memory utilization (0.9, 71.19 GiB).",
    "out of GPU memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 79.10 GiB of which 1.25 GiB is free.",
}
"""What vLLM says where others hold the memory that it needs: at once, or when it loads the weights."""

HANGS = "import subprocess; subprocess.run(['sleep', '600'])"
VERSIONS: dict[str, str] = {
    "1": engine(),
    "2": engine(),
    "3": engine({"start_end": "exit:1", "ready_after_s": 3}),
    "4": engine({"fault": "http:400"}),
    "5": engine({"fault": "hang"}),
    "9": engine(before=HANGS),
}
PATIENCE = {"startup_stall_s": 10, "probe_timeout_s": 1, "stall_s": 1, "restart_limit": 5, "backoff_max_s": 0.1}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version, main in VERSIONS.items():
        write_wheel(folder, "vllm", version, main)
    return folder


@pytest.fixture(scope="module")
def several(wheels: Path) -> Iterator[Daemon]:
    """A daemon with the versions 1 to 5 installed, whose model runs in 1, and that has memory for one engine."""
    with running(Daemon(environ=settings(wheels), supervision=PATIENCE, memory={"max_models": 1})) as daemon:
        for version in "12345":
            assert outcome(daemon, install(daemon, version))["state"] == "done"
        assert outcome(daemon, use(daemon, "1"))["state"] == "done"
        yield daemon


@pytest.fixture
def versions(several: Daemon) -> Daemon:
    """The same, as every test finds it: whatever the last one has done, the model runs in 1."""
    several.control()
    several.wait_for("ready")
    assert outcome(several, use(several, "1"))["state"] == "done"
    return several


def install(daemon: Daemon, version: str, variant: str = "cuda") -> Any:
    status, body = daemon.fetch(ENVIRONMENTS, "POST", {"version": version, "variant": variant})
    assert status == 202, body
    return body["job"]


def use(daemon: Daemon, word: str, **body: Any) -> Any:
    status, answer = daemon.fetch(f"{ENVIRONMENTS}/{word}/use", "POST", body)
    assert status == 202, answer
    return answer["job"]


def outcome(daemon: Daemon, job: Any) -> Any:
    """A job, once it is over, and its lines."""

    def look() -> Any:
        found = daemon.fetch(f"/api/jobs/{job['id']}")[1]
        return {**found["job"], "lines": found["lines"]}

    until_sync(lambda: look()["state"] != "running", f"{job['kind']} {job['subject']} to end", 60)
    return look()


def outcome_so_far(daemon: Daemon, job: Any) -> Any:
    """A job as it is now."""
    return daemon.fetch(f"/api/jobs/{job['id']}")[1]["job"]


def installed(daemon: Daemon) -> dict[str, Any]:
    """Version → what the list says of it."""
    return {each["version"]: each for each in daemon.fetch(ENVIRONMENTS)[1]["environments"]}


def runs_in(daemon: Daemon) -> str:
    """The environment that the engine really runs in, by its command line."""
    argv = Path(f"/proc/{daemon.engine_pid}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(argv[0])).parents[1].name


def leftovers(daemon: Daemon) -> list[str]:
    """What lies among the environments without being one."""
    every = {each["id"] for each in installed(daemon).values()}
    found = (daemon.folder / "s/environments").glob("[!.]*")
    return sorted(each.name for each in found if each.name not in every)


def refusal(answer: tuple[int, Any]) -> tuple[int, str, str]:
    return answer[0], answer[1]["error"]["code"], answer[1]["error"]["message"]


async def test_an_upgrade_loses_no_request(versions: Daemon) -> None:
    before = runs_in(versions)
    versions.control(tokens=40, tokens_per_s=20)
    running_one = asyncio.create_task(versions.unix.ask("/api/prompt", {"prompt": "long"}))
    await until(lambda: versions.model().running == 1, "the request to run")
    job = use(versions, "2")
    held = asyncio.create_task(versions.unix.ask("/api/prompt", {"prompt": "meanwhile", "stream": False}))
    done = await asyncio.to_thread(outcome, versions, job)
    assert done["state"] == "done"
    assert "tiny: a token came in" in "\n".join(done["lines"])
    assert (await running_one).status == (await held).status == 200
    assert b"tok39" in (await running_one).body
    after = runs_in(versions)
    assert (before[:6], after[:6]) == ("vllm-1", "vllm-2")
    found = installed(versions)
    assert [each for each in "12345" if found[each]["current"]] == ["2"]
    assert found["2"]["models"] == ["tiny"]
    assert found["1"]["bytes"] > 10_000


@pytest.mark.parametrize(
    ("version", "why"),
    [("3", "exited with status 1"), ("4", "refuses a request for one token"), ("5", "showed no sign of progress")],
)
async def test_one_that_brings_no_token_makes_way_for_the_old_one(versions: Daemon, version: str, why: str) -> None:
    job = use(versions, version)
    await until(lambda: versions.model().state != "ready", "the trial to begin")
    held = asyncio.create_task(versions.unix.ask("/api/prompt", {"prompt": "meanwhile", "stream": False}))
    failed = await asyncio.to_thread(outcome, versions, job)
    assert (failed["state"], failed["code"]) == ("failed", "trial_failed")
    assert "tiny brought no token in vllm-" in failed["reason"]
    assert why in failed["reason"]
    assert failed["lines"][-1] == "tiny: is ready in the environment from before"
    assert (await held).status == 200
    assert runs_in(versions).startswith("vllm-1-")
    assert installed(versions)["1"]["current"]
    assert failed["lines"][-1] in versions.log


@contextmanager
def memory_for_two(daemon: Daemon) -> Iterator[None]:
    """By vllmd's own count a second engine may start beside the one that serves."""
    daemon.configure({}, {"supervision": PATIENCE, "memory": {"max_models": 0}})
    assert daemon.fetch("/api/reload", "POST")[0] == 200
    try:
        yield
    finally:
        daemon.configure({}, {"supervision": PATIENCE, "memory": {"max_models": 1}})
        assert daemon.fetch("/api/reload", "POST")[0] == 200


async def test_where_there_is_memory_for_two_the_one_that_serves_notices_nothing(versions: Daemon) -> None:
    with memory_for_two(versions):
        engine = versions.engine_pid
        for version, why in (("3", "exited with status 1"), ("5", "showed no sign of progress")):
            job = use(versions, version)
            await until(lambda job=job: "beside" in outcome_so_far(versions, job)["phase"], "the trial to begin")  # type: ignore[misc]
            assert (await versions.unix.ask("/api/prompt", {"prompt": "meanwhile", "stream": False})).status == 200
            failed = await asyncio.to_thread(outcome, versions, job)
            assert (failed["state"], failed["code"]) == ("failed", "trial_failed")
            assert why in failed["reason"]
            assert (versions.engine_pid, versions.model().state) == (engine, "ready")
        assert [each.name for each in versions.status().models] == ["tiny"], "a trial is no model"
        job = use(versions, "5")
        await until(lambda: len(versions.everybody()) > 3, "its engine to start")
        assert versions.fetch(f"/api/jobs/{job['id']}", "DELETE")[0] in (200, 202)
        assert (await asyncio.to_thread(outcome, versions, job))["state"] == "cancelled"
        assert versions.engine_pid == engine
        done = await asyncio.to_thread(outcome, versions, use(versions, "2"))
        assert done["state"] == "done"
        assert any("a token came in vllm-2" in line and "beside the one that serves" in line for line in done["lines"])
        assert runs_in(versions).startswith("vllm-2-")
        assert not list(versions.folder.glob("r/*trial*")), "nothing is left of trials"


@pytest.mark.parametrize("cause", NO_MEMORY)
async def test_where_vllm_itself_finds_too_little_memory_for_two_requests_wait_for_the_new_one(
    versions: Daemon, cause: str
) -> None:
    before, once = versions.model(), versions.folder / cause
    with memory_for_two(versions):
        versions.control(start_end="exit:1", start_last=NO_MEMORY[cause], once=str(once), ready_after_s=1)
        job = use(versions, "2")
        await until(once.exists, "the trial to end for want of memory")
        await until(lambda: versions.model().state != "ready", "the one that serves to make way")
        held = asyncio.create_task(versions.unix.ask("/api/prompt", {"prompt": "meanwhile", "stream": False}))
        done = await asyncio.to_thread(outcome, versions, job)
        assert done["state"] == "done", done
        assert "tiny: there is no memory for a second engine in vllm-2" in "\n".join(done["lines"])
        assert (await held).status == 200
        assert runs_in(versions).startswith("vllm-2-")
        after = versions.model()
        assert after.pid != before.pid
        assert (after.restarts, after.cause) == (before.restarts, before.cause), "nobody's engine failed"


async def test_a_trial_that_is_called_off_ends_where_it_began(versions: Daemon) -> None:
    job = use(versions, "5")
    await until(lambda: versions.model().state == "starting", "the trial to begin")
    held = asyncio.create_task(versions.unix.ask("/api/prompt", {"prompt": "meanwhile", "stream": False}))
    assert versions.fetch(f"/api/jobs/{job['id']}", "DELETE")[0] in (200, 202)
    assert (await asyncio.to_thread(outcome, versions, job))["state"] == "cancelled"
    assert (await held).status == 200
    assert runs_in(versions).startswith("vllm-1-")


def test_what_is_in_use_stays_and_what_is_not_goes(versions: Daemon) -> None:
    found = installed(versions)
    status, code, message = refusal(versions.fetch(f"{ENVIRONMENTS}/1", "DELETE"))
    assert (status, code) == (409, "in_use")
    assert message == f"{found['1']['id']} is in use by tiny"
    assert outcome(versions, use(versions, "2", model="tiny"))["state"] == "done"
    assert refusal(versions.fetch(f"{ENVIRONMENTS}/1", "DELETE"))[2] == f"{found['1']['id']} is the current one"
    assert outcome(versions, use(versions, "1", model="tiny"))["state"] == "done"
    assert versions.fetch(f"{ENVIRONMENTS}/2", "DELETE")[0] == 200
    assert "2" not in installed(versions)
    assert leftovers(versions) == []
    assert refusal(versions.fetch(f"{ENVIRONMENTS}/2/use", "POST", {}))[:2] == (404, "environment_not_found")
    assert outcome(versions, install(versions, "2"))["state"] == "done"


def test_a_flag_that_the_new_version_does_not_know_is_told_before_anything_ends(versions: Daemon) -> None:
    versions.configure({"max-modle-len": 100}, {"supervision": PATIENCE})
    generation = versions.model().generation
    try:
        versions.fetch("/api/reload", "POST")
        until_sync(lambda: versions.model().state == "failed", "the model to be given up")
        told = versions.model()
        assert told.reason == "vLLM 1 does not know --max-modle-len (did you mean '--max-model-len'?)"
        assert told.cause == "bad argument"
        assert told.generation == generation + 1, "once is enough"
        assert refusal(versions.fetch(f"{ENVIRONMENTS}/2/use", "POST", {}))[:2] == (409, "unknown_flags")
    finally:
        versions.configure({}, {"supervision": PATIENCE})
        versions.fetch("/api/reload", "POST")


def test_the_configuration_has_the_last_word(versions: Daemon) -> None:
    pinned = {"tiny": {**versions.tiny(), "environment": "vllm==2"}}
    versions.configure({}, {"supervision": PATIENCE, "models": pinned})
    try:
        versions.fetch("/api/reload", "POST")
        until_sync(lambda: versions.model().state == "ready" and runs_in(versions)[:7] == "vllm-2-", "the pinned one")
        status, code, message = refusal(versions.fetch(f"{ENVIRONMENTS}/1/use", "POST", {"model": "tiny"}))
        assert (status, code) == (409, "in_use")
        assert "models.tiny.environment is 'vllm==2'" in message
        assert refusal(versions.fetch(f"{ENVIRONMENTS}/2", "DELETE"))[1] == "in_use"
    finally:
        versions.configure({}, {"supervision": PATIENCE})
        versions.fetch("/api/reload", "POST")
        until_sync(lambda: versions.model().state == "ready" and runs_in(versions)[:7] == "vllm-1-", "the chosen one")


def test_an_installation_that_is_called_off_leaves_nothing(versions: Daemon) -> None:
    engine_pid = versions.engine_pid
    job = install(versions, "9")
    assert install(versions, "9")["id"] == job["id"], "it runs already"
    until_sync(lambda: _phase(versions, job).startswith("checking"), "the installation to hang")
    assert any("9" in each for each in leftovers(versions))
    versions.fetch(f"/api/jobs/{job['id']}", "DELETE")
    assert outcome(versions, job)["state"] == "cancelled"
    assert leftovers(versions) == []
    assert versions.engine_pid == engine_pid


def _phase(daemon: Daemon, job: Any) -> str:
    return str(daemon.fetch(f"/api/jobs/{job['id']}")[1]["job"]["phase"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"variant": "tpu"}, "variant: 'tpu' is none"),
        ({"version": "1,2"}, "version: '1,2' is none"),
        ({"versoin": "1"}, "versoin: unknown key"),
        ({"version": 1}, "version: expected a string"),
        ([], "expected a table, found []"),
        ({"variant": "rocm"}, "not on PyPI"),
    ],
)
def test_what_cannot_be_installed_is_refused_at_once(several: Daemon, body: object, said: str) -> None:
    status, answer = several.fetch(ENVIRONMENTS, "POST", body)
    assert status == 400
    assert said in answer["error"]["message"]
    assert answer["error"]["hint"]


def test_after_kill_9_of_daemon_and_installer_nothing_is_left_and_all_goes_on(wheels: Path) -> None:
    daemon = Daemon(environ=settings(wheels))
    try:
        daemon.start()
        outcome(daemon, install(daemon, "2"))
        outcome(daemon, use(daemon, "2"))
        job = install(daemon, "9")
        until_sync(lambda: _phase(daemon, job).startswith("checking"), "the installation to hang")
        for pid in daemon.everybody():
            os.kill(pid, signal.SIGKILL)
        daemon.wait()
        assert list(daemon.folder.glob("s/environments/*.building"))
        daemon.start()
        until_sync(lambda: leftovers(daemon) == [], "the leftovers to be swept")
        assert list(installed(daemon)) == ["2"]
        assert runs_in(daemon).startswith("vllm-2-"), "the choice has survived"
    finally:
        daemon.see_to_its_end()


def test_a_start_waits_for_the_installation_of_another_for_longer_than_its_own_patience(wheels: Path) -> None:
    impatient = {**PATIENCE, "startup_stall_s": 6}
    daemon = Daemon(environ=settings(wheels), environment={"path": "", "requirement": "vllm==1"}, supervision=impatient)
    root = environment_path("vllm==1", daemon.folder / "s/environments", asyncio.run(find_interpreter("")))
    root.parent.mkdir(parents=True)
    try:
        with root.with_name(f".{root.name}.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            print("the installation that another model has begun", file=held, end="", flush=True)
            daemon.start(ready=False)
            until_sync(lambda: daemon.model().phase == "waiting for another", "the start to wait", 60)
            until_sync(lambda: time.time() - daemon.model().since > 13, "more than twice its patience to pass", 60)
            assert (daemon.model().phase, daemon.model().generation) == ("waiting for another", 1)
            assert daemon.log.count("waiting for the installation that another model has begun") == 1
    finally:
        daemon.see_to_its_end()


def test_a_package_index_that_is_away_is_waited_for_without_end_and_a_version_that_it_has_not_is_not(
    wheels: Path,
) -> None:
    with loopback_index(wheels) as index:
        index.trouble = "503"
        daemon = Daemon(environ=index.settings, environment={"path": "", "requirement": "vllm==1"})
        try:
            daemon.start(ready=False)
            # Three failures of its own would be one too many.
            until_sync(lambda: daemon.model().restarts > 3, "it to be tried again and again", 90)
            model = daemon.model()
            assert (model.cause, "503 Service Unavailable" in model.reason) == ("package index unreachable", True)
            index.trouble = ""
            daemon.wait_for("ready", 90)
            assert runs_in(daemon).startswith("vllm-1-")
            assert len(list(daemon.folder.rglob("incidents/*.json"))) == 1, "a night without an index is one incident"
            generation = daemon.model().generation
            daemon.configure({}, {"environment": {"path": "", "requirement": "vllm==7"}})
            daemon.fetch("/api/reload", "POST")
            daemon.wait_for("failed", 90)
            assert daemon.model().generation == generation + 1, "once is enough"
            assert "there is no such version" in daemon.model().reason
        finally:
            daemon.see_to_its_end()


def test_what_served_first_is_what_a_newer_vllmd_goes_on_with(tmp_path: Path) -> None:
    suits = requirement(suited(look()).variant)
    if repair_of(suits).python not in ("", f"{sys.version_info[0]}.{sys.version_info[1]}"):
        pytest.skip(f"{suits} is made for Python {repair_of(suits).python}")
    name, _, version = suits.partition("==")
    for each in ("0.1", version):
        write_wheel(tmp_path, name.replace("-", "_"), each, engine())
    daemon = Daemon(environ=settings(tmp_path), environment={"path": ""})
    try:
        daemon.start()
        choices = daemon.folder / "s/environments.json"
        until_sync(choices.exists, "the choice to be written")
        assert json.loads(choices.read_text())["settled"] == {suited(look()).variant: suits}
        assert runs_in(daemon).startswith(f"{name}-{version}-")
        assert daemon.fetch(ENVIRONMENTS)[1]["machine"]["settled"] == "", "there is none newer"
        assert daemon.stop() == 0
        choices.write_text(choices.read_text().replace(suits, f"{name}==0.1"))  # as an older vllmd would have left it
        daemon.start()
        assert runs_in(daemon).startswith(f"{name}-0.1-")
        machine = daemon.fetch(ENVIRONMENTS)[1]["machine"]
        assert (machine["settled"], machine["requirement"]) == (f"{name}==0.1", suits)
        assert outcome(daemon, use(daemon, version))["state"] == "done"
        assert runs_in(daemon).startswith(f"{name}-{version}-")
        assert daemon.fetch(ENVIRONMENTS)[1]["machine"]["settled"] == "", "it was moved"
    finally:
        daemon.see_to_its_end()


def test_an_engine_in_a_chosen_environment_is_adopted(wheels: Path) -> None:
    with Manager().reading() as manager:
        service = Service(manager, environ=settings(wheels))
        try:
            service.start()
            daemon = service.daemon
            outcome(daemon, install(daemon, "2"))
            assert outcome(daemon, use(daemon, "2"))["state"] == "done"
            pid, environment = daemon.engine_pid, runs_in(daemon)
            service.restart()
            assert (daemon.engine_pid, runs_in(daemon)) == (pid, environment)
            assert installed(daemon)["2"]["models"] == ["tiny"]
            assert refusal(daemon.fetch(f"{ENVIRONMENTS}/2", "DELETE"))[1] == "in_use"
        finally:
            service.see_to_its_end()
