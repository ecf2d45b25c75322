"""Where vllmctl looks for the daemon."""

import os
from pathlib import Path

import pytest

from vllmd.address import TcpAddress, UnixAddress
from vllmd.ctl.reach import SYSTEM_SOCKET, find_address, unreachable
from vllmd.errors import AddressError, DaemonUnreachable, Denied

ME = os.getuid() or 1000


def test_the_flag_comes_first_then_the_environment() -> None:
    environ = {"VLLMD_HOST": "http://gpu1:8000"}
    assert find_address("gpu2:9000", environ, ME) == TcpAddress("gpu2", 9000)
    assert find_address("", environ, ME) == TcpAddress("gpu1", 8000)
    assert find_address("", {"VLLMD_HOST": ""}, ME) == SYSTEM_SOCKET


@pytest.mark.parametrize(
    ("flag", "environ", "said"), [("x", {}, "--host: 'x'"), ("", {"VLLMD_HOST": "y"}, "VLLMD_HOST: 'y'")]
)
def test_what_is_no_address_is_named_with_its_place(flag: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(AddressError, match=f"^{said} is not an address"):
        find_address(flag, environ, ME)


def test_a_user_s_own_daemon_comes_before_the_system_s(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_address("", environ, ME) == SYSTEM_SOCKET
    (tmp_path / "vllmd").mkdir()
    socket = tmp_path / "vllmd" / "vllmd.sock"
    socket.touch()
    owner = socket.stat().st_uid
    if owner == 0:
        os.chown(socket, ME, -1)
    assert find_address("", environ, ME) == UnixAddress(str(socket))


def test_somebody_else_s_socket_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "vllmd").mkdir()
    (tmp_path / "vllmd" / "vllmd.sock").touch()
    assert find_address("", {"XDG_RUNTIME_DIR": str(tmp_path)}, ME + 1) == SYSTEM_SOCKET


@pytest.mark.parametrize(
    ("address", "command"),
    [
        (SYSTEM_SOCKET, "systemctl status vllmd"),
        (UnixAddress("/run/user/1000/vllmd/vllmd.sock"), "systemctl --user status vllmd"),
        (UnixAddress("/tmp/vllmd-1000/vllmd.sock"), "systemctl --user status vllmd"),
        (TcpAddress("gpu1", 8000), "curl http://gpu1:8000/health"),
    ],
)
def test_the_hint_says_how_to_look(address: UnixAddress | TcpAddress, command: str) -> None:
    error = unreachable(address, FileNotFoundError(2, "No such file or directory"))
    assert isinstance(error, DaemonUnreachable)
    assert error.message == f"cannot reach vllmd at {address}: no such socket"
    assert error.hint == f"is it running?  {command}"


def test_permission_denied_is_about_the_socket() -> None:
    assert isinstance(unreachable(SYSTEM_SOCKET, PermissionError(13, "Permission denied")), Denied)
    assert isinstance(unreachable(TcpAddress("gpu1", 1), PermissionError(13, "Permission denied")), DaemonUnreachable)
