"""How long one stream has been silent, and on whose side. Decides, and does nothing."""

from dataclasses import dataclass
from enum import Enum, auto

from vllmd.sections import Config

DISCARD_S = 1.0
"""Seconds that an answer may go on after its last event, until its connection is given up."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How much silence is borne, in seconds.

    Args:
        keepalive_s: the engine's, until the client gets a comment, again and again.
        stall_s: the engine's, until it is given up.
        send_stall_s: the client's that takes nothing of what waits for it, until it is cut off.
    """

    keepalive_s: float
    stall_s: float
    send_stall_s: float

    @property
    def tick_s(self) -> float:
        """How often to look: often enough for the shortest of them."""
        return min(2.0, min(self.keepalive_s, self.stall_s, self.send_stall_s) / 4)


def patience(config: Config) -> Patience:
    """As it is configured."""
    return Patience(config.sse.keepalive_s, config.relay.stall_s, config.relay.send_stall_s)


class Due(Enum):
    """What is to be done about a silence."""

    NOTHING = auto()
    COMMENT = auto()
    GIVE_UP = auto()
    CUT_OFF = auto()


class Silence:
    """The silence of one stream.

    Args:
        patience: how much is borne.
        now: the event loop's time in seconds, as everywhere here.
    """

    __slots__ = ("_backlog", "_heard_at", "_moved_at", "_patience", "_told_at")

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._heard_at = self._told_at = self._moved_at = now
        self._backlog = (0, 0)

    def heard(self, now: float) -> None:
        """The engine has said something, or need not say anything yet."""
        self._heard_at = now

    def told(self, now: float) -> None:
        """The client has got something."""
        self._told_at = now

    def client_is_clogged(self, now: float) -> None:
        """From now on the client has to read."""
        self._moved_at = now

    def of_engine(self, now: float, is_done: bool) -> Due:
        """What the engine's silence calls for; after its last event it has little time to end."""
        silent_s = now - self._heard_at
        if silent_s >= (DISCARD_S if is_done else self._patience.stall_s):
            return Due.GIVE_UP
        return Due.NOTHING if is_done else self.of_pause(now)

    def of_pause(self, now: float) -> Due:
        """What is due while nobody expects the engine to say anything: the client wants to be told something."""
        if now - self._told_at < self._patience.keepalive_s:
            return Due.NOTHING
        self._told_at = now
        return Due.COMMENT

    def of_client(self, now: float, backlog: tuple[int, int]) -> Due:
        """What the client's calls for: as long as the backlog, in whichever buffer, changes, it reads."""
        if backlog != self._backlog:
            self._backlog, self._moved_at = backlog, now
        return Due.CUT_OFF if now - self._moved_at >= self._patience.send_stall_s else Due.NOTHING
