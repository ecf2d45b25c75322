"""What clients and administrators get wrong: a true status, the field's name, no traceback; and then life goes on."""

import asyncio
import json
import re
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asking import DEADLINE_S, Exchange, request
from daemons import Daemon

LOOPS = ("uvloop",)

pytestmark = pytest.mark.usefixtures("still_serves")
"""What is wrong with a body does not depend on the event loop."""

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
RUNS = "/api/workflows/runs"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
ERROR_KEYS = {"message", "type", "code", "param", "source", "hint"}
LIMIT = 32 * 1024 * 1024


def assert_refused(answer: Exchange, status: int, code: str, *words: str) -> dict[str, Any]:
    """It is an error of vllmd's in OpenAI's shape, short, and shows no insides."""
    assert answer.status == status, answer.body[:500]
    error: dict[str, Any] = answer.error
    assert error.keys() == ERROR_KEYS
    assert (error["code"], error["source"]) == (code, "vllmd")
    assert error["message"]
    assert len(answer.body) < 2000, "an error must not send half of the request back"
    assert not re.search(rb"Traceback|File \"|\.py\b|object at 0x|Exception", answer.body)
    for word in words:
        assert word in f"{error['message']} {error['hint']} {error['param']}", error
    return error


# ── bodies ──


NOT_JSON = [
    b"{",
    b"hello",
    b"{'prompt': 'x'}",
    b"\xff\xfe\x00",
    b'{"prompt": "\xff"}',
    b'{"a":1}{"b":2}',
    b"\x00",
    b",",
]


@pytest.mark.parametrize("body", NOT_JSON)
async def test_what_is_no_json(daemon: Daemon, body: bytes) -> None:
    for path in (CHAT, PROMPT, RUNS, "/v1/messages"):
        assert_refused(await daemon.unix.ask(path, body), 400, "invalid_request", "not JSON")


async def test_an_empty_body(daemon: Daemon) -> None:
    for path in (CHAT, PROMPT, RUNS):
        assert_refused(await daemon.unix.ask(path, b""), 400, "invalid_request", "empty")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1", b"true", b"NaN", b"[{}]"])
async def test_json_that_is_no_object(daemon: Daemon, body: bytes) -> None:
    for path in (CHAT, PROMPT, RUNS):
        assert_refused(await daemon.unix.ask(path, body), 400, "invalid_request")


@pytest.mark.parametrize("depth", [200, 300, 400, 900, 930, 950, 970, 990, 1000, 10_000, 3_000_000])
async def test_deep_nesting(daemon: Daemon, depth: int) -> None:
    lists = b"[" * depth + b"]" * depth
    for body in (lists, b'{"prompt": %b}' % lists, b'{"model": %b}' % lists, b'{"input": %b}' % lists):
        for path in (CHAT, PROMPT, RUNS):
            answer = await daemon.unix.ask(path, body)
            assert answer.status == 400, (path, answer.body[:300])
            assert b"vllmd made a mistake" not in answer.body


# ── fields of the simple door ──


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"temperature": 0.7}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "temperature": "0.7"}, "temperature"),
        ({"prompt": "x", "temperature": 3}, "temperature"),
        ({"prompt": "x", "temperature": 2.0000001}, "temperature"),
        ({"prompt": "x", "temperature": -0.1}, "temperature"),
        ({"prompt": "x", "temperature": True}, "temperature"),
        ({"prompt": "x", "temperature": 10**400}, "temperature"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature"),
        ({"prompt": "x", "temperature": float("inf")}, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "x", "top_p": 1.5}, "top_p"),
        ({"prompt": "x", "stop": 1}, "stop"),
        ({"prompt": "x", "stop": [1]}, "stop"),
        ({"prompt": "x", "seed": "x"}, "seed"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "system": ["x"]}, "system"),
        ({"prompt": "x", "model": 1}, "model"),
    ],
)
async def test_a_wrong_field_is_named(daemon: Daemon, body: Any, param: str) -> None:
    for path, sent in ((PROMPT, body), (RUNS, {"input": body})):
        error = assert_refused(await daemon.tcp.ask(path, sent), 400, "invalid_request", param)
        assert error["param"] == param
    assert not daemon.requests()


async def test_an_unknown_key_is_named_with_the_nearest_known_one(daemon: Daemon) -> None:
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x", "temprature": 0.7})
    error = assert_refused(answer, 400, "invalid_request", "'temperature'")
    assert error["param"] == "temprature"


async def test_a_key_may_be_as_odd_as_it_likes(daemon: Daemon) -> None:
    for key in ("\ud800", "", "a\nb", "é" * 200, "prompt\x00"):
        answer = await daemon.unix.ask(PROMPT, {"prompt": "x", key: 1})
        assert_refused(answer, 400, "invalid_request", "unknown key")


async def test_huge_keys_values_and_numbers_of_them(daemon: Daemon) -> None:
    some = [
        {"prompt": "x", "k" * 5_000_000: 1},
        {"prompt": "x", "temperature": "t" * 5_000_000},
        {"prompt": "x", "temperature": list(range(500_000))},
        {"prompt": "x", **{f"k{n}": n for n in range(300_000)}},
        {"prompt": "x", "model": "m" * 5_000_000},
        {"prompt": "x", "seed": "9" * 4000},
    ]
    for body in some:
        answer = await daemon.unix.ask(PROMPT, body)
        assert answer.status in (400, 404)
        assert len(answer.body) < 2000
    answer = await daemon.unix.ask(RUNS, {"input": {"prompt": "x"}, "k" * 5_000_000: 1})
    assert_refused(answer, 400, "invalid_request")
    answer = await daemon.unix.ask(CHAT, {"model": ["m" * 5_000_000]})
    assert_refused(answer, 400, "invalid_request", "model")


@pytest.mark.parametrize("digits", [300, 310, 4000, 4300, 4301, 100_000])
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed", "top_p", "prompt"])
async def test_numbers_beyond_all_bounds(daemon: Daemon, field: str, digits: int) -> None:
    body = b'{"prompt": "x", "%b": %b}' % (field.encode(), b"9" * digits)
    answer = await daemon.unix.ask(PROMPT, body)
    assert answer.status in ((200, 400) if field in ("seed", "max_tokens") else (400,))
    assert b"vllmd made a mistake" not in answer.body


async def test_half_a_surrogate_pair(daemon: Daemon) -> None:
    daemon.control()
    for sent in (
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "x", "system": "\\udc00"}',
        b'{"prompt": "x", "stop": "\\udc00"}',
    ):
        answer = await daemon.unix.ask(PROMPT, sent)
        assert answer.status == 200
        assert answer.events[-1].name == "done"
    for path in (PROMPT, CHAT):
        assert_refused(await daemon.unix.ask(path, b'{"prompt": "x", "model": "\\ud83d"}'), 404, "model_not_found")
    answer = await daemon.unix.ask(PROMPT, b'{"prompt": "x", "temperature": "\\ud83d"}')
    assert_refused(answer, 400, "invalid_request", "temperature")


async def test_a_duplicate_key_a_byte_order_mark_and_utf_16_are_json(daemon: Daemon) -> None:
    for body in (b'{"prompt": "x", "prompt": "y"}', b'\xef\xbb\xbf{"prompt": "x"}', '{"prompt": "x"}'.encode("utf-16")):
        answer = await daemon.unix.ask(PROMPT, body)
        assert answer.status == 200, answer.body


# ── what only the engine can judge ──


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"temperature": 3}, {"temperature": float("nan")}])
async def test_on_v1_the_engine_judges_the_fields(daemon: Daemon, wrong: dict[str, Any]) -> None:
    answer = await daemon.unix.ask(CHAT, {**HELLO, **wrong})
    assert answer.status == 400
    assert answer.error["code"] == 400, "the engine's own body"


# ── size ──


async def test_a_body_of_40_mb_is_refused_and_the_client_gets_to_know(daemon: Daemon) -> None:
    body = json.dumps({"prompt": "x" * (40 * 1024 * 1024)}).encode()
    for path in (PROMPT, CHAT):
        answer = await daemon.tcp.ask(path, body)
        assert_refused(answer, 413, "body_too_large", str(LIMIT))


def test_curl_gets_to_know_too(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "big.json"
    file.write_bytes(b'{"prompt": "' + b"x" * (40 * 1024 * 1024) + b'"}')
    for chunked in ([], ["-H", "Transfer-Encoding: chunked"]):
        argv = ["curl", "-sS", "-w", "%{http_code}", f"{daemon.url}{PROMPT}", *chunked, "--data-binary", f"@{file}"]
        curl = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
        assert curl.stdout.endswith("413"), curl
        assert "body_too_large" in curl.stdout


async def test_a_body_just_within_the_limit_is_served(daemon: Daemon) -> None:
    body = b'{"prompt": "x"' + b" " * (LIMIT - 16) + b"}"
    assert len(body) < LIMIT
    answer = await daemon.unix.ask(PROMPT, body)
    assert answer.status == 200


async def test_a_body_that_is_small_only_while_it_is_compressed(daemon: Daemon) -> None:
    import zlib

    bomb = zlib.compress(b'{"prompt": "' + b"x" * (64 * 1024 * 1024) + b'"}', 9)
    answer = await daemon.unix.ask(PROMPT, bomb, headers={"content-encoding": "deflate"})
    assert answer.status in (400, 413)
    assert answer.error["source"] == "vllmd"


# ── routes and methods ──


@pytest.mark.parametrize("path", [CHAT, PROMPT, RUNS, "/v1/embeddings", "/api/models/tiny/load"])
async def test_get_where_post_belongs(daemon: Daemon, path: str) -> None:
    answer = await daemon.unix.ask(path)
    assert_refused(answer, 405, "method_not_allowed", "POST")
    assert answer.header("allow") == "POST"


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_another_method_where_get_belongs(daemon: Daemon, method: str) -> None:
    answer = await daemon.unix.ask("/api/status", b"", method=method)
    assert_refused(answer, 405, "method_not_allowed", "GET")


@pytest.mark.parametrize(
    "path", ["/page", "/v1", "/v2/chat", "/api/promt", "/v1/chat/completions/", "/%00", "/a%0d%0ab", "//"]
)
async def test_an_unknown_route(daemon: Daemon, path: str) -> None:
    for body in (None, HELLO):
        assert_refused(await daemon.unix.ask(path, body), 404, "route_not_found")


@pytest.mark.parametrize("name", ["other", "%ff", "a/b", "..", "%2e%2e"])
async def test_an_order_for_an_unknown_model(daemon: Daemon, name: str) -> None:
    answer = await daemon.unix.ask(f"/api/models/{name}/unload", b"")
    assert_refused(answer, 404, "model_not_found")


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "²", "", "9" * 5000, "0x10"])
async def test_a_last_event_id_that_is_no_number(daemon: Daemon, number: str) -> None:
    answer = await daemon.unix.ask("/api/events", headers={"last-event-id": number})
    assert_refused(answer, 400, "invalid_request", "Last-Event-ID")


# ── below HTTP ──


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"GET / HTTP/1.1\r\nhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB /api/status HTTP/1.1\r\n\r\n",
        b"POST /api/prompt HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /api/prompt HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /api/prompt HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http(daemon: Daemon, garbage: bytes) -> None:
    reader, writer = await daemon.tcp.connect()
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
    writer.close()
    assert not answer or b" 400 " in answer.splitlines()[0]
    assert b"Traceback" not in answer
    assert b".py" not in answer


async def test_a_chunked_body_that_breaks_in_the_middle(daemon: Daemon) -> None:
    head = b"POST /api/prompt HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n"
    for rest in (b'{"pro\r\nzzz\r\n', b'{"promore than five', b"5;" + b"x" * 100_000):
        reader, writer = await daemon.unix.connect()
        writer.write(head)
        await writer.drain()
        writer.write(rest)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read()
        writer.close()
        assert not answer or b" 400 " in answer.splitlines()[0], answer


async def test_a_client_that_leaves_while_it_sends_its_body(daemon: Daemon) -> None:
    for part in (0.0, 0.5, 0.999):
        whole = request(PROMPT, {"prompt": "x" * 300_000})
        _, writer = await daemon.unix.connect()
        writer.write(whole[: int(len(whole) * part)])
        await writer.drain()
        writer.close()


async def test_a_client_that_resets_its_connection(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=500, tokens=1000)
    for path, body in ((PROMPT, {"prompt": "x"}), (CHAT, {**HELLO, "stream": True})):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
                connection.sendall(request(path, body))
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
