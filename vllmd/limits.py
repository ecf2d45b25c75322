"""How much a client may ask for, send and have under way: in general, and by user, group and key."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

from vllmd.keys import NAME
from vllmd.settings import Applies, Problem, option, read

_IDENTITY = re.compile(r"uid:[0-9]{1,10}|group:[^\s:]+|key:" + NAME.pattern + "|127[.]0[.]0[.]1")


@dataclass(frozen=True)
class Allowance:
    """What one identity may do: a user of the Unix socket, a key, or everybody on loopback TCP together."""

    running: int = option(0, "requests of one identity in engines at once, more of them wait; 0: any number", minimum=0)
    held: int = option(0, "requests of one identity that wait at once, one more gets 429; 0: any number", minimum=0)
    tokens_per_minute: int = option(
        0, "tokens that are generated for one identity; when they are used up new requests get 429; 0: any number",
        minimum=0,
    )  # fmt: skip
    connections: int = option(0, "connections of one identity; 0: half of all that there is room for", minimum=0)
    priority: int = option(
        0, "of its requests in vLLM's scheduler, the lowest goes first, where `scheduling-policy` is `priority`",
        minimum=-(2**31), maximum=2**31,
    )  # fmt: skip


@dataclass(frozen=True)
class Limits(Allowance):
    """What a client may ask for and send."""

    body_bytes: int = option(32 * 1024 * 1024, "largest request body, in bytes", minimum=1024, applies=Applies.DAEMON)
    head_s: float = option(
        75.0, "seconds in which the head of a request must have come, from the connection or the last answer on",
        minimum=1,
    )  # fmt: skip
    body_s: float = option(30.0, "seconds a request's body may take, and one more for each 64 KiB of it", minimum=1)
    answers: int = option(128, "answers that one request may ask for: `n`, times the prompts in a list", minimum=1)
    max_tokens: int = option(0, "longest answer on /v1, in tokens; 0: what the model can", minimum=0)
    identities: Mapping[str, Allowance] = option({}, "other limits for `uid:N`, `group:NAME`, `key:NAME`: a table each")

    def of(self, name: str, groups: Collection[str] = ()) -> Allowance:
        """What an identity may do: its own table, else that of the first of its groups that has one, else this."""
        if name in self.identities:
            return self.identities[name]
        own = {f"group:{group}" for group in groups}
        return next((each for key, each in self.identities.items() if key in own), self)

    @cached_property
    def know_groups(self) -> bool:
        """Whether it matters which groups a user is in."""
        return any(key.startswith("group:") for key in self.identities)


def with_identities(limits: Limits, problems: list[Problem]) -> Limits:
    """Reads the tables of identities; what one leaves out is as for everybody."""
    general = {each.name: getattr(limits, each.name) for each in fields(Allowance)}
    identities = {}
    for name, table in limits.identities.items():
        place = f"limits.identities.{name}"
        if not _IDENTITY.fullmatch(name):
            problems.append(Problem(place, "expected uid:N, group:NAME, key:NAME or 127.0.0.1"))
        given = {**general, **table} if isinstance(table, Mapping) else table
        identities[name] = read(Allowance, given, place, problems)
    return replace(limits, identities=identities)
