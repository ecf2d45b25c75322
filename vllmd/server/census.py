"""How many connections there may be, and whose.

Half of all descriptors are the clients', as each may need one more towards its engine, and half of those are the most
that one identity gets. A connection too many is answered at once with what HTTP has for it, and closed: an accept(2)
that fails would be tried again and again, and engines could be asked no more.
"""

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Mapping

from vllmd.errors import Overloaded, TooMany, Unavailable, outcome_of
from vllmd.limits import Limits
from vllmd.server.access import Identity, allowance
from vllmd.server.middleware import SERVER
from vllmd.wire import dumps, error_body

log = logging.getLogger(__name__)

OWN_FILES = 32
"""Descriptors that vllmd itself needs: sockets that listen, pipes to engines, files."""

OWNERS = 8
"""Connections beyond the most that whoever owns the daemon may have: they must be able to see to a full house."""

RETRY_AFTER_S = 5

_ALL = ""
"""Everybody together, beside the names of identities. Those who find no room can be any number, and are not kept."""


class Census:
    """How many connections there are, and whose.

    Args:
        limits: how many one identity may have.
        most: how many there may be in all; None for half of what the process may open.
    """

    def __init__(self, limits: Limits, most: int | None = None) -> None:
        self.limits = limits
        self._most = room() if most is None else most
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()
        """Of whom the log has been told since they last had none; `_ALL` since half of the room was last free."""

    def change(self, limits: Limits) -> None:
        """Other limits hold from now on, for those who come."""
        self.limits = limits

    def entered(self, who: Identity) -> None:
        """One more."""
        self._counts[who.name] += 1

    def left(self, who: Identity) -> None:
        """One less."""
        self._counts[who.name] -= 1
        if not self._counts[who.name]:
            del self._counts[who.name]
            self._told.discard(who.name)
        if _ALL in self._told and self._counts.total() <= self._most // 2:
            self._told.discard(_ALL)

    def refusal(self, who: Identity) -> Unavailable | None:
        """Why there is no room for one more of `who`; None if there is."""
        total, mine = self._counts.total(), self._counts[who.name]
        allowed = allowance(self.limits, who).connections or self._most // 2
        if total >= self._most + (OWNERS if who.owns_the_daemon else 0):
            message = f"{total} clients are connected already"
            return self._refused(_ALL, Overloaded(message, "try again later", RETRY_AFTER_S))
        if mine >= allowed and not who.owns_the_daemon:
            message = f"{who.name} has {mine} connections, and may have no more"
            return self._refused(who.name, TooMany(message, "close some", RETRY_AFTER_S))
        return None

    def _refused(self, whom: str, error: Unavailable) -> Unavailable:
        if whom not in self._told:
            self._told.add(whom)
            log.warning("%s; more are turned away", error.message)
        return error


def room() -> int:
    """How many clients there is room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2 - OWN_FILES)


def turn_away(transport: asyncio.Transport, refusal: Unavailable) -> None:
    """Tells somebody who finds no room why not, and hangs up."""
    body = dumps(error_body(refusal)).encode()
    head: Mapping[str, object] = {
        "Server": SERVER,
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Retry-After": refusal.retry_after_s,
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {outcome_of(refusal).status} ", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    transport.write("\r\n".join(lines).encode() + body)
    transport.close()
