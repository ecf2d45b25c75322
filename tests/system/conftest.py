"""One machine, one package and one service for all tests that leave them as they find them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.debian import need, root_of
from system.machine import Machine, booted
from system.service import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package, built by `make deb`."""
    need("debhelper", "dpkg-dev", "lintian")
    argv = [str(ROOT / "packaging/deb/build.sh"), sys.executable]
    built = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / built.stdout.split()[-1]


@pytest.fixture(scope="session")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with Debian 12 in which the package is installed."""
    with booted(root_of("bookworm"), tmp_path_factory.mktemp("machine")) as machine:
        install(machine, package)
        yield machine


def install(machine: Machine, package: Path) -> None:
    """Installs a package."""
    machine.path("/root/vllmd.deb").write_bytes(package.read_bytes())
    machine("dpkg", "--install", "/root/vllmd.deb")


@pytest.fixture(scope="session")
def shared_service(machine: Machine) -> Service:
    """The service of that machine."""
    return Service(machine)


@pytest.fixture
def service(shared_service: Service) -> Service:
    """The service, as it was installed: its sockets listen, it runs on a harmless engine."""
    shared_service.control()
    shared_service.configure()
    if shared_service.is_changed:
        shared_service.stop()
        shared_service.is_changed = False
    shared_service.machine("systemctl", "reset-failed")
    shared_service.machine("systemctl", "start", "vllmd.socket", "vllmd.service")
    return shared_service
