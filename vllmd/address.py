"""Addresses: `unix:///run/vllmd/vllmd.sock`, `http://host:port`, `host:port`, `[::1]:8080`.

One parser serves the daemon's `[listen]` table and vllmctl's `--host`.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from vllmd.errors import AddressError

UNIX_PATH_MAX_BYTES = 107
"""The longest socket path Linux takes: `sun_path` has 108 bytes, the last one is NUL (unix(7))."""

_HOST_PORT = r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^:/\[\]@\s]+))(?::(?P<port>[0-9]+))?/?"
_FORMS = "write unix:///path, /path, http://host:port, host:port or [::1]:port"
_LOOPBACK = r"(?i:localhost|127(?:\.\d{1,3}){3}|::1)"


class UnixAddress(NamedTuple):
    """A Unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpAddress(NamedTuple):
    """A TCP port; `host` is a name or an IP address without brackets."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    @property
    def authority(self) -> str:
        """`host:port` as it stands in a URL and in a Host header (RFC 3986: an IPv6 address in brackets)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return re.fullmatch(_LOOPBACK, self.host) is not None


Address = UnixAddress | TcpAddress


def parse(text: str) -> Address:
    """Reads an address as people write it.

    Raises:
        AddressError: it has none of the known forms, a port out of range, or a socket path that is too long.
    """
    if text.startswith(("unix:", "/")):
        return _unix(text)
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme not in ("http", "https", "tcp"):
        raise AddressError(f"{text!r} is not an address: unknown scheme {scheme!r}", _FORMS)
    return _tcp(text, rest, tls=scheme == "https", default_port=_default_port(scheme))


def _default_port(scheme: str) -> int | None:
    return {"http": 80, "https": 443}.get(scheme)


def _unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix://").removeprefix("unix:")
    if not path.startswith("/"):
        raise AddressError(f"{text!r} is not an address: the path of a Unix socket must be absolute", _FORMS)
    check_unix_path(path)
    return UnixAddress(path)


def check_unix_path(path: str) -> None:
    """Raises AddressError if the kernel would not take `path` as a socket's."""
    length = len(os.fsencode(path))
    if length > UNIX_PATH_MAX_BYTES:
        raise AddressError(
            f"the socket path {path} is too long: {length} bytes, Linux takes {UNIX_PATH_MAX_BYTES}",
            "choose a shorter directory, such as /run/vllmd",
        )


def _tcp(text: str, rest: str, *, tls: bool, default_port: int | None) -> TcpAddress:
    match = re.fullmatch(_HOST_PORT, rest)
    port = int(match["port"]) if match and match["port"] else default_port
    if match is None or port is None:
        raise AddressError(f"{text!r} is not an address", _FORMS)
    if not 0 < port < 65536:
        raise AddressError(f"{text!r} is not an address: port {port} is not between 1 and 65535", _FORMS)
    return TcpAddress(match["six"] or match["host"], port, tls)


def runtime_directory(environ: Mapping[str, str], uid: int) -> str:
    """Where the Unix socket lies by default: the system's place for root, the user's own for a user."""
    if uid == 0:
        return "/run/vllmd"
    own = environ.get("XDG_RUNTIME_DIR")
    return f"{own}/vllmd" if own else f"/tmp/vllmd-{uid}"


def default_socket(environ: Mapping[str, str], uid: int) -> UnixAddress:
    """The Unix socket that a daemon of this user listens on unless it is told otherwise."""
    return UnixAddress(f"{runtime_directory(environ, uid)}/vllmd.sock")
