"""vllmd in a user's own systemd: no root, no package manager, its own socket."""

import json

import pytest
from system.machine import Machine
from system.service import FAKE, Service
from waiting import until_sync

pytestmark = pytest.mark.timeout(900)

HOME = "/home/bob"


@pytest.fixture
def bob(machine: Machine, shared_service: Service) -> Machine:
    """The machine, in which bob has a systemd of his own and a configuration."""
    if machine.run("id", "bob").returncode:
        machine("useradd", "--create-home", "--uid", "4711", "bob")
        machine("loginctl", "enable-linger", "bob")
    shared_service.configure(f"{HOME}/.config/vllmd/vllmd.toml")
    shared_service.control()
    machine("chown", "-R", "bob:", HOME)
    until_sync(lambda: machine.path("/run/user/4711/systemd/private").exists(), "bob's systemd")
    return machine


def as_bob(machine: Machine, *argv: str) -> str:
    """What a command of his prints."""
    return machine("env", "XDG_RUNTIME_DIR=/run/user/4711", f"HOME={HOME}", *argv, user="bob")


def test_a_user_s_socket_starts_a_user_s_vllmd_and_a_restart_keeps_its_engine(bob: Machine) -> None:
    as_bob(bob, "systemctl", "--user", "start", "vllmd.socket")
    assert as_bob(bob, "vllmctl", "chat", "--no-stdin", "hello").startswith("tok0 tok1")
    assert bob.path("/run/user/4711/vllmd/vllmd.sock").stat().st_mode & 0o777 == 0o600

    def engine() -> int:
        status = json.loads(as_bob(bob, "vllmctl", "status", "--json"))
        return int(status["models"][0]["pid"])

    before = engine()
    as_bob(bob, "systemctl", "--user", "restart", "vllmd")
    assert engine() == before
    as_bob(bob, "systemctl", "--user", "reload", "vllmd")
    as_bob(bob, "systemctl", "--user", "stop", "vllmd.socket")
    assert bob.run("pgrep", "-u", "bob", "-f", FAKE).stdout == ""
    assert not bob.path("/run/user/4711/vllmd/vllmd.sock").exists()
