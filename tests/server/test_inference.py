"""`/v1`: the engine's answer, byte for byte, from whichever door it is asked for."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from asking import Door, Exchange
from daemons import Daemon

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you there"}], "temperature": 0}
ROUTES: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    "/v1/completions": {"prompt": "hello you there", "temperature": 0},
    "/v1/messages": {**HELLO, "max_tokens": 64},
    "/v1/responses": {"input": "hello you there", "temperature": 0},
}
ANOTHER_TIME = re.compile(rb'("created(?:_at)?":)\d+')
"""What differs between two answers to the same request under the same id."""


async def both(
    daemon: Daemon, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[Exchange, Exchange]:
    """The same request through vllmd, and straight to the engine behind its back."""
    asked = {"x-request-id": "the-same-for-both", "content-type": "application/json", **(headers or {})}
    return await daemon.unix.ask(path, body, headers=asked), await daemon.engine.ask(path, body, headers=asked)


def timeless(body: bytes) -> bytes:
    return ANOTHER_TIME.sub(rb"\g<1>0", body)


@pytest.fixture(params=["unix", "tcp"])
def door(request: pytest.FixtureRequest, daemon: Daemon) -> Door:
    return daemon.unix if request.param == "unix" else daemon.tcp


# ── byte for byte ──


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ROUTES)
async def test_an_answer_passes_unchanged(daemon: Daemon, path: str, stream: bool) -> None:
    ours, theirs = await both(daemon, path, {**ROUTES[path], "stream": stream})
    assert (ours.status, theirs.status) == (200, 200)
    assert ours.whole
    assert theirs.whole
    assert b"tok15" in theirs.body
    assert timeless(ours.body) == timeless(theirs.body)
    assert ours.header("content-type") == theirs.header("content-type")


@pytest.mark.parametrize("knobs", [{"chop": seed} for seed in range(1, 6)] + [{"events_per_send": n} for n in (2, 7)])
@pytest.mark.parametrize("path", ROUTES)
async def test_a_stream_passes_however_it_is_cut(daemon: Daemon, path: str, knobs: dict[str, int]) -> None:
    text = 'a "[DONE]", an "error": "abort",\r\n\r\ntwo lines, \u2028 é 漢字 🙂 and data: message_stop'
    daemon.control(text=text, split="bytes", **knobs)
    ours, theirs = await both(daemon, path, {**ROUTES[path], "stream": True})
    assert ours.whole
    assert timeless(ours.body) == timeless(theirs.body)


async def test_the_words_of_an_ending_are_no_ending_in_a_text(daemon: Daemon) -> None:
    text = 'data: [DONE]\n\n{"error": {"message": "no"}} "finish_reason": "abort" event: message_stop'
    daemon.control(text=text, split="chars")
    answer = await daemon.unix.ask(CHAT, {**HELLO, "stream": True})
    said = [each.json()["choices"][0]["delta"]["content"] for each in answer.events[:-1]]
    assert answer.whole
    assert "".join(said) == text
    assert answer.events[-1].data == "[DONE]"


@pytest.mark.parametrize("path", ROUTES)
async def test_an_empty_answer_and_one_cut_by_its_length_are_answers(daemon: Daemon, path: str) -> None:
    daemon.control(tokens=0)
    ours, theirs = await both(daemon, path, {**ROUTES[path], "stream": True})
    assert ours.whole
    assert timeless(ours.body) == timeless(theirs.body)
    daemon.control()
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    ours, theirs = await both(daemon, path, {**ROUTES[path], "stream": True, limit: 3})
    assert ours.whole
    assert timeless(ours.body) == timeless(theirs.body)
    assert b"tok3" not in ours.body


async def test_a_request_reaches_the_engine_as_it_was_sent(daemon: Daemon) -> None:
    body = b'{ "messages" : [{"role":"user","content":"\\u00e9 \\ud83d"}],"max_tokens":7, "n_unknown" : 1.50 }'
    answer = await daemon.unix.ask(CHAT, body, headers={"user-agent": "a test/1", "anthropic-beta": "x"})
    assert answer.status == 200
    (seen,) = daemon.requests()
    assert seen["body"] == json.loads(body)
    assert seen["headers"]["content-length"] == str(len(body))
    assert seen["headers"]["user-agent"] == "a test/1"
    assert seen["headers"]["anthropic-beta"] == "x"
    assert "traceparent" not in seen["headers"], "none is invented"
    assert "accept-encoding" not in seen["headers"], "what passes unread must not be compressed on the way"


async def test_what_the_client_leaves_out_stays_out(daemon: Daemon) -> None:
    await daemon.unix.ask(CHAT, {"messages": HELLO["messages"]})
    await daemon.unix.ask("/v1/completions", {"prompt": "x", "stream": True})
    chat, completion = daemon.requests()
    assert chat["body"] == {"messages": HELLO["messages"]}
    assert completion["body"] == {"prompt": "x", "stream": True}


async def test_a_client_s_secrets_do_not_reach_the_engine(daemon: Daemon) -> None:
    secrets = {"authorization": "Bearer s3cret", "cookie": "session=s3cret", "x-api-key": "s3cret"}
    await daemon.unix.ask(CHAT, HELLO, headers=secrets)
    assert "s3cret" not in json.dumps(daemon.requests())


# ── ids ──


async def test_a_client_s_request_id_is_kept_everywhere(daemon: Daemon, door: Door) -> None:
    answer = await door.ask(CHAT, HELLO, headers={"x-request-id": "mine-42"})
    assert answer.header("x-request-id") == "mine-42"
    assert answer.json()["id"] == "chatcmpl-mine-42"


@pytest.mark.parametrize("bad", ["", "two words", "x" * 129, "a;b", "é"])
async def test_an_id_that_could_break_a_log_line_is_replaced(daemon: Daemon, bad: str) -> None:
    answer = await daemon.unix.ask(CHAT, HELLO, headers={"x-request-id": bad})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.header("x-request-id"))
    assert answer.json()["id"] == f"chatcmpl-{answer.header('x-request-id')}"


# ── traces ──

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_engine_is_told_of_the_trace(daemon: Daemon, door: Door) -> None:
    for path, body in ((CHAT, HELLO), ("/api/prompt", {"prompt": "x"})):
        answer = await door.ask(path, body, headers={"Traceparent": PARENT, "tracestate": "a=1 , b=2"})
        assert answer.status == 200
    seen = [each["headers"] for each in daemon.requests()]
    assert [(each["traceparent"], each["tracestate"]) for each in seen] == [(PARENT, "a=1,b=2")] * 2


@pytest.mark.parametrize("parent", [PARENT.upper(), PARENT.replace("00-", "ff-", 1), "00-ab-cd-01", ""])
async def test_a_trace_that_is_none_is_dropped_and_the_request_served(daemon: Daemon, parent: str) -> None:
    answer = await daemon.unix.ask(CHAT, HELLO, headers={"traceparent": parent, "tracestate": "a=1"})
    assert answer.status == 200
    (seen,) = daemon.requests()
    assert {"traceparent", "tracestate"}.isdisjoint(seen["headers"])


# ── models ──


async def test_the_model_may_be_left_out_or_named(daemon: Daemon, door: Door) -> None:
    for model in ({}, {"model": "tiny"}, {"model": ""}, {"model": None}):
        answer = await door.ask(CHAT, {**HELLO, **model})
        assert answer.status == 200, answer.body
        assert answer.json()["model"] == "tiny"


async def test_an_unknown_model_gets_404_with_the_known_ones(daemon: Daemon, door: Door) -> None:
    for path in (*ROUTES, "/v1/embeddings"):
        answer = await door.ask(path, {**ROUTES.get(path, {"input": "x"}), "model": "tinny"})
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert answer.error["source"] == "vllmd"
        assert "'tinny'" in answer.error["message"]
        assert "tiny" in answer.error["message"] + answer.error["hint"]
    assert not daemon.requests()


async def test_models_are_listed_in_openai_s_shape(daemon: Daemon, door: Door) -> None:
    listed = (await door.ask("/v1/models")).json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == "tiny"
    assert card["object"] == "model"
    assert card["status"] == "ready"
    assert isinstance(card["created"], int)
    assert (await door.ask("/v1/models/tiny")).json() == card
    missing = await door.ask("/v1/models/other")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_every_configured_model_is_listed_and_answers_for_itself(start: Any) -> None:
    some = Daemon()
    both = {"big/one": {**some.tiny(), "default": True}, "small one": some.tiny()}
    some.configure({}, {"models": both})
    some.start()
    try:
        listed = (await some.unix.ask("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["big/one", "small one"]
        some.order("load", "small%20one", wait=True)
        for name in both:
            answer = await some.unix.ask(CHAT, {**HELLO, "model": name})
            assert answer.json()["model"] == name
        assert (await some.unix.ask(CHAT, HELLO)).json()["model"] == "big/one"
        assert (await some.unix.ask("/v1/models/big/one")).json()["id"] == "big/one"
        status, model = some.order("unload", "big%2Fone", wait=True)
        assert (status, model["state"]) == (200, "stopped")
        assert some.model("small one").state == "ready"
    finally:
        some.see_to_its_end()


# ── the other routes ──


async def test_tokenize_and_count_tokens_pass(daemon: Daemon) -> None:
    for path in ("/tokenize", "/v1/messages/count_tokens"):
        ours, theirs = await both(daemon, path, {**HELLO, "prompt": "hello you there"})
        assert ours.status == 200
        assert ours.body == theirs.body


async def test_embeddings_pass_and_so_does_their_absence(daemon: Daemon) -> None:
    ours, theirs = await both(daemon, "/v1/embeddings", {"input": ["a", "b"]})
    assert (ours.status, ours.body) == (404, theirs.body)
    daemon.control(embeddings=1)
    ours, theirs = await both(daemon, "/v1/embeddings", {"input": ["a", "b"]})
    assert ours.status == 200
    assert ours.json()["data"] == theirs.json()["data"]


@pytest.mark.parametrize(
    "path",
    ["/server_info", "/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/v1/load_lora_adapter", "/load"],
)
async def test_the_engine_s_management_routes_are_out_of_reach(daemon: Daemon, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await daemon.unix.ask(path, b"{}", method=method)
        assert answer.status in (404, 405)
        assert answer.error["source"] == "vllmd"


async def test_an_engine_s_refusal_passes_unchanged(daemon: Daemon, door: Door) -> None:
    for wrong in ({"temperature": -1}, {"temperature": "hot"}, {"max_tokens": 99_999}):
        for stream in (True, False):
            ours = await door.ask(CHAT, {**HELLO, **wrong, "stream": stream})
            theirs = await daemon.engine.ask(CHAT, {**HELLO, **wrong, "stream": stream})
            assert (ours.status, ours.body) == (400, theirs.body)
            assert ours.header("content-type").startswith("application/json")


# ── clients that people use ──


@pytest.fixture(params=["unix", "tcp"])
def client(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[openai.OpenAI]:
    transport = httpx2.HTTPTransport(uds=str(daemon.socket)) if request.param == "unix" else None
    with httpx2.Client(transport=transport) as http:
        base = "http://localhost/v1" if request.param == "unix" else f"{daemon.url}/v1"
        yield openai.OpenAI(base_url=base, api_key="none needed", http_client=http, max_retries=0)


def test_openai_s_client_gets_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO["messages"])
    assert answer.choices[0].message.content == " ".join(f"tok{n}" for n in range(16))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens == 16


def test_openai_s_client_gets_a_stream(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO["messages"], stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == " ".join(f"tok{n}" for n in range(16))
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 16


def test_openai_s_client_reads_our_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HELLO["messages"])
    assert missing.value.code == "model_not_found"
    assert missing.value.type == "invalid_request_error"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=HELLO["messages"], temperature=3)
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_s_client_sees_a_broken_stream(daemon: Daemon, client: openai.OpenAI) -> None:
    daemon.control(fault="abort", fault_after=3, tokens_per_s=100)
    stream = client.chat.completions.create(model="tiny", messages=HELLO["messages"], stream=True)
    with pytest.raises(openai.APIError, match="stopped before"):
        list(stream)


def test_openai_s_client_speaks_responses_and_completions(client: openai.OpenAI) -> None:
    text = " ".join(f"tok{n}" for n in range(16))
    assert client.responses.create(model="tiny", input="hello").output_text == text
    assert client.completions.create(model="tiny", prompt="hello").choices[0].text == text


# ── HTTP as people speak it ──


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", [CHAT, "/api/prompt"])
def test_a_client_of_http_1_0_such_as_nginx_is_served(daemon: Daemon, path: str, stream: bool) -> None:
    body = json.dumps({**(HELLO if path == CHAT else {"prompt": "x"}), "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        connection.sendall(
            b"POST %b HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), len(body), body)
        )
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, answer = received.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    assert b"chunked" not in head.lower()
    assert b"tok15" in answer


async def test_one_connection_serves_many_requests(daemon: Daemon, door: Door) -> None:
    reader, writer = await door.connect()
    for number in range(3):
        body = json.dumps(HELLO).encode()
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
        )
        exchange = await Exchange(reader, writer).until(b"tok15")
        assert exchange.whole, number
    await exchange.leave()


async def test_query_and_trailing_headers_do_not_confuse(daemon: Daemon) -> None:
    answer = await daemon.unix.ask(f"{CHAT}?beta=true", HELLO)
    assert answer.status == 200
