"""What administrators get wrong: said with its place and its remedy, before anything is started or changed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Start
from daemons import Daemon

PROMPT = "/api/prompt"


def vllmd(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "vllmd", "--config", str(config), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def idle() -> Iterator[Daemon]:
    """A daemon that is configured and not started."""
    daemon = Daemon()
    yield daemon
    daemon.see_to_its_end()


def assert_fails(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It says why, in a few lines and no traceback, and exits as for a wrong command line."""
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_configuration_with_three_mistakes_lists_all_three(idle: Daemon) -> None:
    three: dict[str, dict[str, object]] = {
        "queue": {"limti": 1},
        "relay": {"stall_s": "long"},
        "defaults": {"temperature": 9},
    }
    idle.configure({}, three)
    for words in ((), ("--check",)):
        done = vllmd(idle.config, *words)
        assert_fails(done, "queue.limti", "'limit'", "relay.stall_s", "defaults.temperature", str(idle.config))


def test_a_configuration_that_is_not_there_or_is_no_toml(idle: Daemon) -> None:
    assert_fails(vllmd(idle.folder / "nothing.toml"), "nothing.toml", "No such file")
    idle.config.write_text("[listen\n")
    assert_fails(vllmd(idle.config), "not valid TOML")


def test_a_model_directory_that_does_not_exist(idle: Daemon) -> None:
    idle.configure({}, {"models": {"tiny": {"model": "/nowhere/at/all"}}})
    assert_fails(vllmd(idle.config), "models.tiny.model", "/nowhere/at/all")


def test_a_socket_path_that_is_too_long(idle: Daemon) -> None:
    idle.configure({}, {"listen": {"unix": f"/tmp/{'x' * 120}.sock"}})
    assert_fails(vllmd(idle.config), "listen.unix", "too long", "107")
    idle.configure({}, {"paths": {"runtime": f"/tmp/{'x' * 80}"}})
    assert_fails(vllmd(idle.config), "too long", "107")


def test_a_port_that_is_taken(start: Start, idle: Daemon) -> None:
    daemon = start(ready=False)
    idle.configure({}, {"listen": {"tcp": f"127.0.0.1:{daemon.port}"}})
    assert_fails(vllmd(idle.config), f"127.0.0.1:{daemon.port}", "in use", "ss -ltnp")
    assert not idle.socket.exists()


def test_a_socket_that_a_live_daemon_owns(start: Start, idle: Daemon) -> None:
    daemon = start(ready=False)
    idle.configure({}, {"listen": {"unix": str(daemon.socket)}})
    assert_fails(vllmd(idle.config), str(daemon.socket), "running daemon")
    assert daemon.fetch("/health")[0] == 200, "its socket is still its own"


def test_an_environment_without_a_vllm_is_told_to_who_asks(idle: Daemon) -> None:
    idle.configure({}, {"environment": {"path": str(idle.folder / "nothing")}, "supervision": {"restart_limit": 0}})
    idle.start(ready=False)
    idle.wait_for("failed")
    status, body = idle.fetch(PROMPT, "POST", {"prompt": "x"})
    assert (status, body["error"]["code"]) == (503, "engine_failed")
    assert "there is no vLLM in" in body["error"]["message"]
    assert "environment.path" in body["error"]["hint"]


def test_a_runtime_directory_of_somebody_else_is_told_too(idle: Daemon) -> None:
    theirs = idle.folder / "r"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    idle.configure({}, {"supervision": {"restart_limit": 0}})
    idle.start(ready=False)
    idle.wait_for("failed")
    _, body = idle.fetch(PROMPT, "POST", {"prompt": "x"})
    assert body["error"]["code"] == "engine_failed"
    assert "belongs to another user" in body["error"]["message"]
    assert "paths.runtime" in body["error"]["hint"]
