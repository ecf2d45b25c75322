"""What each identity has under way, and what it has had: its limits are kept here, and its usage is told from here."""

import math
import time
from collections.abc import Callable, Iterator

from vllmd.errors import TooMany
from vllmd.limits import Allowance, Limits
from vllmd.server.access import Identity, allowance
from vllmd.server.calls import Call
from vllmd.statuses import Usage

LOOKED_UP_S = 60.0
"""So long a user's groups are remembered."""


class Account:
    """One identity's.

    Args:
        who: whose.
        limits: of everybody.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, who: Identity, limits: Limits, now: float) -> None:
        self.who = who
        self.requests = self.refused = 0
        self._settled = 0
        self._calls: dict[Call, None] = {}
        self.allowed = Allowance()
        self._left = 0.0
        self._seen, self._seen_at = 0, now
        self.look_up(limits, now)

    def look_up(self, limits: Limits, now: float) -> None:
        """Finds out what it may do. With other tokens a minute it begins anew."""
        before, self.allowed = self.allowed, allowance(limits, self.who)
        self.looked_up_at = now
        if self.allowed.tokens_per_minute != before.tokens_per_minute:
            self._left = float(self.allowed.tokens_per_minute)
            self._seen, self._seen_at = self.tokens, now

    @property
    def tokens(self) -> int:
        """About how many tokens were generated for it, those of running answers included."""
        return self._settled + sum(map(_tokens, self._calls))

    def admit(self, call: Call, now: float) -> None:
        """Counts a call from now on. Raises TooMany if its tokens are used up."""
        if self.allowed.tokens_per_minute and (retry_after_s := self._retry_after_s(now)):
            self.refused += 1
            limit = self.allowed.tokens_per_minute
            message = f"{self.who.name} has used up its {limit} tokens a minute"
            raise TooMany(message, "wait, or ask for less", retry_after_s)
        self.requests += 1
        self._calls[call] = None

    def settle(self, call: Call) -> None:
        """The call is over; what was generated for it stays counted."""
        del self._calls[call]
        self._settled += _tokens(call)

    def _retry_after_s(self, now: float) -> int:
        """A bucket that holds the tokens of a minute, and fills in one: 0 while something is in it.

        A running answer may overdraw it, since it is not cut; new ones then wait until that is paid.
        """
        most = self.allowed.tokens_per_minute
        tokens, rate = self.tokens, most / 60
        self._left = min(most, self._left + (now - self._seen_at) * rate) - (tokens - self._seen)
        self._seen, self._seen_at = tokens, now
        return 0 if self._left > 0 else max(1, math.ceil((1 - self._left) / rate))

    def usage(self) -> Usage:
        """All of it as it is told."""
        held = sum(call.held for call in self._calls)
        return Usage(self.who.name, self.requests, self.refused, len(self._calls) - held, held, self.tokens)


def _tokens(call: Call) -> int:
    return call.answer.tokens if call.answer is not None else 0


class Accounts:
    """Those of everybody who has asked so far.

    Args:
        limits: what each may do.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, limits: Limits | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or Limits()
        self._now = now
        self._accounts: dict[str, Account] = {}

    def __iter__(self) -> Iterator[Account]:
        return iter(tuple(self._accounts.values()))

    def change(self, limits: Limits) -> None:
        """Other limits hold from now on; what was counted stays."""
        self._limits = limits
        for account in self:
            account.look_up(limits, self._now())

    def of(self, who: Identity) -> Account:
        """The account of `who`, opened if need be."""
        if (account := self._accounts.get(who.name)) is None:
            account = self._accounts[who.name] = Account(who, self._limits, self._now())
        elif self._limits.know_groups and self._now() > account.looked_up_at + LOOKED_UP_S:
            account.look_up(self._limits, self._now())
        return account

    def named(self, name: str) -> Account:
        """The account of that name, opened if need be."""
        return self._accounts[name] if name in self._accounts else self.of(Identity(name))

    def usage(self) -> tuple[Usage, ...]:
        """What everybody has had."""
        return tuple(account.usage() for account in self)

    # ── what `calls` calls ──

    def admit(self, call: Call) -> None:
        """A call begins. Raises TooMany if its identity's tokens are used up."""
        self.named(call.who).admit(call, self._now())

    def settle(self, call: Call) -> None:
        """It is over."""
        self.named(call.who).settle(call)
