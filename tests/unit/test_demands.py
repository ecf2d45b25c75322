"""How much one request may ask for, and that what is added to it changes nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd import routes
from vllmd.errors import RequestError
from vllmd.limits import Limits
from vllmd.sections import Model
from vllmd.server.demands import LONGEST, PRIORITISED, SHORT, additions, check, with_additions
from vllmd.server.openai import INFERENCE

CHAT, COMPLETIONS = routes.CHAT_COMPLETIONS, "/v1/completions"
LIMITS = Limits(answers=8, max_tokens=100)


@pytest.mark.parametrize(
    ("path", "table", "param"),
    [
        (CHAT, {"n": 9}, "n"),
        (CHAT, {"n": 10**30}, "n"),
        (CHAT, {"n": 1, "best_of": 9}, "best_of"),
        (COMPLETIONS, {"prompt": ["x"] * 9}, "prompt"),
        (COMPLETIONS, {"prompt": ["x"] * 3, "n": 3}, "n"),
        (COMPLETIONS, {"prompt": [[1, 2]] * 9}, "prompt"),
        (CHAT, {"max_tokens": 101}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 10**400}, "max_completion_tokens"),
        ("/v1/responses", {"max_output_tokens": 101}, "max_output_tokens"),
        ("/v1/messages", {"max_tokens": 101}, "max_tokens"),
        # What pydantic takes for a whole number as well.
        (CHAT, {"n": "9"}, "n"),
        (CHAT, {"n": 9.0}, "n"),
        (CHAT, {"n": " 9.0 "}, "n"),
        (COMPLETIONS, {"prompt": ["x"] * 3, "n": "3"}, "n"),
        (CHAT, {"max_tokens": "1_000"}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 1e300}, "max_completion_tokens"),
        (CHAT, {"max_tokens": "9" * 400}, "max_tokens"),
    ],
)
def test_too_much_is_refused_by_name(path: str, table: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(table, path, LIMITS)
    assert caught.value.param == param
    assert len(caught.value.message) < 100
    assert "administrator" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "table"),
    [
        (CHAT, {"n": 8, "max_tokens": 100}),
        (CHAT, {"prompt": ["x"] * 1000}),
        (COMPLETIONS, {"prompt": ["x"] * 2, "n": 4}),
        (COMPLETIONS, {"prompt": list(range(1000))}),
        (COMPLETIONS, {"prompt": []}),
        (CHAT, {"n": "many", "max_tokens": None, "best_of": True}),
        (CHAT, {"n": -5, "max_tokens": float("nan")}),
        (CHAT, {"n": None}),
        (CHAT, {"n": "nan", "max_tokens": float("-inf")}),
        (CHAT, {"n": "8", "max_tokens": "100"}),
        ("/v1/embeddings", {"input": ["x"] * 1000}),
    ],
)
def test_the_rest_is_the_engine_s_to_judge(path: str, table: dict[str, Any]) -> None:
    check(table, path, LIMITS)
    check(table | {"max_tokens": 10**9}, path, Limits(answers=8))


def test_whoever_says_no_length_gets_the_longest_where_there_is_one() -> None:
    for path, field in LONGEST.items():
        assert additions({}, path, LIMITS, None) == ({} if path in SHORT else {field: 100})
        assert additions({field: None}, path, LIMITS, None) == {field: 100}
        assert additions({field: 5}, path, LIMITS, None) == {}
        assert additions({}, path, Limits(), None) == {}
    assert additions({"max_tokens": 5}, CHAT, LIMITS, None) == {}
    assert additions({}, "/v1/embeddings", LIMITS, None) == {}


def test_where_the_engine_is_briefer_than_the_longest_it_stays_so() -> None:
    assert additions({}, COMPLETIONS, Limits(max_tokens=16), None) == {}
    assert additions({}, COMPLETIONS, Limits(max_tokens=15), None) == {"max_tokens": 15}
    assert additions({"max_tokens": None}, COMPLETIONS, Limits(max_tokens=100), None) == {"max_tokens": 100}


def test_priorities_are_told_only_to_a_scheduler_that_minds_them() -> None:
    for path in INFERENCE:
        assert additions({"priority": -5}, path, Limits(), None) == {}
        told = {"priority": 3} if path in PRIORITISED else {}
        assert additions({}, path, Limits(), 3) == told
        for cheat in (-5, 2, "first", None, True, 0.5, [1]):
            assert additions({"priority": cheat}, path, Limits(), 3) == told
        for humble in (3, 4, 10**6):
            assert additions({"priority": humble}, path, Limits(), 3) == {}


@pytest.mark.parametrize(
    ("args", "whether"),
    [
        ({"scheduling-policy": "priority"}, True),
        ({"scheduling_policy": "priority"}, True),
        ({"--scheduling-policy": "priority"}, True),
        ({"scheduling-policy": "fcfs"}, False),
        ({}, False),
    ],
)
def test_what_the_scheduler_minds_stands_in_the_args(args: dict[str, Any], whether: bool) -> None:
    assert Model("m", args=args).is_prioritised is whether


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text() | st.just("priority"), values, max_size=5),
    st.dictionaries(st.sampled_from(["priority", "max_tokens"]), st.integers(-(2**31), 2**31), max_size=2),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    st.sampled_from(["", " ", "\n\t \r\n"]),
    st.booleans(),
)
def test_additions_change_nothing_else(
    table: dict[str, Any], added: dict[str, int], encoding: str, space: str, ascii: bool
) -> None:
    text = f"{space}{json.dumps(table, ensure_ascii=ascii)[:-1]}{space}}}{space}"
    body = text.encode(encoding, "surrogatepass")
    changed = with_additions(body, added)
    assert json.loads(changed) == json.loads(body) | added
    if not added:
        assert changed == body
    elif encoding == "utf-8":
        assert changed.startswith(body.rstrip()[:-1])
