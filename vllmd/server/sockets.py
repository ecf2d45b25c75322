"""The doors: TCP and Unix sites of one application, or the sockets that systemd passes."""

import errno
import grp
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web

from vllmd import address
from vllmd.address import Address, TcpAddress, UnixAddress
from vllmd.config import Listen
from vllmd.errors import AddressError

FIRST_PASSED_FD = 3
"""sd_listen_fds(3): passed descriptors begin here."""

BACKLOG = 1024
SHUTDOWN_S = 1.0
"""Streams have been drained before; what is still open then is idle."""


@contextmanager
def listening(listen: Listen, environ: Mapping[str, str]) -> Iterator[list[socket.socket]]:
    """Binds every door for as long as the block lasts; clients can come in once `serving` has begun.

    Args:
        listen: where, unless systemd has passed sockets.
        environ: where `LISTEN_FDS` is looked up.

    Raises:
        AddressError: a door cannot be opened; the hint says what to do.
    """
    passed = list(_passed(environ))
    if passed:
        yield passed
        return
    with ExitStack() as stack:
        opened = []
        if listen.tcp:
            opened.append(stack.enter_context(_bind_tcp(address.parse(listen.tcp))))
        if listen.unix:
            opened.append(stack.enter_context(_bind_unix(address.parse(listen.unix), listen)))
            stack.callback(Path(opened[-1].getsockname()).unlink, missing_ok=True)
        yield opened


@asynccontextmanager
async def serving(app: web.Application, sockets: Sequence[socket.socket]) -> AsyncIterator["Doors"]:
    """Serves `app` on `sockets` until the block is left."""
    # Without handler_cancellation a client that leaves is noticed only at the next write to it.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        for each in sockets:
            await web.SockSite(runner, each, backlog=BACKLOG).start()
        yield Doors(runner)
    finally:
        await runner.cleanup()


def addresses_of(sockets: Sequence[socket.socket]) -> tuple[str, ...]:
    """Where clients come in."""
    return tuple(str(_address_of(each)) for each in sockets)


class Doors:
    """The open doors.

    Args:
        runner: aiohttp's.
    """

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner

    async def close(self) -> None:
        """Takes no new connections; those that are open go on."""
        for site in list(self._runner.sites):
            await site.stop()


def _passed(environ: Mapping[str, str]) -> Iterator[socket.socket]:
    """The sockets that systemd passes, if they are meant for this process."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return
    for number in range(int(environ.get("LISTEN_FDS", "0"))):
        passed = socket.socket(fileno=FIRST_PASSED_FD + number)
        passed.setblocking(False)
        os.set_inheritable(passed.fileno(), False)
        yield passed


def _bind_tcp(where: Address) -> socket.socket:
    assert isinstance(where, TcpAddress), "config has checked it"
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((where.host, where.port))
    except OSError as error:
        opened.close()
        raise _cannot_bind(where, error, f"find out who holds it:  ss -ltnp 'sport = :{where.port}'") from None
    return opened


def _bind_unix(where: Address, listen: Listen) -> socket.socket:
    assert isinstance(where, UnixAddress), "config has checked it"
    path = Path(where.path)
    _make_way(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        # Not even for a moment may the socket be open to more people than the configuration says.
        before = os.umask(0o177)
        try:
            opened.bind(where.path)
        finally:
            os.umask(before)
        _hand_over(path, listen)
    except OSError as error:
        opened.close()
        raise _cannot_bind(where, error, "see that its directory exists and belongs to vllmd's user") from None
    return opened


def _make_way(path: Path) -> None:
    """Removes a socket that nobody serves any more. A second bind would silently take a live daemon's place."""
    if not path.is_socket():
        if path.exists():
            raise AddressError(f"cannot listen on {path}: it exists and is no socket", "choose another path")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        try:
            visitor.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise AddressError(f"cannot listen on {path}: {error.strerror}", "choose another path") from None
            path.unlink(missing_ok=True)
            return
    raise AddressError(f"cannot listen on {path}: a running daemon owns it", "stop it first, or choose another path")


def _hand_over(path: Path, listen: Listen) -> None:
    if listen.unix_group:
        try:
            os.chown(path, -1, grp.getgrnam(listen.unix_group).gr_gid)
        except KeyError:
            known = f"create it:  groupadd --system {listen.unix_group}"
            raise AddressError(f"listen.unix_group: there is no group {listen.unix_group}", known) from None
    path.chmod(int(listen.unix_mode, 8))


def _cannot_bind(where: Address, error: OSError, hint: str) -> AddressError:
    return AddressError(f"cannot listen on {where}: {(error.strerror or str(error)).lower()}", hint)


def _address_of(opened: socket.socket) -> Address:
    name = opened.getsockname()
    return UnixAddress(str(name)) if opened.family == socket.AF_UNIX else TcpAddress(name[0], name[1])
