"""Who asks, and what they may do.

On a Unix socket the kernel says who is at the other end (SO_PEERCRED, unix(7)); on TCP there is only an address.
"""

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from aiohttp import web

from vllmd.errors import Denied


@dataclass(frozen=True)
class Identity:
    """Somebody at one of the doors.

    Args:
        name: `uid:1000` on the Unix socket, the IP address on TCP.
        uid: on the Unix socket; None on TCP.
    """

    name: str
    uid: int | None = None


def identify(request: web.Request) -> Identity:
    """Who sent `request`."""
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is not None and peer.family == socket.AF_UNIX:
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return Identity(f"uid:{uid}", uid)
    return Identity(request.remote or "unknown")


def require_administrator(identity: Identity, admin_group: str) -> None:
    """Raises Denied unless `identity` is root, the daemon's own user or a member of `admin_group`."""
    if identity.uid is None:
        raise Denied("administration is not possible over TCP", "use the Unix socket")
    if identity.uid not in (0, os.getuid()) and not _is_member(identity.uid, admin_group):
        who = f"members of the group {admin_group}" if admin_group else "the daemon's own user"
        raise Denied(f"uid {identity.uid} may not administer vllmd", f"root and {who} may")


def _is_member(uid: int, group: str) -> bool:
    if not group:
        return False
    try:
        user, wanted = pwd.getpwuid(uid), grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return wanted in os.getgrouplist(user.pw_name, user.pw_gid)
