"""Where the daemon is, and what to say when nobody answers there."""

import os
import stat
from collections.abc import Mapping

from vllmd.address import Address, UnixAddress, default_socket, parse
from vllmd.errors import AddressError, DaemonUnreachable, Denied, VllmdError

_CHOOSE = "--host and VLLMD_HOST choose another address"
SYSTEM_SOCKET = UnixAddress("/run/vllmd/vllmd.sock")


def find_address(flag: str, environ: Mapping[str, str], uid: int) -> Address:
    """`--host`, else VLLMD_HOST, else the socket of this user's own daemon if there is one, else the system's.

    Raises:
        AddressError: the first that is given is no address; says which of them it is.
    """
    for name, text in (("--host", flag), ("VLLMD_HOST", environ.get("VLLMD_HOST", ""))):
        if text:
            return _parse(name, text)
    own = default_socket(environ, uid)
    return own if _belongs_to(uid, own.path) else SYSTEM_SOCKET


def _parse(name: str, text: str) -> Address:
    try:
        return parse(text)
    except AddressError as error:
        raise AddressError(f"{name}: {error.message}", error.hint) from error


def _belongs_to(uid: int, path: str) -> bool:
    """Whether the socket exists and is this user's: anybody could put one of that name into /tmp and read along."""
    try:
        return os.stat(path).st_uid == uid
    except OSError:
        return False


def unreachable(address: Address, error: OSError) -> VllmdError:
    """What a failed connection means: `Denied` where the permissions forbid it, else `DaemonUnreachable`."""
    if isinstance(address, UnixAddress) and isinstance(error, PermissionError):
        group = _group_of(address.path)
        return Denied(
            f"permission denied on {address.path}",
            f"join the group:  sudo usermod -aG {group} $USER   (then log in again)",
        )
    if isinstance(error, ConnectionRefusedError) and isinstance(address, UnixAddress) and not _is_socket(address.path):
        return DaemonUnreachable(f"cannot reach vllmd at {address}: that is no socket", _CHOOSE)
    return DaemonUnreachable(f"cannot reach vllmd at {address}: {_reason(error)}", f"is it running?  {_look(address)}")


def not_vllmd(address: Address, what: str) -> VllmdError:
    """What answers at `address` is not vllmd, or of a version that cannot be understood."""
    return DaemonUnreachable(f"what answers at {address} {what}", f"is it vllmd?  {_CHOOSE}")


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # it was one a moment ago


def _look(address: Address) -> str:
    if not isinstance(address, UnixAddress):
        return f"curl {address}/health"
    own = address.path.startswith(("/run/user/", "/tmp/vllmd-"))
    return "systemctl --user status vllmd" if own else "systemctl status vllmd"


def _group_of(path: str) -> str:
    """The group that may open the socket; root's is nobody's to join."""
    import grp

    try:
        group_id = os.stat(path).st_gid
        return grp.getgrgid(group_id).gr_name if group_id else "vllmd"
    except (OSError, KeyError):
        return "vllmd"
