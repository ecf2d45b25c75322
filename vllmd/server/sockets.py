"""The listening sockets: TCP and Unix, or those that systemd passes. Who serves them is said in `entrance`."""

import errno
import grp
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vllmd import address
from vllmd.address import Address, TcpAddress, UnixAddress
from vllmd.errors import AddressError
from vllmd.passed import passed
from vllmd.sections import Listen

BACKLOG = 1024


@contextmanager
def listening(listen: Listen, environ: Mapping[str, str], *, has_keys: bool) -> Iterator[list[socket.socket]]:
    """Binds every door for as long as the block lasts; clients can come in once `serving` has begun.

    Args:
        listen: where, unless systemd has passed sockets.
        environ: where `LISTEN_FDS` is looked up.
        has_keys: whether clients that come in by TCP need one.

    Raises:
        AddressError: a door cannot be opened; the hint says what to do.
    """
    if from_systemd := list(_passed(environ)):
        if not has_keys:
            _refuse_networks(from_systemd)
        yield from_systemd
        return
    with ExitStack() as stack:
        opened = []
        if listen.tcp:
            opened.append(stack.enter_context(_bind_tcp(address.parse(listen.tcp))))
        if listen.unix:
            opened.append(stack.enter_context(_bind_unix(address.parse(listen.unix), listen)))
        yield opened


def _refuse_networks(sockets: Sequence[socket.socket]) -> None:
    """Sockets of systemd's keep to the same rule as `listen.tcp`: without keys, this machine alone."""
    for each in sockets:
        where = _address_of(each)
        if isinstance(where, TcpAddress) and not where.is_loopback:
            raise AddressError(
                f"systemd passes {where}, which other machines can reach, and vllmd has no keys to guard it",
                "set access.keys, or write ListenStream=127.0.0.1:PORT in a drop-in of vllmd.socket",
            )


def addresses_of(sockets: Sequence[socket.socket]) -> tuple[str, ...]:
    """Where clients come in."""
    return tuple(str(_address_of(each)) for each in sockets)


def _passed(environ: Mapping[str, str]) -> Iterator[socket.socket]:
    """The sockets that systemd passes, if they are meant for this process."""
    for each in passed(environ, os.getpid()):
        if not each.is_stored:
            opened = socket.socket(fileno=each.fd)
            opened.setblocking(False)
            os.set_inheritable(opened.fileno(), False)
            yield opened


@contextmanager
def _bind_tcp(where: Address) -> Iterator[socket.socket]:
    assert isinstance(where, TcpAddress), "config has checked it"
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((where.host, where.port))
            # Only now is the address ours: before, somebody else could still bind it as well.
            opened.listen(BACKLOG)
        except OSError as error:
            raise _cannot_bind(where, error, f"find out who holds it:  ss -ltnp 'sport = :{where.port}'") from None
        yield opened


@contextmanager
def _bind_unix(where: Address, listen: Listen) -> Iterator[socket.socket]:
    assert isinstance(where, UnixAddress), "config has checked it"
    path = Path(where.path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        try:
            _make_way(path)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            # Not even for a moment may the socket be open to more people than the configuration says.
            before = os.umask(0o177)
            try:
                opened.bind(where.path)
            finally:
                os.umask(before)
            opened.listen(BACKLOG)  # who dials first to see whether it is stale finds it alive from now on
        except OSError as error:
            raise _cannot_bind(where, error, "see that its directory exists and belongs to vllmd's user") from None
        try:
            _hand_over(path, listen)
            yield opened
        finally:
            path.unlink(missing_ok=True)


def _make_way(path: Path) -> None:
    """Removes a socket that nobody serves any more. A second bind would silently take a live daemon's place."""
    if not path.is_socket():
        if path.exists():
            raise AddressError(f"cannot listen on {path}: it exists and is no socket", "choose another path")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.setblocking(False)  # a busy owner's backlog may be full: then the answer is EAGAIN
        answer = visitor.connect_ex(str(path))
    if answer == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
        return
    owned = answer in (0, errno.EAGAIN)
    reason = "a running daemon owns it" if owned else os.strerror(answer)
    raise AddressError(f"cannot listen on {path}: {reason}", "stop it first, or choose another path")


def _hand_over(path: Path, listen: Listen) -> None:
    group = listen.unix_group
    try:
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(int(listen.unix_mode, 8))
    except KeyError:
        known = f"create it:  groupadd --system {group}"
        raise AddressError(f"listen.unix_group: there is no group {group}", known) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "vllmd's user must be a member of it"
        raise AddressError(f"listen.unix_group: cannot give {path} to the group {group}: {reason}", hint) from None


def _cannot_bind(where: Address, error: OSError, hint: str) -> AddressError:
    return AddressError(f"cannot listen on {where}: {(error.strerror or str(error)).lower()}", hint)


def _address_of(opened: socket.socket) -> Address:
    name = opened.getsockname()
    return UnixAddress(str(name)) if opened.family == socket.AF_UNIX else TcpAddress(name[0], name[1])
