"""Who goes on with what: records that can be read, engines that suit, and what systemd says that it does."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.kept import Kept, Record, decode, encode
from vllmd.engine.plan import Plan
from vllmd.engine.succession import assign, is_restarting, own_unit
from vllmd.engine.tether import Tether
from vllmd.passed import Passed, passed
from vllmd.sections import EnvironmentSettings, Model, Paths

PLAN = Plan("tiny", Model("models/tiny", args={"a": 1}), EnvironmentSettings(), Paths("/s", "/r", "/c"), {})
RECORD = Record("tiny", 3, PLAN.digest, str(PLAN.directory(3)), guard=1, leader=2, token="t")


class Alive(Tether):
    """A tether of an engine that lives, as far as anybody asks."""

    is_alive = True


@pytest.fixture
def tether() -> Iterator[Tether]:
    with socket.socket(socket.AF_UNIX) as lifeline:
        yield Alive(1, -1, lifeline, -1, "t")


def kept(record: Record | None, tether: Tether | None) -> Kept:
    return Kept("tiny.3", {}, record, tether)


def test_the_engine_of_the_present_plan_is_adopted(tether: Tether) -> None:
    assert kept(RECORD, tether).obstacle({"tiny": PLAN}) == ""
    moving = replace(RECORD, is_moving=True)
    assert kept(moving, tether).obstacle({"tiny": PLAN}) == "it was falling asleep or waking up"
    assert decode(encode(moving)) == moving


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (replace(PLAN, model=replace(PLAN.model, args={"a": 2})), "have changed"),
        (replace(PLAN, model=replace(PLAN.model, env={"A": "2"})), "have changed"),
        (replace(PLAN, model=replace(PLAN.model, model="models/other")), "have changed"),
        (replace(PLAN, environment=EnvironmentSettings("vllm==0.0.1")), "have changed"),
        (replace(PLAN, environment=EnvironmentSettings(path="/elsewhere")), "have changed"),
        (replace(PLAN, paths=Paths("/s", "/r", "/elsewhere")), "have changed"),
        (replace(PLAN, paths=Paths("/s", "/elsewhere", "/c")), "have changed"),
        (None, "is not configured any more"),
    ],
)
def test_that_of_another_plan_is_not(tether: Tether, plan: Plan | None, reason: str) -> None:
    assert reason in kept(RECORD, tether).obstacle({"tiny": plan} if plan else {})


def test_of_two_engines_of_one_model_the_newer_is_adopted(tether: Tether) -> None:
    older = kept(replace(RECORD, generation=2, directory=str(PLAN.directory(2))), tether)
    newer, unreadable = kept(RECORD, tether), kept(None, None)
    assert assign([older, unreadable, newer], {"tiny": PLAN}) == [
        (newer, ""),
        (older, "a newer one serves its model"),
        (unreadable, "what is kept of it was written by another version, or is damaged"),
    ]


def test_a_record_comes_back_as_it_was() -> None:
    assert decode(encode(RECORD)) == RECORD


@pytest.mark.parametrize("wrong", [{"version": 0}, {"version": 2}, {"generation": "3"}, {"token": 1}, {"leader": True}])
def test_a_record_that_says_something_else_is_none(wrong: dict[str, object]) -> None:
    assert decode(encode(replace(RECORD, **wrong))) is None  # type: ignore[arg-type]


@given(st.binary(max_size=100))
def test_what_is_no_record_is_none(data: bytes) -> None:
    assert decode(data) is None


@given(st.integers(0, 300))
def test_a_record_that_was_cut_is_none(size: int) -> None:
    data = encode(RECORD)
    assert decode(data[:size]) == (RECORD if size >= len(data) else None)


@pytest.mark.parametrize(
    ("lines", "restarts"),
    [
        (["125 vllmd.service restart running"], True),
        (["7 other.service stop running", "125 vllmd.service restart waiting"], True),
        (["125 vllmd.service try-restart running"], True),
        (["125 vllmd.service stop running"], False),
        (["125 other.service restart running"], False),
        (["No jobs running."], False),
        ([], False),
    ],
)
def test_what_systemd_says_that_it_does(lines: list[str], restarts: bool) -> None:
    assert is_restarting("vllmd.service", lines) is restarts


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/vllmd.service\n", "vllmd.service"),
        ("12:pids:/x.service\n1:name=systemd:/system.slice/vllmd.service\n0::/\n", "vllmd.service"),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/vllmd.service\n", "vllmd.service"),
        ("0::/system.slice/vllmd.service/engine\n", "vllmd.service"),
        ("0::/init.scope\n", ""),
        ("", ""),
    ],
)
def test_the_own_unit_is_read_from_the_cgroup(cgroups: str, unit: str) -> None:
    assert own_unit(cgroups)[1] == unit


def test_sockets_and_what_was_stored_are_told_apart() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "vllmd.socket:engine.tiny.3.log"}
    row = passed(environ, os.getpid())
    assert row == (Passed(3, "vllmd.socket"), Passed(4, "engine.tiny.3.log"), Passed(5, ""))
    assert [each.is_stored for each in row] == [False, True, False]
    assert passed(environ, os.getpid() + 1) == passed({}, os.getpid()) == ()


def test_the_record_is_where_the_directory_is() -> None:
    assert Path(RECORD.directory).name == "tiny-b5635b.3"
