"""Every stream has exactly one ending: a finish, `length`, or an error event that says who failed (promise 4)."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from asking import Door, Event, Exchange
from daemons import Daemon, running

CHAT = "/v1/chat/completions"
SIMPLE = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
ROUTES: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {**HELLO, "max_tokens": 64},
    "/v1/responses": {"input": "hello"},
    SIMPLE: {"prompt": "hello"},
}
FINISHES = ("[DONE]", "message_stop", "response.completed", "response.incomplete", "done")
UNFINISHED = "the engine ended its answer without finishing it"
CLOSED = "the engine closed the connection in the middle of its answer"
STOPPED = "the engine was stopped before the answer was complete"
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
QUEUED = "The number of queued requests has reached its limit"
MESSAGES = {
    "abort": STOPPED,
    "error:500": DEAD,
    "error:503": QUEUED,
    "cut": CLOSED,
    "cut-inside": CLOSED,
    "eof": UNFINISHED,
}
PACE: dict[str, Any] = {"tokens_per_s": 25}
"""So that something is out before a fault comes, on a busy machine too; else the request would be sent again."""

ABORTED_RESPONSE = "on /v1/responses vLLM itself calls an aborted answer completed (responses/serving.py)"


def is_finish(event: Event) -> bool:
    return event.data in FINISHES or event.name in FINISHES


def is_error(event: Event) -> bool:
    return event.name == "error" or (event.data or "").startswith('{"error"')


def the_error(path: str, event: Event) -> dict[str, Any]:
    """The error of an event, in the dialect of its route."""
    table: dict[str, Any] = event.json()
    if path == "/v1/responses":
        assert event.name == table["type"] == "error"
        return table
    if path == "/v1/messages":
        assert event.name == table["type"] == "error"
    else:
        assert event.name == ("error" if path == SIMPLE else "message")
        assert table.keys() == {"error"}
    error: dict[str, Any] = table["error"]
    return error


def assert_broken(path: str, answer: Exchange, message: str, tokens: int) -> None:
    """The stream held so many tokens, then one error, and no finish; and HTTP was not ended in good order."""
    assert answer.status == 200
    assert answer.cut
    assert answer.body.endswith(b"\n\n"), "an event was cut"
    events = [each for each in answer.events if each.comment is None]
    assert [each for each in events if is_error(each)] == events[-1:]
    assert not [each for each in events if is_finish(each)]
    assert f"tok{tokens - 1}".encode() in answer.body
    assert f"tok{tokens}".encode() not in answer.body
    error = the_error(path, events[-1])
    assert message in error["message"]
    assert error["source"] == "engine"
    assert error["code"] == "engine_error"


Routes = dict[str, dict[str, Any]]


async def ask_all(door: Door, stream: bool = True, routes: Routes = ROUTES) -> dict[str, Exchange]:
    """An answer of every route, all asked for at once."""
    asked = (door.ask(path, {**body, "stream": stream}) for path, body in routes.items())
    return dict(zip(routes, await asyncio.gather(*asked), strict=True))


# ── in the middle of an answer ──


@pytest.mark.parametrize("fault", MESSAGES)
@pytest.mark.parametrize("path", ROUTES)
async def test_a_stream_that_breaks_ends_in_one_error(
    daemon: Daemon, path: str, fault: str, request: pytest.FixtureRequest
) -> None:
    if (path, fault) == ("/v1/responses", "abort"):
        request.applymarker(pytest.mark.xfail(reason=ABORTED_RESPONSE, strict=True))
    daemon.control(fault=fault, fault_after=3, **PACE)
    answer = await daemon.unix.ask(path, {**ROUTES[path], "stream": True})
    assert_broken(path, answer, MESSAGES[fault], 3)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("fault", ["abort", "error:500", "cut-inside"])
async def test_a_stream_breaks_cleanly_however_its_bytes_arrive(daemon: Daemon, fault: str, seed: int) -> None:
    daemon.control(fault=fault, fault_after=seed, chop=seed, **PACE)
    for path in (CHAT, SIMPLE):
        answer = await daemon.tcp.ask(path, {**ROUTES[path], "stream": True})
        assert_broken(path, answer, MESSAGES[fault], seed)


async def test_everything_before_a_fault_in_the_same_packet_is_passed_on(daemon: Daemon) -> None:
    daemon.control(fault="abort", fault_after=200, tokens=300)
    assert_broken(CHAT, await daemon.unix.ask(CHAT, {**HELLO, "stream": True}), STOPPED, 200)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", SIMPLE])
@pytest.mark.parametrize("fault", ["abort", "error:500", "cut", "eof"])
def test_curl_fails_when_the_stream_does(daemon: Daemon, path: str, fault: str) -> None:
    body = json.dumps({**ROUTES[path], "stream": True})
    for where in (["--unix-socket", str(daemon.socket), f"http://localhost{path}"], [f"{daemon.url}{path}"]):
        daemon.control(fault=fault, fault_after=3, **PACE)
        curl = subprocess.run(["curl", "-sSN", *where, "-d", body], capture_output=True, timeout=60, check=False)
        assert curl.returncode == 18, curl  # "transfer closed with outstanding read data remaining"
        assert b"tok2" in curl.stdout
        assert b"[DONE]" not in curl.stdout
        assert b"error" in curl.stdout
        daemon.control()
        curl = subprocess.run(["curl", "-sSN", *where, "-d", body], capture_output=True, timeout=60, check=False)
        assert curl.returncode == 0


async def test_nonsense_in_a_stream_is_the_engine_s_error_at_the_simple_door(daemon: Daemon) -> None:
    daemon.control(fault="malformed", fault_after=3, **PACE)
    answer = await daemon.unix.ask(SIMPLE, {"prompt": "x"})
    assert_broken(SIMPLE, answer, "the engine", 3)


async def test_nonsense_passes_where_bytes_are_not_read(daemon: Daemon) -> None:
    daemon.control(fault="malformed", fault_after=3, **PACE)
    answer = await daemon.unix.ask(CHAT, {**HELLO, "stream": True})
    assert answer.whole
    assert answer.body.endswith(b'data: {"id":\n\ndata: [DONE]\n\n')


# ── before the first event ──


STALL_S, KEEPALIVE_S = 0.7, 0.15


@pytest.fixture(scope="module")
def impatient() -> Iterator[Daemon]:
    """A daemon that does not wait long for a silent engine."""
    relay, sse = {"stall_s": STALL_S, "drain_s": 1}, {"keepalive_s": KEEPALIVE_S}
    args = {"max-model-len": 100_000}
    with running(Daemon(relay=relay, sse=sse, replay={"limit": 0}, args=args)) as daemon:
        yield daemon


@pytest.mark.parametrize(("code", "message"), [(400, "Grammar error"), (503, QUEUED), (500, DEAD)])
async def test_an_error_that_comes_first_is_an_http_status(impatient: Daemon, code: int, message: str) -> None:
    impatient.control(fault=f"error:{code}")
    # Anthropic's dialect does not say which status its error would have had: it is 500.
    routes = {path: body for path, body in ROUTES.items() if code == 500 or path != "/v1/messages"}
    for path, answer in (await ask_all(impatient.unix, routes=routes)).items():
        assert answer.status == code, path
        assert answer.whole
        assert message in json.dumps(answer.error)
        assert answer.header("content-type").startswith("application/json")
        assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("code", [400, 500, 503])
async def test_an_error_of_http_stays_one(impatient: Daemon, code: int) -> None:
    impatient.control(fault=f"http:{code}")
    streamed, whole = await asyncio.gather(ask_all(impatient.unix), ask_all(impatient.unix, stream=False))
    for path, answer in [*streamed.items(), *whole.items()]:
        assert answer.status == code, path
        assert answer.whole
        assert answer.error["code"] == code


@pytest.mark.parametrize("fault", ["abort", "cut", "cut-inside", "eof"])
async def test_an_answer_that_never_begins_is_a_502(impatient: Daemon, fault: str) -> None:
    impatient.control(fault=fault)
    streamed, whole = await asyncio.gather(ask_all(impatient.unix), ask_all(impatient.unix, stream=False))
    for path, answer in [*streamed.items(), *whole.items()]:
        if path == "/v1/responses" and fault == "abort":
            continue  # ABORTED_RESPONSE
        if path == "/v1/messages" and fault == "abort" and answer is streamed[path]:
            continue  # in this dialect an aborted stream does begin
        if fault == "eof" and answer is whole[path]:
            continue  # there is no such thing
        assert answer.status == 502, (path, answer.body)
        assert answer.error["source"] == "engine"
        assert answer.error["code"] == "engine_error"


# ── silence ──


async def test_silence_past_stall_s_ends_in_one_error(impatient: Daemon) -> None:
    impatient.control(fault="stall", fault_after=3, **PACE)
    for path, answer in (await ask_all(impatient.unix)).items():
        assert_broken(path, answer, f"the engine was silent for {STALL_S:g} s", 3)
        assert [each for each in answer.events if each.comment], path


@pytest.mark.parametrize("fault", ["stall", "hang"])
async def test_silence_before_the_first_event_ends_in_one_error_too(impatient: Daemon, fault: str) -> None:
    impatient.control(fault=fault)
    for path, answer in (await ask_all(impatient.unix)).items():
        events = [each for each in answer.events if each.comment is None]
        assert answer.cut
        assert len(events) == 1, answer.body
        assert "silent" in the_error(path, events[0])["message"]


async def test_a_long_prefill_is_bridged_by_comments(impatient: Daemon) -> None:
    impatient.control(prefill_s=0.5)
    for path, answer in (await ask_all(impatient.unix)).items():
        assert answer.whole, path
        assert answer.events[0].comment
        assert len([each for each in answer.events if is_finish(each)]) == 1
        assert not [each for each in answer.events if is_error(each)]


async def test_a_comment_never_lands_inside_an_event(impatient: Daemon) -> None:
    impatient.control(tokens=6, tokens_per_s=5, chop=7)
    for path, answer in (await ask_all(impatient.tcp)).items():
        assert answer.whole, path
        assert len([each for each in answer.events if each.comment]) >= 3
        assert all(each.data is None for each in answer.events if each.comment)
        said = b"".join((f"tok{n}".encode() in answer.body and b".") or b"!" for n in range(6))
        assert said == b"......"


async def test_a_client_that_reads_slowly_is_not_told_that_the_engine_was_silent(impatient: Daemon) -> None:
    tokens = 40_000
    impatient.control(tokens=tokens)

    async def read_slowly(path: str) -> Exchange:
        async with impatient.unix.stream(path, {**ROUTES[path], "max_tokens": tokens, "stream": True}) as exchange:
            await exchange.until(b"tok9")
            await asyncio.sleep(2.5 * STALL_S)  # what is tested is that this time passes without a consequence
            return await exchange.end()

    for answer in await asyncio.gather(read_slowly(CHAT), read_slowly(SIMPLE)):
        assert answer.whole, answer.body[-500:]
        assert f"tok{tokens - 1}".encode() in answer.body


async def test_the_engine_s_own_keep_alives_are_a_sign_of_life(impatient: Daemon) -> None:
    impatient.control(prefill_s=2 * STALL_S, keep_alive_s=0.1)
    for path, answer in (await ask_all(impatient.unix)).items():
        assert answer.whole, path
