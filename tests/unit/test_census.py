"""How many connections there may be, and what is kept of those for whom there is no room."""

import logging
import os

import pytest

from vllmd.errors import Overloaded, TooMany
from vllmd.limits import Limits
from vllmd.server.access import Identity
from vllmd.server.census import OWNERS, Census


def enter(census: Census, who: Identity) -> None:
    assert census.refusal(who) is None
    census.entered(who)


def test_one_identity_gets_half_of_the_room() -> None:
    census, one = Census(Limits(), most=4), Identity("192.0.2.1")
    for _ in range(2):
        enter(census, one)
    assert isinstance(census.refusal(one), TooMany)
    assert census.refusal(Identity("192.0.2.2")) is None
    census.left(one)
    assert census.refusal(one) is None


def test_strangers_who_find_no_room_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    census, inside = Census(Limits(), most=4), [Identity(f"192.0.2.{number}") for number in range(4)]
    for each in inside:
        enter(census, each)
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            assert isinstance(census.refusal(Identity(f"2001:db8::{number:x}")), Overloaded)
        assert len(caplog.records) == 1, "one line, however many they are"
        assert len(census._told) == 1
        for each in inside[:2]:
            census.left(each)
        for each in inside[:2]:
            enter(census, each)
        assert census.refusal(Identity("2001:db8::1"))
        assert len(caplog.records) == 2, "it was not full in between"


@pytest.mark.parametrize("uid", [0, os.getuid()])
def test_whoever_owns_the_daemon_gets_into_a_house_that_is_full(uid: int) -> None:
    census, owner = Census(Limits(), most=2), Identity(f"uid:{uid}", uid)
    for number in range(2):
        enter(census, Identity(f"192.0.2.{number}"))
    assert census.refusal(Identity("uid:12345", 12345))
    for _ in range(OWNERS):
        enter(census, owner)
    assert isinstance(census.refusal(owner), Overloaded), "descriptors have an end"
