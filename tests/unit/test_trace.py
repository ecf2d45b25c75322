"""W3C Trace Context: what is a trace, what is none, and that nothing else ever gets through."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.trace import STATE_CHARACTERS, STATE_MEMBERS, Trace, begin, read

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{ID}-{SPAN}-01"


@pytest.mark.parametrize("parent", [PARENT, f"00-{ID}-{SPAN}-00", f"00-{ID}-{SPAN}-ff", f"00-{'0' * 31}1-{SPAN}-01"])
def test_a_trace(parent: str) -> None:
    found = read([parent], [])
    assert found is not None
    assert found.headers == {"traceparent": parent}
    assert found.id == parent[3:35]


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        [PARENT, PARENT],
        [PARENT.upper()],
        [f" {PARENT}"],
        [f"{PARENT}\n"],
        [f"{PARENT}-x"],
        [f"01-{ID}-{SPAN}-01"],
        [f"ff-{ID}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{ID}-{'0' * 16}-01"],
        [f"00-{ID[1:]}-{SPAN}-01"],
        [f"00-{ID}-{SPAN}-1"],
        [f"00-{ID}-{SPAN}"],
        [f"00-{ID[:-1]}g-{SPAN}-01"],
        [f"00-{ID[:-1]}٣-{SPAN}-01"],
    ],
)
def test_what_is_none(parents: list[str]) -> None:
    assert read(parents, ["a=1"]) is None


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([], ""),
        ([""], ""),
        (["a=1"], "a=1"),
        (["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
        (["a=1 ,\t b=2,,"], "a=1,b=2"),
        (["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (["fw529a3039@dt=FfUWmTjB/x y"], "fw529a3039@dt=FfUWmTjB/x y"),
        (["0a@b=1"], "0a@b=1"),
        (["0a=1"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a="], ""),
        (["a=1=2"], ""),
        (["a=1,a=2"], ""),
        (["a=1", "a=2"], ""),
        (["a=é"], ""),
        (["a=1\r\nx: y"], ""),
        ([f"{'a' * 256}=1"], f"{'a' * 256}=1"),
        ([f"{'a' * 257}=1"], ""),
        ([f"a={'1' * 256}"], f"a={'1' * 256}"),
        ([f"a={'1' * 257}"], ""),
        ([",".join(f"k{number}=1" for number in range(STATE_MEMBERS))], ",".join(f"k{n}=1" for n in range(32))),
        ([",".join(f"k{number}=1" for number in range(STATE_MEMBERS + 1))], ""),
        ([f"a={'1' * 254},b={'1' * 254}"], ""),
    ],
)
def test_what_belongs_to_the_trace(states: list[str], kept: str) -> None:
    assert read([PARENT], states) == Trace(ID, PARENT, kept)


@given(st.lists(st.text(max_size=80) | st.just(PARENT), max_size=2), st.lists(st.text()))
def test_nothing_else_gets_through(parents: list[str], states: list[str]) -> None:
    found = read(parents, states)
    if found is not None:
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", found.parent)
        assert re.fullmatch("[ -~]*", found.state)
        assert len(found.state) <= STATE_CHARACTERS


def test_one_that_is_begun_is_one() -> None:
    one, other = begin(), begin()
    assert read([one.parent], []) == one
    assert one.id != other.id
    assert one.parent.endswith("-01"), "or nobody would record it"
