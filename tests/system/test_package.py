"""The Debian package: what is installed works, is upgraded under load, and leaves nothing behind."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.conftest import ROOT, install
from system.debian import root_of
from system.machine import Machine, booted
from system.service import Service

pytestmark = pytest.mark.timeout(1800)

OWN = "/etc/systemd/system/vllmd.service.d/own.conf"

NOT_OURS = [
    "/var/lib/dpkg",
    "/var/lib/systemd",
    "/var/log",
    "/var/cache",
    "/etc/ld.so.cache",
    "/etc/machine-id",
    "/srv/fake",
    "/root",
    "/tmp",
    "/var/tmp",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/etc/.pwd.lock",
]
"""What dpkg, useradd, systemd and these tests write for themselves. vllmd's own folders below them are looked at."""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """A machine with Debian 12 and nothing of vllmd's."""
    with booted(root_of("bookworm"), tmp_path) as machine:
        yield machine


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a higher version."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9:"))
    subprocess.run(["dpkg-deb", "-Znone", "--build", folder / "tree", folder / "newer.deb"], check=True)
    return folder / "newer.deb"


def files(machine: Machine) -> dict[str, str]:
    """Everything on the machine's disk but what is not ours: path → kind, mode, owner and target, or what it holds."""
    skipped = [word for path in NOT_OURS for word in ("-path", path, "-prune", "-o")]
    of_folder = ("-type", "d", "-printf", "%p\t%y %m %U:%G\n")
    listing = machine(
        "find", "/", "-xdev", *skipped, *of_folder, "-o", "-printf", "%p\t%y %m %U:%G %s %l\n"
    ).splitlines()
    found = dict(line.split("\t") for line in listing)
    for folder in ("/var/log", "/var/cache", "/var/lib"):
        ours = machine("find", folder, "-name", "*vllm*", "-not", "-path", "/var/lib/dpkg/info/*")
        found.update(dict.fromkeys(ours.splitlines(), "ours"))
    for path in ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"):
        found[path] = machine.path(path).read_text()
    found["listening"] = str(sorted(line.split()[1] for line in machine("cat", "/proc/net/tcp").splitlines()))
    return found


def test_install_use_upgrade_remove_purge(bare: Machine, package: Path, newer: Path) -> None:
    before = files(bare)
    install(bare, package)
    assert bare("systemctl", "is-enabled", "vllmd.socket") == "enabled"
    assert bare("systemctl", "is-active", "vllmd.socket") == "active"
    assert bare.show("vllmd", "ActiveState") == "inactive", "nothing is downloaded before anybody asks"

    service = Service(bare)
    assert bare("vllmctl", "chat", "--no-stdin", "hello").startswith("tok0 tok1")
    config = bare.path("/etc/vllmd/vllmd.toml").read_text()
    bare.write(OWN, "[Service]\nEnvironment=OWN=1\n")
    engine, main = service.model().pid, service.pid

    bare.path("/root/newer.deb").write_bytes(newer.read_bytes())
    bare("dpkg", "--install", "/root/newer.deb")
    service.wait_for("ActiveState", "active")
    assert service.pid != main, "the new version runs"
    assert service.model().pid == engine, "on the engine of the old one"
    assert bare.path("/etc/vllmd/vllmd.toml").read_text() == config
    assert bare.path(OWN).read_text() == "[Service]\nEnvironment=OWN=1\n"

    bare("dpkg", "--remove", "vllmd")
    assert not service.engine()
    assert not bare.path("/run/vllmd/vllmd.sock").exists()
    assert bare.path("/etc/vllmd/vllmd.toml").read_text() == config
    assert {"/var/lib/vllmd", "/var/cache/vllmd", "/etc/vllmd/vllmd.toml"} <= files(bare).keys() - before.keys()

    bare("dpkg", "--purge", "vllmd")
    bare("rm", "-r", str(Path(OWN).parent))  # the administrator's own
    assert_same(files(bare), before)


def assert_same(after: dict[str, str], before: dict[str, str]) -> None:
    different = {key for key in after.keys() | before.keys() if after.get(key) != before.get(key)}
    assert not different, {key: (before.get(key), after.get(key)) for key in different}


def test_it_comes_back_at_boot(bare: Machine, package: Path) -> None:
    install(bare, package)
    service = Service(bare)
    bare("systemctl", "enable", "vllmd.service", "vllmd.socket")
    bare.reboot()
    assert service.show("ActiveState") == "active"
    assert service.model().state == "ready"


def test_it_runs_on_trixie(package: Path, tmp_path: Path) -> None:
    with booted(root_of("trixie"), tmp_path) as machine:
        assert machine("systemctl", "--version").startswith("systemd 257")
        before = files(machine)
        install(machine, package)
        service = Service(machine)
        assert machine("vllmctl", "chat", "--no-stdin", "hello").startswith("tok0 tok1")
        engine = service.model().pid
        service.restart()
        assert service.model().pid == engine
        machine("dpkg", "--purge", "vllmd")
        assert not service.engine()
        assert_same(files(machine), before)


# ── without the package ──


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip installs, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (archive,) = folder.glob("*.whl")
    shutil.unpack_archive(archive, folder, "zip")
    (share,) = folder.glob("vllmd-*.data/data/share")
    return share


def test_the_wheel_brings_manuals_and_completions(wheel: Path) -> None:
    found = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    assert {"man/man1/vllmctl.1", "man/man8/vllmd.8", "man/man5/vllmd.toml.5"} <= found
    assert {"bash-completion/completions/vllmctl", "zsh/site-functions/_vllmctl"} <= found


def test_the_steps_of_the_readme_make_a_service_of_an_environment(bare: Machine, package: Path, wheel: Path) -> None:
    # The environment is what the package has in /usr/lib/vllmd: there is no network in the machine to install one from.
    bare.path("/root/vllmd.deb").write_bytes(package.read_bytes())
    bare("dpkg-deb", "--extract", "/root/vllmd.deb", "/root/unpacked")
    bare("mv", "/root/unpacked/usr/lib/vllmd", "/usr/lib")
    bare("mkdir", "/opt/vllmd")
    bare("mv", "/root/unpacked/usr/bin", "/opt/vllmd")
    shutil.copytree(wheel, bare.path("/opt/vllmd/share"))
    steps = (ROOT / "README.md").read_text().split("python3 -m venv /opt/vllmd")[1].split("```")[0].split("\n", 1)[1]
    bare("bash", "-ec", steps)
    service = Service(bare)
    assert bare("vllmctl", "chat", "--no-stdin", "hello").startswith("tok0 tok1")
    assert service.show("FragmentPath") == "/etc/systemd/system/vllmd.service"
    bare("systemctl", "reload", "vllmd")
