"""Who asks, and what they may do.

On a Unix socket the kernel says who is at the other end (SO_PEERCRED, unix(7)). On TCP a key does; without keys there
is only an address, which is this machine's.
"""

import asyncio
import grp
import ipaddress
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from vllmd.errors import Denied
from vllmd.keys import Key, Scope
from vllmd.limits import Allowance, Limits

LOOPBACK = "127.0.0.1"
"""The name of everybody on this machine who comes in by TCP: each of them could use a million addresses of it."""


_UCRED = struct.Struct("iII")
"""A pid, which has a sign; a uid and a gid, which have none (unix(7), `struct ucred`)."""


@dataclass(frozen=True)
class Identity:
    """Somebody at one of the doors.

    Args:
        name: `uid:1000` on the Unix socket; on TCP `key:NAME`, or the IP address where no key is asked for.
        uid: on the Unix socket; None on TCP.
        scope: of the key; None without one.
    """

    name: str
    uid: int | None = None
    scope: Scope | None = None

    @property
    def owns_the_daemon(self) -> bool:
        """Whether it is root or the daemon's own user, who could do as they like with the process as well."""
        return self.uid is not None and self.uid in (0, os.getuid())


IDENTITY = web.RequestKey("identity", Identity)

IS_STRANGER = web.RequestKey("is_stranger", bool)
"""Set where keys are asked for, and somebody comes in without one to what is open to anybody."""


class Known(Protocol):
    """A connection that knows who is at its other end (`shortcut`, `clients`)."""

    peer: Identity


def peer_of(request: web.BaseRequest) -> Identity:
    """Who is at the other end of the connection."""
    client: Known = request.protocol  # type: ignore[assignment] # `entrance` makes no others
    return client.peer


def identify(request: web.BaseRequest) -> Identity:
    """Who sent `request`, as `admission` has found out; before that, who is at the other end (`middleware`)."""
    return request[IDENTITY]


def of_key(key: Key) -> Identity:
    """Who has `key`."""
    return Identity(f"key:{key.name}", scope=key.scope)


def at_the_end_of(transport: asyncio.BaseTransport) -> Identity:
    """Who is at the other end of a connection, before anything is said on it."""
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family == socket.AF_UNIX:
        _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return Identity(f"uid:{uid}", uid)
    address = transport.get_extra_info("peername")
    return Identity(_named(address[0]) if address else "unknown")


def _named(address: str) -> str:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return LOOPBACK if (mapped or parsed).is_loopback else str(mapped or parsed)


def require_administrator(identity: Identity, admin_group: str) -> None:
    """Raises Denied unless `identity` may administer.

    On the Unix socket those are root, the daemon's own user and the members of `admin_group`, on TCP the keys of scope
    `admin`.
    """
    if identity.scope is Scope.ADMIN or identity.owns_the_daemon:
        return
    if identity.scope is Scope.INFERENCE:
        raise Denied(f"the key {identity.name.partition(':')[2]} is good for inference only", "use one of scope admin")
    if identity.uid is None:
        raise Denied("administration is not possible over TCP without a key", "use the Unix socket")
    if admin_group not in groups_of(identity.uid):
        who = f"members of the group {admin_group}" if admin_group else "the daemon's own user"
        raise Denied(f"uid {identity.uid} may not administer vllmd", f"root and {who} may")


def administers(identity: Identity, admin_group: str) -> bool:
    """Whether `require_administrator` lets them through."""
    return not why_denied(identity, admin_group)


def why_denied(identity: Identity, admin_group: str) -> str:
    """Why `require_administrator` does not let them through, and what would help; empty if it does."""
    try:
        require_administrator(identity, admin_group)
    except Denied as error:
        return f"{error.message}: {error.hint}"
    return ""


def allowance(limits: Limits, identity: Identity) -> Allowance:
    """What `identity` may do, by its name or its groups."""
    groups = groups_of(identity.uid) if limits.know_groups and identity.uid is not None else ()
    return limits.of(identity.name, groups)


def groups_of(uid: int) -> frozenset[str]:
    """The names of a user's groups (getgrouplist(3)); none for a uid that is nobody's."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(name for gid in os.getgrouplist(user.pw_name, user.pw_gid) if (name := _group(gid)))


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
