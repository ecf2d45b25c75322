"""An engine that answers nonsense: the client is told so, once, and never gets half of two answers."""

from collections.abc import Iterator
from typing import Any

import pytest
from asking import Exchange
from daemons import Daemon, running
from server import odd_engine

CHAT = "/v1/chat/completions"
PROMPT = "/api/prompt"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Odd:
    """A daemon on the odd engine."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def says(self, answer: bytes) -> None:
        """What it answers from now on."""
        (self.daemon.folder / "answer").write_bytes(answer)


@pytest.fixture(scope="module")
def odd() -> Iterator[Odd]:
    daemon = Daemon(replay={"limit": 0}, relay={"stall_s": 5, "drain_s": 1})
    vllm = daemon.folder / "env" / "bin" / "vllm"
    vllm.unlink()
    vllm.symlink_to(odd_engine.__file__)
    env = {"ODD_ANSWER": str(daemon.folder / "answer")}
    daemon.configure({}, {"models": {"tiny": {"model": "m", "env": env}}, "replay": {"limit": 0}})
    with running(daemon):
        yield Odd(daemon)


def whole(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status.encode(),
        kind.encode(),
        len(body),
        body,
    )


def stream(*events: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + end


def assert_bad_gateway(answer: Exchange) -> None:
    assert answer.status == 502, answer.body
    assert answer.whole
    assert answer.error["code"] == "engine_error"
    assert answer.error["source"] == "engine"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzzz\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\nset-cookie: b\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\r\n set-cookie: b\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: \x1b[2J\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n{}",
    ],
)
async def test_what_is_no_http(odd: Odd, raw: bytes) -> None:
    odd.says(raw)
    for path, body in ((CHAT, HELLO), (CHAT, {**HELLO, "stream": True}), (PROMPT, {"prompt": "x", "stream": False})):
        assert_bad_gateway(await odd.daemon.unix.ask(path, body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [1]}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": 3}',
        b"[" * 100_000,
        b"\xff\xff",
    ],
)
async def test_what_is_no_chat_completion(odd: Odd, body: bytes) -> None:
    odd.says(whole(body))
    assert_bad_gateway(await odd.daemon.unix.ask(PROMPT, {"prompt": "x", "stream": False}))
    passed = await odd.daemon.unix.ask(CHAT, HELLO)
    assert (passed.status, passed.body) == (200, body), "/v1 does not read what it passes on"


@pytest.mark.parametrize("streams", [False, True])
async def test_no_header_of_the_engine_s_opens_what_vllmd_closes(odd: Odd, streams: bool) -> None:
    answer = stream(CHUNK, DONE) if streams else whole(b"<script>alert(1)</script>", "text/html")
    open_to_all = b"access-control-allow-origin: *\r\nset-cookie: a=b\r\ncontent-security-policy: default-src *\r\n"
    more = b"x-frame-options: ALLOWALL\r\nserver: evil\r\nx-request-id: evil\r\nx-custom: kept\r\n"
    odd.says(answer.replace(b"\r\n", b"\r\n" + open_to_all + more, 1))
    exchange = await odd.daemon.unix.ask(CHAT, {**HELLO, "stream": streams}, headers={"x-request-id": "mine"})
    assert exchange.status == 200
    assert not [name for name, _ in exchange.headers if name.startswith("access-control-") or name == "set-cookie"]
    assert exchange.header("content-security-policy").startswith("default-src 'none'")
    assert (exchange.header("x-frame-options"), exchange.header("x-content-type-options")) == ("DENY", "nosniff")
    assert (exchange.header("x-request-id"), exchange.header("x-custom")) == ("mine", "kept")
    assert exchange.header("server").startswith("vllmd/")


@pytest.mark.parametrize("status", ["404 Not Found", "503 Service Unavailable"])
async def test_an_error_that_is_no_json(odd: Odd, status: str) -> None:
    odd.says(whole(b"<html>nginx</html>", "text/html", status))
    for path, body in ((CHAT, HELLO), (PROMPT, {"prompt": "x"}), (PROMPT, {"prompt": "x", "stream": False})):
        answer = await odd.daemon.unix.ask(path, body)
        assert answer.status == int(status[:3])
        assert answer.body == b"<html>nginx</html>"


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: 1\n\n",
        b'data: "x"\n\n',
        b'data: {"choices": 1}\n\n',
        b'data: {"choices": [1]}\n\n',
        b'data: {"choices": [{"delta": 1}]}\n\n',
        b'data: {"choices": [{"delta": {"content": 1}}]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\n\n",
    ],
)
async def test_an_event_that_is_no_chunk_breaks_the_simple_door_s_stream(odd: Odd, event: bytes) -> None:
    odd.says(stream(CHUNK, event, DONE))
    answer = await odd.daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert answer.cut
    word, error = answer.events
    assert word.data == "word"
    assert error.name == "error"
    assert error.json()["error"]["source"] == "engine"
    odd.says(stream(event, DONE))
    assert_bad_gateway(await odd.daemon.unix.ask(PROMPT, {"prompt": "x"}))


async def test_an_answer_is_whole_once_its_last_event_is_there(odd: Odd) -> None:
    for end in (b"0\r\n\r\n", odd_engine.HOLD):
        odd.says(stream(CHUNK, DONE, end=end))
        answer = await odd.daemon.unix.ask(CHAT, {**HELLO, "stream": True})
        assert answer.whole, end
        assert answer.body == CHUNK + DONE
        answer = await odd.daemon.unix.ask(PROMPT, {"prompt": "x"})
        assert answer.whole, end
        assert [each.name for each in answer.events] == ["message", "done"]


async def test_nothing_after_the_last_event_is_passed_on(odd: Odd) -> None:
    for more in (CHUNK, b'data: {"error": {"message": "late"}}\n\n', DONE, b": late\n\n"):
        odd.says(stream(CHUNK, DONE + more, more))
        answer = await odd.daemon.unix.ask(CHAT, {**HELLO, "stream": True})
        assert answer.whole
        assert answer.body == CHUNK + DONE


async def test_a_stream_that_was_not_asked_for(odd: Odd) -> None:
    odd.says(stream(CHUNK, DONE))
    passed = await odd.daemon.unix.ask(CHAT, HELLO)
    assert passed.whole
    assert passed.body == CHUNK + DONE
    assert_bad_gateway(await odd.daemon.unix.ask(PROMPT, {"prompt": "x", "stream": False}))


async def test_one_piece_where_a_stream_was_asked_for(odd: Odd) -> None:
    odd.says(whole(b'{"choices": [{"message": {"content": "x"}}]}'))
    assert_bad_gateway(await odd.daemon.unix.ask(PROMPT, {"prompt": "x"}))


async def test_half_a_surrogate_pair_from_the_engine(odd: Odd) -> None:
    odd.says(stream(CHUNK.replace(b"word", b"wo\\ud83drd"), DONE))
    answer = await odd.daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert answer.whole
    assert answer.events[0].data == "wo?rd"
    odd.says(whole(b'{"choices": [{"message": {"content": "wo\\ud83drd"}}]}'))
    answer = await odd.daemon.unix.ask(PROMPT, {"prompt": "x", "stream": False})
    assert answer.json()["text"] == "wo\ud83drd"


async def test_an_event_that_never_ends_is_no_answer(odd: Odd) -> None:
    odd.says(stream(CHUNK, b"data: " + b"x" * 1_000_000))
    answer = await odd.daemon.unix.ask(CHAT, {**HELLO, "stream": True})
    assert answer.cut
    assert answer.events[0].data
    assert answer.events[1].json()["error"]["code"] == "engine_error"
    assert b"xxx" not in answer.body


@pytest.mark.parametrize("separator", [b"\r\n", b"\n"])
async def test_lines_may_end_in_either_way(odd: Odd, separator: bytes) -> None:
    events = (CHUNK + DONE).replace(b"\n", separator)
    odd.says(stream(*(bytes([each]) for each in events)))
    answer = await odd.daemon.unix.ask(CHAT, {**HELLO, "stream": True})
    assert answer.whole
    assert answer.body == events
