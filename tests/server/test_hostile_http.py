"""What a hostile client can do with HTTP itself: smuggle nothing past vllmd, reach nothing but inference behind it."""

import asyncio
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from asking import DEADLINE_S, Exchange
from daemons import Daemon
from waiting import until

from vllmd.server.openai import INFERENCE

LOOPS = ("uvloop",)

pytestmark = pytest.mark.usefixtures("still_serves")
CHAT, PROMPT = "/v1/chat/completions", "/api/prompt"
BODY = b'{"prompt":"x","stream":false}'
CHAT_BODY = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1}'
SMUGGLED = b"GET /api/status?smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD = b"POST /api/prompt HTTP/1.1\r\nhost: localhost\r\n"
ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def chunked(body: bytes, size: bytes | None = None, end: bytes = b"0\r\n\r\n") -> bytes:
    return (b"%x" % len(body) if size is None else size) + b"\r\n" + body + b"\r\n" + end


async def answers(daemon: Daemon, data: bytes) -> tuple[list[int], bytes]:
    """The statuses of all answers until vllmd closes the connection, or has answered a last, honest request."""
    reader, writer = await daemon.tcp.connect()
    # At once: what came after vllmd has hung up would take its last answer along (a reset connection).
    writer.write(data + b"GET /health?last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    told = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            while piece := await reader.read(65536):
                told += piece
    writer.close()
    assert b"aiohttp/" not in told
    assert b"Traceback" not in told
    return [int(status) for status in ANSWER.findall(told)], told


# ── where a request ends ──


LONG = b'{"prompt":"%b","stream":false}' % (b"x" * 1_000_000)
PACKED = zlib.compress(LONG)


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: %d\r\n\r\n%b" % (len(LONG), LONG),
        b"transfer-encoding: chunked\r\n\r\n" + chunked(LONG),
        b"content-encoding: deflate\r\ncontent-length: %d\r\n\r\n%b" % (len(PACKED), PACKED),
    ],
    ids=["sized", "chunked", "compressed"],
)
async def test_a_long_body_ends_where_it_ends(daemon: Daemon, body: bytes) -> None:
    """It is more than is read at once, so that reading stops and goes on, and others come right behind it."""
    assert (await answers(daemon, (HEAD + body) * 3))[0] == [200] * 4


AMBIGUOUS = {
    "a length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(BODY),
    "chunks and a length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + chunked(BODY),
    "two lengths": b"content-length: 29\r\ncontent-length: 5\r\n\r\n" + BODY,
    "the same length twice": b"content-length: 29\r\ncontent-length: 29\r\n\r\n" + BODY,
    "a list of lengths": b"content-length: 29, 29\r\n\r\n" + BODY,
    "a length with a sign": b"content-length: +29\r\n\r\n" + BODY,
    "a negative length": b"content-length: -1\r\n\r\n" + BODY,
    "a hexadecimal length": b"content-length: 0x1d\r\n\r\n" + BODY,
    "a length as Python writes it": b"content-length: 2_9\r\n\r\n" + BODY,
    "an endless length": b"content-length: 99999999999999999999999\r\n\r\n" + BODY,
    "a space before the colon": b"content-length : 29\r\n\r\n" + BODY,
    "chunks behind a space": b"transfer-encoding : chunked\r\n\r\n" + chunked(BODY),
    "identity": b"transfer-encoding: identity\r\n\r\n" + chunked(BODY),
    "chunked, identity": b"transfer-encoding: chunked, identity\r\n\r\n" + chunked(BODY),
    "identity, chunked": b"transfer-encoding: identity, chunked\r\n\r\n" + chunked(BODY),
    "gzip, chunked": b"transfer-encoding: gzip, chunked\r\n\r\n" + chunked(BODY),
    "chunked twice": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(BODY),
    "xchunked": b"transfer-encoding: xchunked\r\n\r\n" + chunked(BODY),
    "chunked behind a vertical tab": b"transfer-encoding: \x0bchunked\r\n\r\n" + chunked(BODY),
    "quoted": b'transfer-encoding: "chunked"\r\n\r\n' + chunked(BODY),
    "on a folded line": b"transfer-encoding:\r\n chunked\r\n\r\n" + chunked(BODY),
    "lines without CR": b"x: y\ncontent-length: 29\r\n\r\n" + BODY,
    "a CR within a line": b"x: a\rb\r\ncontent-length: 29\r\n\r\n" + BODY,
    "a NUL within a line": b"x: a\0b\r\ncontent-length: 29\r\n\r\n" + BODY,
    "a line without a colon": b"x\r\ncontent-length: 29\r\n\r\n" + BODY,
    "two hosts": b"host: evil.example\r\ncontent-length: 29\r\n\r\n" + BODY,
    "a chunk of negative size": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, b"-1"),
    "a chunk with a prefix": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, b"0x1d"),
    "a chunk with a space": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, b"1d "),
    "an endless chunk": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, b"ffffffffffffffffff"),
    "a chunk shorter than its size": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, b"05"),
    "a size without CR": b"transfer-encoding: chunked\r\n\r\n1d\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk without CR": b"transfer-encoding: chunked\r\n\r\n1d\r\n" + BODY + b"\n0\r\n\r\n",
    "an extension without CR": b"transfer-encoding: chunked\r\n\r\n1d;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a trailer that is a host": b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY, end=b"0\r\nhost: evil\r\n\r\n"),
}


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_two_readers_could_cut_differently_ends_the_connection(daemon: Daemon, rest: bytes) -> None:
    statuses, told = await answers(daemon, HEAD + rest + SMUGGLED)
    assert statuses in ([400], []), told
    assert b"smuggled" not in told
    assert not statuses or b'"source": "vllmd"' in told


@pytest.mark.parametrize(
    "lines",
    [b"x: y\r\n" * 5000, b"x: " + b"y" * 20_000 + b"\r\n", b"x" * 20_000 + b": y\r\n"],
    ids=["many", "long", "name"],
)
async def test_a_head_is_bounded(daemon: Daemon, lines: bytes) -> None:
    statuses, told = await answers(daemon, b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + lines + b"\r\n")
    assert statuses in ([400], []), told[:500]
    assert len(told) < 2000, "and not sent back"


async def test_http_1_0_knows_no_chunks(daemon: Daemon) -> None:
    head = HEAD.replace(b"1.1", b"1.0") + b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n"
    statuses, told = await answers(daemon, head + chunked(BODY) + SMUGGLED)
    assert statuses == [400], told


async def test_a_request_within_a_body_is_a_body(daemon: Daemon) -> None:
    inner = BODY[:-1] + b',"system":"%b"}' % SMUGGLED.replace(b"\r\n", b"\\r\\n")
    for rest in (
        b"content-length: %d\r\n\r\n" % len(inner) + inner,
        b"transfer-encoding: CHUNKED\r\n\r\n" + chunked(inner),
        b"transfer-encoding: chunked\r\n\r\n" + chunked(inner, b"%x;ext=1" % len(inner)),
        b"transfer-encoding: chunked\r\n\r\n" + chunked(inner, b"000%x" % len(inner), b"000\r\nx: y\r\n\r\n"),
    ):
        statuses, told = await answers(daemon, HEAD + rest)
        assert statuses == [200, 200], told
    statuses, _ = await answers(daemon, b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 54\r\n\r\n" + SMUGGLED)
    assert statuses[1:] in ([], [200]), "a GET may have a body, and it is no request"


async def test_requests_in_a_row_are_answered_in_their_order(daemon: Daemon) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    statuses, told = await answers(daemon, one + b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n" + one)
    assert statuses == [200, 404, 200, 200], told


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_no_other_protocol_is_spoken(daemon: Daemon, upgrade: str) -> None:
    reader, writer = await daemon.tcp.connect()
    more = f"connection: upgrade\r\nupgrade: {upgrade}\r\n"
    for headers in (more, ""):
        writer.write(f"GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode())
        answer = await Exchange(reader, writer).end()
        assert (answer.status, answer.json()) == (200, {"status": "alive"})
    writer.close()


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
@pytest.mark.parametrize("target", ["/health", "localhost:80", "http://localhost/health", "/v1/chat/completions"])
async def test_no_tunnel_and_no_echo(daemon: Daemon, method: str, target: str) -> None:
    secret = b"cookie: secret\r\n"
    statuses, told = await answers(
        daemon, f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n".encode() + secret + b"\r\n" + SMUGGLED
    )
    assert statuses in ([405], [400]), told
    assert b"secret" not in told


async def test_what_is_no_http_is_not_sent_back(daemon: Daemon) -> None:
    statuses, told = await answers(daemon, HEAD + b"authorization: Bearer secret-key\x01\r\n\r\n")
    assert statuses == [400]
    assert b"secret" not in told
    assert b'"code": "invalid_request"' in told


# ── which routes ──


SECRET_ROUTES = [
    "/metrics",
    "/version",
    "/load",
    "/ping",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/start_profile",
    "/stop_profile",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/abort_requests",
    "/pause",
    "/resume",
    "/docs",
    "/redoc",
    "/inference/v1/generate",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/tokenizer_info",
    "/invocations",
    "/get_world_size",
    "/pooling",
    "/classify",
]
"""Routes of vLLM's that manage, develop or observe it, by whatever version, and some that vllmd does not know."""

TRICKS = [
    r"{0}",
    r"/{0}",
    r"{0}/",
    r"{0}?x=1",
    r"{0};x",
    r"{1}",
    r"%2f{0}",
    r"/.{0}",
    r"/%2e{0}",
    r"//engine{0}",
    r"http://engine{0}",
    r"/v1/chat/completions/..{0}",
    r"/v1/chat/completions/../../..{0}",
    r"/v1/chat/completions/%2e%2e/%2e%2e/%2e%2e{0}",
    r"/v1/chat/completions%2f..{0}",
    r"/v1/chat/completions/%252e%252e{0}",
    r"/v1/chat/completions%00{0}",
    r"/v1/chat/completions%0d%0a{0}",
    r"/v1/chat/completions?{0}",
    r"/v1/chat/completions\..\..{0}",
    r"/v1/models/..%2f..{1}",
    r"/v1/models/%2e%2e{0}",
    r"/api/models/..{0}",
    r"/api/models/tiny{0}/load",
    r"/api/requests/..{0}",
]


ASKED = re.compile(r'- "[A-Z]+ (\S+) HTTP')
"""How the engine logs each request, whatever it was for."""


@pytest.fixture
def reached(daemon: Daemon) -> Callable[[], set[str]]:
    """The engine's routes that were asked for in the test."""
    before = len(daemon.log)
    return lambda: set(ASKED.findall(daemon.log[before:]))


async def test_what_reaches_the_engine_would_be_seen(daemon: Daemon, reached: Callable[[], set[str]]) -> None:
    for route in ("/load", "/sleep"):
        await daemon.engine.ask(route)
    await until(lambda: reached() == {"/load", "/sleep"}, "the engine to log them")


@pytest.mark.parametrize("trick", TRICKS)
async def test_nothing_but_inference_is_reached_by_any_path(
    daemon: Daemon, reached: Callable[[], set[str]], trick: str
) -> None:
    async def all_methods(route: str) -> None:
        target = trick.format(route, route.replace("/", "%2f"))
        for method, body in (("GET", b""), ("POST", CHAT_BODY), ("PUT", CHAT_BODY)):
            head = f"{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            await answers(daemon, f"{head}x-http-method-override: POST\r\n\r\n".encode() + body)

    for at in range(0, len(SECRET_ROUTES), 10):
        await asyncio.gather(*map(all_methods, SECRET_ROUTES[at : at + 10]))
    await daemon.unix.ask(CHAT, CHAT_BODY)
    await until(reached, "the engine to log the last one")
    assert reached() == {CHAT}, "and a query is left out"
    assert daemon.model().state == "ready"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/%63hat/completions", 200),
        ("http://localhost/v1/chat/completions", 200),
        ("/v1/chat/completions?stream=true&api-version=1", 200),
        ("/v1/chat/completions#x", 400),
        ("http://evil.example/v1/chat/completions", 400),
        ("http://localhost@evil.example/v1/chat/completions", 400),
        ("//v1/chat/completions", 404),
        ("/v1//chat/completions", 404),
        ("/v1/./chat/completions", 404),
        ("/v1%2fchat%2fcompletions", 404),
        ("/V1/chat/completions", 404),
        ("/v1/chat/completions/", 404),
        ("/v1/chat/completions%20", 404),
    ],
)
async def test_a_route_is_the_route_however_it_is_spelled(daemon: Daemon, target: str, status: int) -> None:
    head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(CHAT_BODY)}\r\n\r\n"
    statuses, told = await answers(daemon, head.encode() + CHAT_BODY)
    assert statuses[0] == status, told
    assert [each["path"] for each in daemon.requests()] == ([CHAT] if status == 200 else [])


async def test_a_method_cannot_be_overridden(daemon: Daemon) -> None:
    headers = {"x-http-method-override": "POST", "x-method-override": "POST", "x-http-method": "DELETE"}
    for path in (*INFERENCE, "/api/models/tiny/unload"):
        answer = await daemon.unix.ask(f"{path}?_method=POST", headers=headers)
        assert (answer.status, answer.header("allow")) == (405, "POST")
    assert daemon.model().state == "ready"


# ── what the engine gets to see ──


@pytest.mark.parametrize("name", ["user-agent", "x-request-id", "traceparent", "accept", "anthropic-beta"])
async def test_no_byte_of_a_header_gets_out_of_its_line(daemon: Daemon, name: str) -> None:
    async def with_byte(byte: int) -> None:
        head = b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b: a%bx-evil: 1\r\ncontent-length: %d\r\n\r\n"
        statuses, told = await answers(
            daemon, head % (CHAT.encode(), name.encode(), bytes([byte]), len(CHAT_BODY)) + CHAT_BODY
        )
        assert statuses[:1] in ([200], [400], []), told

    for at in range(0, 256, 16):
        await asyncio.gather(*map(with_byte, range(at, at + 16)))
    assert all("x-evil" not in each["headers"] for each in daemon.requests())


async def test_the_engine_sees_few_of_the_client_s_headers_and_no_secret(daemon: Daemon) -> None:
    secrets = {
        "authorization": "Bearer s3cret",
        "x-api-key": "s3cret",
        "cookie": "s3cret",
        "proxy-authorization": "s3cret",
    }
    tricks = {
        "x-forwarded-for": "1.2.3.4",
        "connection": "x-request-id",
        "te": "trailers",
        "x-http-method-override": "GET",
    }
    body: Any = {"messages": [{"role": "user", "content": "x"}]}
    answer = await daemon.unix.ask(CHAT, body, headers={**secrets, **tricks, "accept": "a", "user-agent": "u"})
    assert answer.status == 200
    (seen,) = daemon.requests()
    known = {"host", "content-length", "content-type", "x-request-id", "accept", "user-agent"}
    assert set(seen["headers"]) <= known
    assert "s3cret" not in str(seen)
