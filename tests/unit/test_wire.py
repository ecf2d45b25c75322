"""The JSON of both sides: what the simple door reads, what a status says, and how an error looks."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmd import errors
from vllmd.errors import EngineError, RequestError, VllmdError, outcome_of
from vllmd.statuses import ModelStatus, PhaseSpan, Status, model_status
from vllmd.wire import PromptRequest, dumps, error_body, read_prompt, read_workflow_run, to_json

HI = PromptRequest(prompt="hi")


def mistake_in(body: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_prompt(body)
    return caught.value


# ── the simple door's request ──


def test_a_prompt_is_enough() -> None:
    assert read_prompt({"prompt": "hi"}) == HI
    assert PromptRequest("hi", None, None, None, None, None, None, None, stream=True) == HI
    assert HI.messages() == [{"role": "user", "content": "hi"}]


def test_everything_that_can_be_said() -> None:
    body = {
        "prompt": "hi",
        "system": "be brief",
        "model": "m",
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 1,
        "stop": ["a", "b"],
        "seed": -7,
        "stream": False,
    }
    assert set(body) == {each.name for each in fields(PromptRequest)}
    request = read_prompt(body)
    assert request == PromptRequest("hi", "be brief", "m", 0.0, 1.0, 1, ("a", "b"), -7, False)
    assert request.messages() == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_null_is_as_good_as_nothing() -> None:
    everything = dict.fromkeys((each.name for each in fields(PromptRequest)), None)
    assert read_prompt({**everything, "prompt": "hi"}) == HI


def test_stop_is_a_string_or_a_list() -> None:
    assert read_prompt({"prompt": "hi", "stop": "END"}).stop == ("END",)
    assert read_prompt({"prompt": "hi", "stop": ["END", "\n"]}).stop == ("END", "\n")
    assert read_prompt({"prompt": "hi", "stop": []}).stop == ()


def test_an_empty_system_prompt_is_one() -> None:
    assert read_prompt({"prompt": "hi", "system": ""}).messages()[0] == {"role": "system", "content": ""}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": 3}, "prompt: expected a string, found 3"),
        ({"prompt": ["hi"]}, "prompt: expected a string, found ['hi']"),
        ({"prompt": ""}, "prompt: it is empty"),
        ({"prompt": " \n"}, "prompt: it is empty"),
        ({"prompt": None}, "prompt: missing"),
        ({"system": 3}, "system: expected a string, found 3"),
        ({"model": 3}, "model: expected a string, found 3"),
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"temperature": True}, "temperature: expected a number, found True"),
        ({"temperature": float("nan")}, "temperature: expected a number, found nan"),
        ({"temperature": 2.5}, "temperature: 2.5 is too large, the most is 2"),
        ({"temperature": -0.1}, "temperature: -0.1 is too small, the least is 0"),
        ({"top_p": 1.1}, "top_p: 1.1 is too large, the most is 1"),
        ({"max_tokens": 0}, "max_tokens: 0 is too small, the least is 1"),
        ({"max_tokens": 1.5}, "max_tokens: expected a whole number, found 1.5"),
        ({"max_tokens": True}, "max_tokens: expected a whole number, found True"),
        ({"stop": 3}, "stop: expected a list of strings, found 3"),
        ({"stop": ["a", 3]}, "stop: expected a list of strings, found ['a', 3]"),
        ({"seed": "x"}, "seed: expected a whole number, found 'x'"),
        ({"stream": "no"}, "stream: expected true or false, found 'no'"),
        ({"stream": 0}, "stream: expected true or false, found 0"),
        ({"temprature": 1}, "temprature: unknown key (did you mean 'temperature'?)"),
        ({"zzz": 1}, "zzz: unknown key"),
    ],
)
def test_a_mistake_names_its_field(wrong: Mapping[str, Any], message: str) -> None:
    (field,) = wrong
    for mistake in (mistake_in({"prompt": "hi", **wrong}), _in_envelope({"prompt": "hi", **wrong})):
        assert (mistake.message, mistake.param) == (message, field)
        assert outcome_of(mistake).status == 400


def _in_envelope(body: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_workflow_run({"input": body})
    return caught.value


def test_a_missing_prompt_is_told_with_an_example() -> None:
    mistake = mistake_in({})
    assert (mistake.message, mistake.param) == ("prompt: missing", "prompt")
    assert "{" in mistake.hint


@pytest.mark.parametrize("body", [None, [], "hi", 3, True, [{"prompt": "hi"}]])
def test_what_is_no_object(body: object) -> None:
    assert mistake_in(body).message == "the body is not a JSON object"
    in_envelope = _in_envelope(body)
    assert (in_envelope.message, in_envelope.param) == ("input: expected an object", "input")


@pytest.mark.parametrize("body", [None, [], {}, "input", {"prompt": "hi"}])
def test_an_envelope_without_input(body: object) -> None:
    with pytest.raises(RequestError, match="input: missing") as caught:
        read_workflow_run(body)
    assert caught.value.param == "input"


def test_the_envelope_of_model_compose() -> None:
    envelope = {"input": {"prompt": "hi"}, "output_only": True, "wait_for_completion": True, "workflow_id": "x"}
    assert read_workflow_run(envelope) == HI


def test_an_unknown_key_of_the_envelope_is_named() -> None:
    with pytest.raises(RequestError) as caught:
        read_workflow_run({"input": {"prompt": "hi"}, "outputonly": True})
    assert (caught.value.message, caught.value.param) == ("outputonly: unknown key", "outputonly")
    assert "output_only" in caught.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([each.name for each in fields(PromptRequest)]) | st.text(max_size=5)
BODIES = JSON | st.dictionaries(KEYS, JSON, max_size=5)
ENVELOPES = BODIES | st.dictionaries(st.sampled_from(["input", "output_only"]) | st.text(max_size=5), BODIES)


@given(BODIES, ENVELOPES)
@example({"prompt": "hi", "temperature": 10**400}, {"input": {"prompt": "hi", "top_p": -(10**400)}})
def test_whatever_is_sent_is_a_request_or_a_request_error(body: object, envelope: object) -> None:
    for read, sent in ((read_prompt, body), (read_workflow_run, envelope)):
        try:
            request = read(sent)
        except RequestError as error:
            request = None
            told = json.loads(dumps(error_body(error)))["error"]
        assert (request is None and told["message"]) or (isinstance(request, PromptRequest) and request.prompt.strip())


# ── status ──

LINE = st.text(max_size=10)
NUMBER = st.integers(0, 10**6)
MODEL_STATUSES = st.builds(
    ModelStatus,
    name=LINE,
    model=LINE,
    state=LINE,
    default=st.booleans(),
    phase=st.none() | LINE,
    percent=st.none() | st.integers(0, 100),
    since=st.floats(0, 1e10),
    pid=st.none() | NUMBER,
    generation=NUMBER,
    restarts=NUMBER,
    running=NUMBER,
    held=NUMBER,
    cause=LINE,
    reason=LINE,
    hint=LINE,
    phases=st.lists(st.builds(PhaseSpan, phase=LINE, took_s=st.none() | st.floats(0, 1e6)), max_size=3).map(tuple),
    kv_cache_usage=st.none() | st.floats(0, 1),
    load=LINE,
    on_demand=st.booleans(),
    used_at=st.none() | st.floats(0, 1e10),
    claim_bytes=st.none() | NUMBER,
)
STATUSES = st.builds(
    Status,
    version=LINE,
    state=LINE,
    model=LINE,
    since=st.floats(0, 1e10),
    addresses=st.lists(LINE, max_size=2).map(tuple),
    models=st.lists(MODEL_STATUSES, max_size=3).map(tuple),
)


@given(STATUSES)
def test_a_status_survives_the_wire(status: Status) -> None:
    assert Status.from_json(json.loads(dumps(to_json(status)))) == status


@given(MODEL_STATUSES)
def test_a_models_status_survives_the_wire(status: ModelStatus) -> None:
    assert model_status(json.loads(dumps(to_json(status)))) == status


def test_a_newer_daemon_is_understood() -> None:
    old = Status("1", "ready", "m", 1.0, (), (ModelStatus("m"),))
    table = to_json(old)
    table["models"][0]["mood"] = "good"
    assert Status.from_json({**table, "weather": {"sunny": True}}) == old
    assert model_status({"name": "m", "mood": "good"}) == ModelStatus("m")


@pytest.mark.parametrize(
    ("change", "summary", "sentence"),
    [
        ({}, "stopped", "stopped"),
        ({"state": "ready"}, "ready", "ready"),
        ({"state": "starting"}, "starting", "starting, 41 s"),
        ({"state": "starting", "phase": "compiling"}, "starting, compiling", "starting, compiling, 41 s"),
        (
            {"state": "starting", "phase": "loading weights", "percent": 43},
            "starting, loading weights 43 %",
            "starting, loading weights 43 %, 41 s",
        ),
        (
            {"state": "starting", "phase": "loading weights", "percent": 0},
            "starting, loading weights 0 %",
            "starting, loading weights 0 %, 41 s",
        ),
        ({"state": "stopping", "phase": "loading weights"}, "stopping", "stopping, 41 s"),
        ({"state": "unhealthy"}, "unhealthy", "unhealthy, 41 s"),
        ({"state": "backoff", "reason": "it crashed"}, "backoff: it crashed", "backoff: it crashed, 41 s"),
        ({"state": "ready", "reason": "it crashed"}, "ready", "ready"),
        ({"state": "failed", "reason": "no weights"}, "failed: no weights", "failed: no weights"),
        ({"on_demand": True}, "not loaded, a request loads it", "not loaded, a request loads it"),
        ({"state": "dozing", "on_demand": True}, "falling asleep", "falling asleep, 41 s"),
        ({"state": "asleep", "on_demand": True}, "asleep", "asleep"),
        ({"state": "starting", "phase": "waking up"}, "starting, waking up", "starting, waking up, 41 s"),
    ],
)
def test_a_status_in_words(change: Mapping[str, Any], summary: str, sentence: str) -> None:
    status = replace(ModelStatus("m", since=1000.0), **change)
    assert (status.summary, status.sentence(now=1041.4)) == (summary, sentence)


@pytest.mark.parametrize(
    ("change", "is_available"),
    [
        ({"state": "ready"}, True),
        ({"state": "asleep", "on_demand": True}, True),
        ({"state": "asleep"}, False),
        ({"on_demand": True}, True),
        *(({"state": state, "on_demand": True}, True) for state in ("stopping", "dozing", "starting")),
        *(({"state": state}, False) for state in ("stopped", "stopping", "dozing", "starting")),
        *(({"state": state, "on_demand": True}, False) for state in ("unhealthy", "backoff", "failed")),
    ],
)
def test_what_a_request_brings_in_is_as_good_as_ready(change: Mapping[str, Any], is_available: bool) -> None:
    assert replace(ModelStatus("m"), **change).is_available is is_available


def test_a_status_that_says_nothing() -> None:
    nothing: dict[str, Any] = {
        "default": False,
        "phase": None,
        "percent": None,
        "since": 0.0,
        "pid": None,
        "state": "stopped",
        "load": "start",
        "on_demand": False,
    }
    nothing |= dict.fromkeys(("eta_s", "tokens_per_s", "engine_running", "engine_waiting", "kv_cache_usage"))
    nothing |= dict.fromkeys(("used_at", "claim_bytes"))
    nothing |= dict.fromkeys(("generation", "restarts", "running", "held", "places"), 0) | {"phases": ()}
    nothing |= dict.fromkeys(("model", "cause", "reason", "hint"), "")
    assert to_json(ModelStatus("m")) == {"name": "m", **nothing}


@pytest.mark.parametrize(
    ("eta_s", "words"),
    [
        (0.0, "a few seconds left"),
        (4.9, "a few seconds left"),
        (38.0, "about 40 s left"),
        (89.0, "about 90 s left"),
        (200.0, "about 3 min left"),
    ],
)
def test_an_estimate_takes_the_place_of_the_age(eta_s: float, words: str) -> None:
    status = ModelStatus("m", state="starting", phase="loading weights", percent=43, eta_s=eta_s, since=1000.0)
    assert status.sentence(now=1041.0) == f"starting, loading weights 43 %, {words}"


def test_a_clock_that_was_set_back_does_not_show() -> None:
    assert ModelStatus("m", state="stopping", since=1000.0).sentence(now=900.0) == "stopping, 0 s"


# ── errors ──

CONCRETE = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, VllmdError) and each is not errors.ConfigError
]


@pytest.mark.parametrize("kind", CONCRETE)
def test_every_error_has_a_body_as_openais_clients_read_it(kind: type[VllmdError]) -> None:
    error = kind("it broke", "mend it")
    outcome = outcome_of(error)
    assert error_body(error) == {
        "error": {
            "message": "it broke",
            "type": outcome.type,
            "code": outcome.code,
            "param": None,
            "source": "engine" if issubclass(kind, EngineError) else "vllmd",
            "hint": "mend it",
        }
    }


def test_a_config_error_tells_all_its_problems() -> None:
    body = error_body(errors.ConfigError(["a: wrong", "b: wrong"]))["error"]
    assert (body["message"], body["code"]) == ("a: wrong\nb: wrong", "config_error")


def test_nobody_gets_a_megabyte_back() -> None:
    megabyte = "x" * 1_000_000
    body = error_body(RequestError(megabyte, param=megabyte))["error"]
    assert 100 < len(body["message"]) < 1000
    assert 100 < len(body["param"]) < 1000


def test_many_mistakes_keep_nobody_busy() -> None:
    assert mistake_in({f"key{n}": n for n in range(100_000)}).param == "key0"


def test_a_request_error_names_its_field() -> None:
    assert error_body(RequestError("stop: wrong", param="stop"))["error"]["param"] == "stop"


# ── JSON ──


@given(JSON)
def test_json_can_always_be_sent(value: object) -> None:
    text = dumps(value)
    assert json.dumps(json.loads(text)) == json.dumps(value)
    assert text.encode()


def test_text_stays_readable_where_it_can() -> None:
    assert dumps({"a": "É 👋"}) == '{"a": "É 👋"}'
    assert dumps("É \ud83d") == '"\\u00c9 \\ud83d"'
