"""What tests of vllmctl need: a stub daemon on a Unix socket, and a shell that knows where it is."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon


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


@pytest.fixture
def shell(socket_path: Path) -> Shell:
    """A shell whose vllmctl talks to the stub daemon, if one is running."""
    return Shell({"VLLMD_HOST": f"unix://{socket_path}"})
