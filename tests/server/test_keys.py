"""Who may come in by TCP, and who may administer: keys, their scopes and their end; on the Unix socket, groups."""

import grp
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from asking import Exchange
from conftest import Start
from daemons import Daemon, running
from server.test_requests import answer_to_nobody
from waiting import until

from vllmd import keys
from vllmd.keys import Key, Scope

LOOPS = ("uvloop",)
CHAT, PROMPT, REQUESTS = "/v1/chat/completions", "/api/prompt", "/api/requests"
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
SLOW = {"tokens": 1000, "tokens_per_s": 50}
LOAD = "/api/models/tiny/load"


def make(file: Path, name: str, scope: Scope = Scope.INFERENCE) -> str:
    """A new key in the file; returns its text."""
    key, text = keys.new(name, scope)
    keys.change(file, lambda old: (*old, key))
    return text


def revoke(file: Path, name: str) -> None:
    def strike(old: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(each for each in old if each.name != name)

    keys.change(file, strike)


def shows(text: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {text}"}


class Guarded:
    """A daemon that asks for keys, and two of them."""

    def __init__(self, daemon: Daemon, file: Path, ci: str, boss: str) -> None:
        self.daemon, self.file, self.ci, self.boss = daemon, file, ci, boss

    async def ask(self, path: str, key: str, body: Any = None, method: str = "") -> Exchange:
        return await self.daemon.tcp.ask(path, body, method=method, headers=shows(key))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    ci, boss = make(file, "ci"), make(file, "boss", Scope.ADMIN)
    with running(Daemon(access={"keys": str(file)}, listen={"hosts": ["gpu1"]})) as daemon:
        yield Guarded(daemon, file, ci, boss)


def assert_unauthenticated(answer: Exchange) -> None:
    assert (answer.status, answer.error["code"], answer.error["source"]) == (401, "invalid_api_key", "vllmd")
    assert answer.error["type"] == "authentication_error"
    assert "Bearer" in answer.error["hint"]
    assert answer.header("www-authenticate") == "Bearer"


ROUTES: dict[str, Any] = {
    CHAT: STREAM,
    PROMPT: {"prompt": "x"},
    "/v1/models": None,
    "/api/status": None,
    "/api/events": None,
    "/api/logs": None,
    REQUESTS: None,
    LOAD: b"",
    "/api/plan": None,
    "/api/reload": b"",
    "/no/such/route": None,
}


async def test_without_a_key_there_is_nothing_but_health(guarded: Guarded) -> None:
    guarded.daemon.forget()
    for path, body in ROUTES.items():
        assert_unauthenticated(await guarded.daemon.tcp.ask(path, body))
    for path in ("/health", "/ready"):
        assert (await guarded.daemon.tcp.ask(path)).status == 200
    assert not guarded.daemon.requests()


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {part}",
        "Bearer {key} {key}",
        "Bearer {digest}",
        "Bearer ci",
        "Bearer \xff",
        "Bearer,{key}",
    ],
)
async def test_what_is_no_key(guarded: Guarded, header: str) -> None:
    text = header.format(key=guarded.ci, part=guarded.ci[:-1], digest=keys.digest_of(guarded.ci))
    for path, body in ROUTES.items():
        answer = await guarded.daemon.tcp.ask(path, body, headers={"authorization": text})
        assert_unauthenticated(answer)
        assert guarded.ci.encode() not in answer.body


async def test_a_key_opens_the_door_as_openai_s_and_anthropic_s_clients_show_it(guarded: Guarded) -> None:
    for headers in (
        {"authorization": f"Bearer {guarded.ci}"},
        {"authorization": f"bearer   {guarded.ci} "},
        {"x-api-key": guarded.ci},
    ):
        assert (await guarded.daemon.tcp.ask(CHAT, STREAM, headers=headers)).whole
        assert (await guarded.daemon.tcp.ask("/api/status", headers=headers)).status == 200


async def test_only_a_key_of_scope_admin_administers(guarded: Guarded) -> None:
    for path, body, done in ((LOAD, b"", 202), ("/api/plan", None, 200), ("/api/reload", b"", 200)):
        answer = await guarded.ask(path, guarded.ci, body)
        assert (answer.status, answer.error["code"]) == (403, "denied")
        assert "the key ci" in answer.error["message"]
        assert (await guarded.ask(path, guarded.boss, body)).status == done


async def test_a_stranger_learns_that_the_service_is_not_ready_and_not_why(guarded: Guarded) -> None:
    daemon = guarded.daemon
    assert daemon.order("unload", wait=True)[0] == 200
    try:
        for headers in ({}, shows("nonsense")):
            answer = await daemon.tcp.ask("/ready", headers=headers)
            assert (answer.status, "tiny" in answer.body.decode()) == (503, False)
        for known in (await guarded.ask("/ready", guarded.ci), await daemon.unix.ask("/ready")):
            assert (known.status, known.error["message"]) == (503, "tiny is not loaded")
    finally:
        assert daemon.order("load", wait=True)[0] == 200


async def test_a_key_s_requests_are_its_own(guarded: Guarded) -> None:
    daemon = guarded.daemon
    daemon.control(**SLOW)
    async with daemon.tcp.stream(CHAT, STREAM, headers={**shows(guarded.ci), "x-request-id": "ci-1"}) as one:
        await one.until(b"tok0")
        async with daemon.tcp.stream(CHAT, STREAM, headers={**shows(guarded.boss), "x-request-id": "boss-1"}) as other:
            await other.until(b"tok0")
            seen = {each["id"]: each["who"] for each in (await guarded.ask(REQUESTS, guarded.ci)).json()["requests"]}
            assert seen == {"ci-1": "key:ci"}
            assert (await guarded.ask(f"{REQUESTS}/boss-1", guarded.ci, method="DELETE")).status == 403
            seen = {each["id"]: each["who"] for each in (await guarded.ask(REQUESTS, guarded.boss)).json()["requests"]}
            assert seen == {"ci-1": "key:ci", "boss-1": "key:boss"}
            assert (await guarded.ask(f"{REQUESTS}/ci-1", guarded.boss, method="DELETE")).status == 202
            await one.end()
            assert "key:boss" in one.events[-1].json()["error"]["message"]
    daemon.control()
    await until(lambda: not daemon.model().running, "both to end")
    usage = {each.who: each for each in daemon.status().usage}
    assert usage["key:ci"].tokens > 0
    assert usage["key:boss"].requests >= 1
    told = (await guarded.ask("/api/status", guarded.ci)).json()["usage"]
    assert [each["who"] for each in told] == ["key:ci"], "of others only administrators are told"


async def test_a_key_is_revoked_while_the_daemon_runs(guarded: Guarded) -> None:
    text = make(guarded.file, "temporary")
    assert (await guarded.ask("/api/status", text)).status == 200
    revoke(guarded.file, "temporary")
    assert_unauthenticated(await guarded.ask("/api/status", text))
    assert (await guarded.ask("/api/status", guarded.ci)).status == 200


async def test_the_unix_socket_asks_for_none(guarded: Guarded) -> None:
    for headers in ({}, shows("nonsense"), shows(guarded.ci)):
        assert (await guarded.daemon.unix.ask(LOAD, b"", headers=headers)).status == 202, "the kernel says who it is"


def test_keys_are_in_no_log_no_argv_and_no_environment(guarded: Guarded) -> None:
    daemon = guarded.daemon
    engine = (daemon.folder / "journal").read_bytes() if (daemon.folder / "journal").exists() else b""
    for text in (guarded.ci, guarded.boss):
        assert text not in daemon.log
        assert text.encode() not in engine, "the engine need not know"
        for pid in daemon.everybody():
            for name in ("cmdline", "environ"):
                assert text.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_vllmctl_shows_its_key(guarded: Guarded, tmp_path: Path) -> None:
    def run(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        base = {"PATH": os.environ["PATH"], "VLLMD_HOST": guarded.daemon.url, **environ}
        argv = [sys.executable, "-m", "vllmd.ctl", *words]
        return subprocess.run(argv, env=base, capture_output=True, text=True, timeout=60, check=False)

    (tmp_path / "key").write_text(f"{guarded.boss}\n")
    assert run("status", VLLMD_API_KEY=guarded.ci).returncode == 0
    assert run("restart", VLLMD_API_KEY_FILE=str(tmp_path / "key")).returncode == 0
    refused = run("restart", VLLMD_API_KEY=guarded.ci)
    assert (refused.returncode, "inference only" in refused.stderr) == (4, True)
    refused = run("models")
    assert (refused.returncode, "asks for a key" in refused.stderr) == (4, True)
    assert guarded.boss not in run("--debug", "models", VLLMD_API_KEY=guarded.boss).stderr


# ── without keys ──


async def test_without_keys_whatever_a_client_shows_is_nothing(daemon: Daemon) -> None:
    headers = shows("sk-anything")  # as OpenAI's clients must
    assert (await daemon.tcp.ask(CHAT, STREAM, headers=headers)).whole
    answer = await daemon.tcp.ask(LOAD, b"", headers=headers)
    assert (answer.status, answer.error["code"]) == (403, "denied")


# ── addresses of the network ──


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "192.0.2.1", "gpu1.example"])
def test_an_address_of_the_network_needs_keys(address: str) -> None:
    daemon = Daemon(listen={"tcp": f"{address}:{8080}"})
    try:
        daemon.start_in_vain()
        assert "no keys to guard it" in daemon.log
        assert "access.keys" in daemon.log
    finally:
        daemon.see_to_its_end()


def test_with_keys_it_is_taken_and_they_are_looked_for_at_once(tmp_path: Path) -> None:
    daemon = Daemon()
    try:
        where = {"tcp": f"0.0.0.0:{daemon.port}", "hosts": ["gpu1"]}
        daemon.configure({}, {"listen": where, "access": {"keys": str(tmp_path / "keys")}})
        daemon.start_in_vain()
        assert "vllmctl key new" in daemon.log
        make(tmp_path / "keys", "ci")
        (tmp_path / "keys").chmod(0o644)
        daemon.start_in_vain()
        assert "chmod 600" in daemon.log
        (tmp_path / "keys").chmod(0o600)
        daemon.start()
        assert f"http://0.0.0.0:{daemon.port}" in daemon.status().addresses
    finally:
        daemon.see_to_its_end()


async def test_a_host_that_is_not_configured_is_refused_even_with_a_key(guarded: Guarded) -> None:
    for host, status in (("gpu1:8080", 200), ("evil.example", 403)):
        headers = {**shows(guarded.ci), "host": host}
        assert (await guarded.daemon.tcp.ask("/api/status", headers=headers)).status == status


# ── groups ──


@pytest.mark.skipif(os.getuid() != 0, reason="ONLY ROOT can be somebody else: the groups are not tested")
def test_members_of_the_administrators_group_administer_and_nobody_else(start: Start) -> None:
    group = grp.getgrgid(65534).gr_name
    for configured, status in ((group, 202), ("daemon", 403), ("no-such-group", 403)):
        daemon = start(ready=False, listen={"unix_mode": "0666"}, access={"admin_group": configured})
        assert answer_to_nobody(daemon, f"POST {LOAD}")[0] == status
        assert answer_to_nobody(daemon, "GET /api/status")[0] == 200
        seen = {each["who"] for each in answer_to_nobody(daemon, "GET /api/status")[1]["usage"]}
        assert seen == ({"uid:0", "uid:65534"} if status == 202 else {"uid:65534"})
