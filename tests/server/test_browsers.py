"""What a page from somewhere can do through its visitor's browser: nothing (DNS rebinding, cross-origin requests)."""

from typing import Any

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon

LOOPS = ("uvloop",)
"""Nothing here depends on the event loop."""

PATHS: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "stream": True},
    "/api/prompt": {"prompt": "x"},
    "/api/status": None,
    "/api/events": None,
    "/v1/models": None,
    "/health": None,
}


async def ask(daemon: Daemon, path: str, host: str, origin: str | None = None) -> Exchange:
    """An answer's head, over TCP, as a browser would ask for it."""
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    async with daemon.tcp.stream(path, PATHS[path], headers=headers) as exchange:
        await exchange.head()
        if exchange.status != 200:
            await exchange.end()
    return exchange


def assert_denied(answer: Exchange) -> None:
    assert (answer.status, answer.error["code"], answer.error["source"]) == (403, "denied", "vllmd")
    assert answer.error["hint"]
    assert not [name for name, _ in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost:9"])
async def test_the_machine_s_own_names_are_known(daemon: Daemon, host: str) -> None:
    for path in PATHS:
        assert (await ask(daemon, path, host.format(port=daemon.port))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "127.0.0.2",
        "10.0.0.1:{port}",
        "[",
        "[::2]",
        "localhost:x@evil.example",
        "",
        " ",
    ],
)
async def test_a_name_that_was_rebound_to_this_machine_is_refused(daemon: Daemon, host: str) -> None:
    for path in PATHS:
        assert_denied(await ask(daemon, path, host.format(port=daemon.port)))
    assert not daemon.requests()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:1",
        "http://localhost.evil.example:{port}",
        "http://evil.example@localhost",
        "null",
        "",
        "http://[",
        "http://",
        "file://",
        "localhost:{port}",
    ],
)
async def test_a_page_of_another_origin_is_refused(daemon: Daemon, origin: str) -> None:
    for path in PATHS:
        assert_denied(await ask(daemon, path, f"localhost:{daemon.port}", origin.format(port=daemon.port)))
    assert not daemon.requests()


async def test_the_daemon_s_own_pages_may_ask(daemon: Daemon) -> None:
    for name in ("localhost", "127.0.0.1", "[::1]"):
        host = f"{name}:{daemon.port}"
        for path in PATHS:
            assert (await ask(daemon, path, host, f"http://{host}")).status == 200


async def test_a_preflight_allows_nothing(daemon: Daemon) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for path in PATHS:
        answer = await daemon.tcp.ask(path, method="OPTIONS", headers=headers)
        assert answer.status in (403, 405)
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]


async def test_behind_a_unix_socket_there_is_no_browser(daemon: Daemon) -> None:
    headers = {"host": "anything at all", "origin": "https://evil.example"}
    assert (await daemon.unix.ask("/api/prompt", {"prompt": "x"}, headers=headers)).whole


async def test_more_names_can_be_configured(start: Start) -> None:
    daemon = start(listen={"hosts": ["Vllm.Example"]})
    assert (await ask(daemon, "/v1/models", "vllm.example")).status == 200
    assert (await ask(daemon, "/v1/models", "vllm.example:8443", "https://vllm.example:8443")).status == 200
    assert_denied(await ask(daemon, "/v1/models", "other.example"))
