"""What the daemon leaves in files, logs and process tables: for as few eyes as possible, and no secret in any of it."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, running
from server import leaking_engine
from waiting import until_sync

TOKEN, KEY, OWN = "hf_0123456789abcdef", "sk-of-the-model-0123", "vllmd_key-of-vllmctl-0123"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(scope="module")
def leaky() -> Iterator[Daemon]:
    """A daemon whose engine prints what it should not, and has died as often as it may; under a lax umask."""
    daemon = Daemon(environ={"HF_TOKEN": TOKEN, "VLLMD_API_KEY": OWN, "CREDENTIALS_DIRECTORY": "/run/secrets"})
    vllm = daemon.folder / "env" / "bin" / "vllm"
    vllm.unlink()
    vllm.symlink_to(leaking_engine.__file__)
    daemon.configure({}, {"models": {"tiny": {"model": "m", "env": {"SOME_API_KEY": KEY}}}})
    before = os.umask(0)
    try:
        with running(daemon, ready=False):
            daemon.wait_for("failed")
            yield daemon
    finally:
        os.umask(before)


def test_every_file_has_the_narrowest_mode(leaky: Daemon) -> None:
    made = {path for name in ("s", "r") for path in [leaky.folder / name, *(leaky.folder / name).rglob("*")]}
    assert {path.parent.name for path in made if path.suffix == ".json"} == {"incidents"}
    modes = {str(path.relative_to(leaky.folder)): stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {name: oct(mode) for name, mode in modes.items() if mode & OTHERS} == {}
    assert stat.S_IMODE(leaky.socket.stat().st_mode) == 0o660


def test_the_directories_of_an_engine_that_lives_are_closed_too(daemon: Daemon) -> None:
    for top in (daemon.folder / "r", daemon.folder / "s"):
        for path in [top, *(each for each in top.rglob("*") if each.is_dir() or each.suffix == ".json")]:
            assert not stat.S_IMODE(path.stat().st_mode) & OTHERS, path


def everything_told(daemon: Daemon) -> dict[str, str]:
    told = {path.name: path.read_text() for path in daemon.folder.glob("s/incidents/*.json")}
    assert told, "it has died"
    for path in ("/api/logs", "/api/status", "/ready", "/v1/models"):
        told[path] = json.dumps(daemon.fetch(path)[1], ensure_ascii=False)
    told["a refusal"] = json.dumps(daemon.fetch("/api/prompt", "POST", {"prompt": "x"})[1], ensure_ascii=False)
    return told | {"the log": daemon.log}


def test_no_secret_is_told(leaky: Daemon) -> None:
    told = everything_told(leaky)
    assert "my token is ***, and the key ***" in told["the log"]
    assert "my token is ***, and the key ***" in told["/api/logs"]
    for where, text in told.items():
        for secret in (TOKEN, KEY, OWN):
            assert secret not in text, where


def test_an_engine_can_neither_forge_lines_of_the_log_nor_paint_the_screen(leaky: Daemon) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", leaky.log)
    forged = [line for line in leaky.log.splitlines() if line.endswith(leaking_engine.INJECTED)]
    assert all(line.count("INFO tiny: ") >= 2 for line in forged), "what an engine says stands behind its name"
    assert forged
    assert r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnorw\u2028next" in leaky.log


def test_clients_cannot_either(daemon: Daemon) -> None:
    before = len(daemon.log)
    for name in ("a\nINFO forged", "\x1b[2J", "\u2028"):
        daemon.fetch("/api/prompt", "POST", {"prompt": "x", "model": name})
        daemon.fetch("/v1/completions", "POST", {"prompt": name, "max_tokens": 1})
    assert "forged" not in daemon.log[before:]
    assert "\x1b" not in daemon.log[before:]


def test_children_see_nothing_that_is_vllmd_s_alone() -> None:
    secrets = {"HF_TOKEN": TOKEN, "VLLMD_API_KEY": OWN, "CREDENTIALS_DIRECTORY": "/run/secrets", "VLLM_API_KEY": OWN}
    with running(Daemon(environ=secrets, knobs={"tree": 1})) as daemon:
        until_sync(lambda: len(daemon.everybody()) >= 5, "the whole tree to be there")
        children = daemon.everybody() - {daemon.pid}
        for pid in children:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert OWN.encode() not in environ
            assert b"CREDENTIALS_DIRECTORY" not in environ
            assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert TOKEN.encode() in Path(f"/proc/{daemon.engine_pid}/environ").read_bytes(), "it downloads with it"
