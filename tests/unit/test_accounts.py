"""What an identity may do, and what it has had: by name, by group, and by the minute."""

import grp
import os
import pwd
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.config import parse
from vllmd.errors import ConfigError, TooMany
from vllmd.limits import Allowance, Limits
from vllmd.server.access import Identity, allowance
from vllmd.server.accounts import Accounts
from vllmd.server.calls import Call

CI = Identity("key:ci")


@dataclass
class Answer:
    """So many tokens."""

    tokens: int = 0
    replays: int = 0
    continuations: int = 0
    has_all: bool = False


class Clock:
    """Seconds, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def call(who: Identity, tokens: int = 0) -> Call:
    made = Call("id", who.name, "m", "/v1/completions", b"", {}, stream=True, may_wait=True)
    made.answer = Answer(tokens)
    return made


def run(accounts: Accounts, who: Identity, tokens: int) -> None:
    """A request from its beginning to its end."""
    made = call(who, tokens)
    accounts.of(who)
    accounts.admit(made)
    accounts.settle(made)


# ── which limits ──


def test_limits_are_found_by_name_then_by_group_then_generally() -> None:
    limits = parse(
        {
            "limits": {
                "running": 4,
                "held": 9,
                "identities": {"uid:7": {"running": 1}, "group:staff": {"held": 0}, "group:all": {"running": 3}},
            }
        }
    ).limits
    assert limits.of("uid:7", ["staff"]) == Allowance(running=1, held=9), "what it leaves out is as for everybody"
    assert limits.of("uid:8", ["all", "staff"]) == Allowance(running=4, held=0), "the first that is written"
    assert limits.of("uid:8", ["all"]).running == 3
    assert limits.of("uid:8", ["group:all", "uid:7"]) is limits
    assert limits.of("key:staff") is limits
    assert limits.know_groups
    assert not Limits().know_groups


@pytest.mark.parametrize(
    "name", ["ci", "uid:x", "uid:", "key:", "key:a b", "group:", "group:a b", "10.0.0.1", "KEY:ci"]
)
def test_an_identity_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="expected uid:N, group:NAME, key:NAME"):
        parse({"limits": {"identities": {name: {}}}})


@pytest.mark.parametrize(
    ("table", "said"), [({"runing": 1}, "did you mean 'running'"), ({"held": -1}, "small"), (3, "table")]
)
def test_what_is_wrong_in_its_table_is_told_with_its_place(table: object, said: str) -> None:
    with pytest.raises(ConfigError, match=r"limits\.identities\.key:ci.*" + said):
        parse({"limits": {"identities": {"key:ci": table}}})


def test_a_user_s_groups_are_those_of_this_machine() -> None:
    user = pwd.getpwuid(os.getuid())
    group = grp.getgrgid(user.pw_gid).gr_name
    limits = Limits(identities={f"group:{group}": Allowance(running=1)})
    mine = Identity(f"uid:{user.pw_uid}", user.pw_uid)
    assert allowance(limits, mine).running == 1
    assert allowance(limits, Identity("uid:4294967294", 4294967294)).running == 0, "nobody is in no group"
    assert allowance(limits, Identity("key:x")).running == 0


# ── tokens a minute ──


def test_tokens_are_used_up_and_come_back() -> None:
    clock = Clock()
    accounts = Accounts(Limits(tokens_per_minute=60), clock)
    run(accounts, CI, 59)
    run(accounts, CI, 31)  # one is left: an answer is not cut
    with pytest.raises(TooMany) as caught:
        run(accounts, CI, 1)
    assert caught.value.retry_after_s == 31
    run(accounts, Identity("key:other"), 1)
    clock.now += 30
    with pytest.raises(TooMany):
        run(accounts, CI, 1)
    clock.now += 1
    run(accounts, CI, 1)
    (ours, other) = accounts.usage()
    assert (ours.who, ours.requests, ours.refused, ours.tokens) == ("key:ci", 3, 2, 91)
    assert (other.who, other.requests, other.refused, other.tokens) == ("key:other", 1, 0, 1)


def test_an_answer_counts_while_it_runs() -> None:
    accounts = Accounts(Limits(tokens_per_minute=60), Clock())
    accounts.admit(running := call(CI, 10))
    run(accounts, CI, 0)
    assert running.answer is not None
    running.answer = Answer(61)
    with pytest.raises(TooMany):
        run(accounts, CI, 0)
    assert accounts.usage()[0].running == 1
    accounts.settle(running)
    assert accounts.usage()[0].tokens == 61
    with pytest.raises(TooMany):
        run(accounts, CI, 0)


def test_whoever_waits_long_has_no_more_than_a_minute_s() -> None:
    clock = Clock()
    accounts = Accounts(Limits(tokens_per_minute=60), clock)
    run(accounts, CI, 0)
    clock.now += 1e6
    run(accounts, CI, 60)
    with pytest.raises(TooMany):
        run(accounts, CI, 1)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500)), max_size=50))
def test_over_any_time_no_more_is_begun_than_the_rate_allows(steps: list[tuple[float, int]]) -> None:
    """A leaky bucket: what was had before a request is let in is less than what has flowed in, and one minute's."""
    clock = Clock()
    accounts, had, began = Accounts(Limits(tokens_per_minute=60), clock), 0, clock.now
    accounts.of(CI)
    for pause_s, tokens in steps:
        clock.now += pause_s
        try:
            run(accounts, CI, tokens)
        except TooMany as error:
            clock.now += max(1, error.retry_after_s or 0)
            run(accounts, CI, tokens)  # as it was told
        assert had < 60 + (clock.now - began) + 1e-6
        had += tokens


def test_other_limits_hold_at_once() -> None:
    accounts = Accounts(Limits())
    run(accounts, CI, 10**6)
    accounts.change(Limits(running=3, tokens_per_minute=60))
    assert accounts.of(CI).allowed.running == accounts.named("key:ci").allowed.running == 3
    run(accounts, CI, 60)  # what was had before there was a limit is not held against anybody
    with pytest.raises(TooMany):
        run(accounts, CI, 1)
    accounts.change(Limits())
    run(accounts, CI, 1)
    assert accounts.usage()[0].tokens == 10**6 + 61
