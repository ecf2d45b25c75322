"""vllmd in a user's own systemd: no root, no package manager, its own socket."""

import json
from pathlib import Path

import pytest
from system.machine import Machine
from system.service import Service
from waiting import until_sync

pytestmark = pytest.mark.timeout(1800)

HOME = "/home/bob"
UID = 4711
RUNTIME = f"/run/user/{UID}"


@pytest.fixture
def bob(machine: Machine, shared_service: Service) -> Machine:
    """The machine, in which bob has a systemd of his own and a configuration."""
    if machine.run("id", "bob").returncode:
        machine("useradd", "--create-home", "--uid", str(UID), "bob")
        machine("loginctl", "enable-linger", "bob")
    shared_service.configure(f"{HOME}/.config/vllmd/vllmd.toml")
    shared_service.control()
    machine("chown", "-R", "bob:", HOME)
    until_sync(lambda: machine.path(f"{RUNTIME}/systemd/private").exists(), "bob's systemd")
    return machine


def as_bob(machine: Machine, *argv: str) -> str:
    """What a command of his prints."""
    return machine("env", f"XDG_RUNTIME_DIR={RUNTIME}", f"HOME={HOME}", *argv, user="bob")


def test_a_user_s_socket_starts_a_user_s_vllmd_and_a_restart_keeps_its_engine(
    bob: Machine, shared_service: Service
) -> None:
    as_bob(bob, "systemctl", "--user", "start", "vllmd.socket")
    assert as_bob(bob, "vllmctl", "chat", "--no-stdin", "hello").startswith("tok0 tok1")
    assert bob.path(f"{RUNTIME}/vllmd/vllmd.sock").stat().st_mode & 0o777 == 0o600

    def engine() -> int:
        status = json.loads(as_bob(bob, "vllmctl", "status", "--json"))
        return int(status["models"][0]["pid"])

    before = engine()
    assert [pid for pid in shared_service.engine() if Path(f"/proc/{pid}").stat().st_uid == UID]
    as_bob(bob, "systemctl", "--user", "restart", "vllmd")
    assert engine() == before
    as_bob(bob, "systemctl", "--user", "reload", "vllmd")
    as_bob(bob, "systemctl", "--user", "stop", "vllmd.socket")
    assert not [pid for pid in shared_service.engine() if Path(f"/proc/{pid}").stat().st_uid == UID]
    assert not bob.path(f"{RUNTIME}/vllmd/vllmd.sock").exists()
