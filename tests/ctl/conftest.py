"""What tests of vllmctl need: a stub daemon on a Unix socket, and a shell that knows where it is."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon
from daemons import Daemon, running


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A short path in a directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="vllmctl-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "vllmd.sock"


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[StubDaemon]:
    """A stub daemon without any answers yet."""
    with StubDaemon(socket_path) as stub:
        yield stub


@pytest.fixture(scope="module")
def shared_real() -> Iterator[Daemon]:
    """A daemon on the fake engine, for a module's tests; it says soon what it waits for."""
    with running(Daemon(queue={"status_after_s": 0.05})) as daemon:
        yield daemon


@pytest.fixture
def real(shared_real: Daemon) -> Daemon:
    """The same, as if nobody had done anything to it yet."""
    shared_real.control()
    shared_real.forget()
    if shared_real.model().state != "ready":
        assert shared_real.order("load", wait=True)[0] == 200
    return shared_real


@pytest.fixture
def shell(socket_path: Path) -> Shell:
    """A shell whose vllmctl talks to the stub daemon, if one is running."""
    return Shell({"VLLMD_HOST": f"unix://{socket_path}"})
