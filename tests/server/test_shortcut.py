"""The shortcut and aiohttp answer alike: the same requests by both ways, and what comes back compared."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asking import Door, Exchange, request
from daemons import Daemon, running

from vllmd.server.ordinary import glance

MINE = {"X-Request-Id": "the-same"}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "seed": 1}
CHAT, PROMPT = "/v1/chat/completions", "/api/prompt"

CHANGES = re.compile(rb'"(?:id|created|queue_s|first_token_s|tokens_per_s)": ?[^,}]+')

CASES: dict[str, tuple[str, Any, dict[str, str]]] = {
    "a chat": (CHAT, HELLO, {}),
    "a stream": (CHAT, {**HELLO, "stream": True}, {}),
    "a long answer": (CHAT, {**HELLO, "max_tokens": 20000}, {}),
    "a completion": ("/v1/completions", {"prompt": "hello", "max_tokens": 3}, {}),
    "tokens": ("/tokenize", {"prompt": "hello"}, {}),
    "the simple door": (PROMPT, {"prompt": "hello", "stream": False}, {}),
    "the simple door's stream": (PROMPT, {"prompt": "hello", "stream": True}, {}),
    "an unknown model": (CHAT, {**HELLO, "model": "none"}, {}),
    "no JSON": (CHAT, b"{", {}),
    "an empty body": (CHAT, b"", {}),
    "the engine's refusal": (CHAT, {**HELLO, "max_tokens": -1}, {}),
    "a strange Host": (CHAT, HELLO, {"host": "example.org"}),
    "a strange page": (CHAT, HELLO, {"Origin": "http://example.org"}),
    "a page of an allowed origin": (CHAT, HELLO, {"Origin": "http://pages.example"}),
    "another site's page": (CHAT, HELLO, {"Sec-Fetch-Site": "cross-site"}),
    "no waiting": (CHAT, HELLO, {"X-Vllmd-Wait": "0"}),
    "an id that is none": (CHAT, HELLO, {"X-Request-Id": "no id of mine"}),
}


@pytest.fixture(scope="module")
def house() -> Any:
    with running(Daemon(listen={"origins": ["http://pages.example"]})) as daemon:
        yield daemon


async def by_aiohttp(door: Door, said: bytes) -> Exchange:
    """On a connection that is aiohttp's since its first request."""
    reader, writer = await door.connect()
    writer.write(request("/health"))
    assert (await Exchange(reader, writer).end()).status == 200
    return await answer_to(said, reader, writer)


async def by_shortcut(door: Door, said: bytes) -> Exchange:
    return await answer_to(said, *await door.connect())


async def answer_to(said: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    writer.write(said)
    answer = await Exchange(reader, writer).end()
    await answer.leave()
    return answer


def told(answer: Exchange) -> tuple[int, list[tuple[str, str]], bytes]:
    """What a client gets to know, without what is another each time."""
    headers = [(name, "…" if name == "date" or len(value) == 32 else value) for name, value in answer.headers]
    return answer.status, sorted(headers), CHANGES.sub(b"", answer.body)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ["unix", "tcp"])
async def test_both_ways_give_the_same_answer(house: Daemon, where: str, case: str) -> None:
    path, body, headers = CASES[case]
    said = request(path, body, headers={**MINE, **headers})
    assert glance(said), "else both would go the same way"
    door: Door = getattr(house, where)
    usual, short = await by_aiohttp(door, said), await by_shortcut(door, said)
    assert usual.whole
    assert short.whole
    usual_length = "content-length" not in dict(usual.headers) or re.search(rb"timings", usual.body)
    without = {"content-length"} if usual_length else set()
    (status, first, one), (other_status, second, other) = told(usual), told(short)
    assert status == other_status
    assert [each for each in first if each[0] not in without] == [each for each in second if each[0] not in without]
    assert one == other


async def test_both_ways_ask_for_the_same_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    with running(Daemon(access={"keys": str(file)})) as daemon:
        said = request(CHAT, HELLO, headers=MINE)
        usual, short = await by_aiohttp(daemon.tcp, said), await by_shortcut(daemon.tcp, said)
        assert (usual.status, short.status) == (401, 401)
        assert told(usual) == told(short)


async def test_a_thousand_short_requests_on_one_connection(house: Daemon) -> None:
    reader, writer = await house.unix.connect()
    for number in range(1000):
        writer.write(request(CHAT, HELLO, headers={"X-Request-Id": f"r{number}"}))
        answer = await Exchange(reader, writer).end()
        assert (answer.status, answer.header("x-request-id")) == (200, f"r{number}")
        assert json.loads(answer.body)["object"] == "chat.completion"
    writer.close()


async def test_odd_requests_between_ordinary_ones(house: Daemon) -> None:
    """On one connection, also all at once: each is answered, in its turn."""
    asked = [
        request(CHAT, HELLO, headers={"X-Request-Id": "0"}),
        request(CHAT, HELLO, headers={"X-Request-Id": "1"}),
        request("/health", headers={"X-Request-Id": "2"}),
        request(CHAT, HELLO, headers={"X-Request-Id": "3"}),
    ]
    for together in (False, True):
        reader, writer = await house.unix.connect()
        if together:
            writer.write(b"".join(asked))
        for number, each in enumerate(asked):
            if not together:
                writer.write(each)
            answer = await Exchange(reader, writer).end()
            assert (answer.status, answer.header("x-request-id")) == (200, str(number))
        writer.close()


async def test_requests_whose_bodies_come_apart(house: Daemon) -> None:
    """As many clients send them: the head in one packet, the body in the next."""
    head, _, body = request(CHAT, HELLO, headers=MINE).partition(b"\r\n\r\n")
    for pause_s in (0.0, 0.01, 0.5):  # the last one is longer than anybody's body is waited for on the shortcut
        reader, writer = await house.tcp.connect()
        for _ in range(3):
            writer.write(head + b"\r\n\r\n")
            await asyncio.sleep(pause_s)
            writer.write(body)
            assert (await Exchange(reader, writer).end()).status == 200
        writer.close()
