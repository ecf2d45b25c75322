"""What a page from somewhere can do through its visitor's browser: nothing (DNS rebinding, cross-origin requests)."""

from collections.abc import Iterator
from typing import Any

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon, running

from vllmd.config import parse
from vllmd.errors import ConfigError

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


# ── what is allowed, and what browsers are told ──

PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def friendly() -> Iterator[Daemon]:
    """A daemon that one other page may ask."""
    with running(Daemon(listen={"origins": [PAGE], "hosts": ["vllm.example"]})) as daemon:
        yield daemon


async def test_the_page_of_a_configured_origin_may_ask(friendly: Daemon) -> None:
    for path in PATHS:
        answer = await ask(friendly, path, "localhost", PAGE)
        assert answer.status == 200
        assert (answer.header("access-control-allow-origin"), answer.header("vary")) == (PAGE, "Origin")
        assert not answer.header("access-control-allow-credentials"), "there are no cookies"
    refused = await friendly.tcp.ask("/v1/nothing", headers={"origin": PAGE})
    assert (refused.status, refused.header("access-control-allow-origin")) == (404, PAGE), "it may read why"
    preflight = {"origin": PAGE, "access-control-request-method": "POST"}
    for path in PATHS:
        answer = await (await friendly.tcp.open(path, method="OPTIONS", headers=preflight)).head()
        await answer.leave()
        assert (answer.status, answer.header("access-control-allow-origin")) == (204, PAGE)
        assert "authorization" in answer.header("access-control-allow-headers")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://chat.example.evil.example", "http://chat.example", f"{PAGE}:8443", "null", "*"],
)
async def test_and_no_other(friendly: Daemon, origin: str) -> None:
    for path in PATHS:
        assert_denied(await ask(friendly, path, "localhost", origin))
    answer = await friendly.tcp.ask("/api/status", method="OPTIONS", headers={"origin": origin})
    assert_denied(answer)


async def test_what_another_site_s_page_embeds_is_refused(daemon: Daemon) -> None:
    for site in ("cross-site", "same-site"):
        for mode, dest, status in (
            ("no-cors", "image", 403),
            ("no-cors", "script", 403),
            ("navigate", "iframe", 403),
            ("navigate", "document", 200),
        ):
            headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
            assert (await daemon.tcp.ask("/api/status", headers=headers)).status == status
    for site in ("same-origin", "none"):
        assert (await daemon.tcp.ask("/api/status", headers={"sec-fetch-site": site})).status == 200


async def test_every_answer_tells_browsers_not_to_run_frame_or_keep_it(daemon: Daemon) -> None:
    odd = [("/nowhere", None), ("/api/prompt", b"{"), ("/api/models/tiny/load", b"")]
    for door in (daemon.tcp, daemon.unix):
        for path, body in [*PATHS.items(), *odd]:
            async with door.stream(path, body) as answer:
                await answer.head()
            assert answer.header("content-security-policy").startswith("default-src 'none'"), path
            assert answer.header("x-content-type-options") == "nosniff"
            assert answer.header("x-frame-options") == "DENY"
            assert answer.header("referrer-policy") == "no-referrer"
            assert answer.header("cache-control") in ("no-store", "no-cache")


@pytest.mark.parametrize("origin", ["*", "null", "chat.example", "https://chat.example/", "https://Chat.example", ""])
def test_an_origin_that_no_browser_would_send_is_a_mistake(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"listen\.origins"):
        parse({"listen": {"origins": [origin]}})
