"""`/metrics` and the log say of every request what became of it: each is counted once, under the right word."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from asking import Door
from conftest import Start
from daemons import Daemon, running
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text
from server.test_keys import make, shows
from waiting import until

from vllmd.keys import Scope
from vllmd.lifecycle import State

CHAT, COMPLETIONS, PROMPT, METRICS = "/v1/chat/completions", "/v1/completions", "/api/prompt", "/metrics"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you there"}]}
STREAM = {**HELLO, "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}
SLOW = {"tokens": 10_000, "tokens_per_s": 20}
VLLM_S_OWN = re.compile("vllm:.* should not contain ':'")

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(page: bytes) -> Series:
    """The samples of a page, none of which may be there twice."""
    samples = [each for family in read_text(page.decode()) for each in family.samples]
    found = {(each.name, frozenset(each.labels.items())): each.value for each in samples}
    assert len(found) == len(samples)
    return found


async def scrape(door: Door, **headers: str) -> Series:
    answer = await door.ask(METRICS, headers=headers)
    assert answer.status == 200, answer.body
    return series(answer.body)


def value(found: Series, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


def requests_of(found: Series, who: str, model: str = "tiny") -> dict[str, float]:
    """outcome → how many of one identity's requests of a model had it."""
    wanted = {("identity", who), ("model", model)}
    return {
        dict(labels)["outcome"]: count for (name, labels), count in found.items()
        if name == "vllmd_requests_total" and wanted < labels
    }  # fmt: skip


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with running(Daemon()) as daemon:
        yield daemon


def told(daemon: Daemon, request_id: str) -> list[dict[str, Any]]:
    """The lines in which the log tells how a request ended."""
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    return [each for each in lines if each.get("request_id") == request_id and "outcome" in each]


async def ask(daemon: Daemon, request_id: str, path: str, body: Any, **headers: str) -> int:
    answer = await daemon.unix.ask(path, body, headers={"x-request-id": request_id, **headers})
    return answer.status


async def test_every_outcome_is_counted_and_told_once(start: Start) -> None:
    own = start(args={"max-num-seqs": 2}, log={"format": "json"})
    who = (await own.unix.ask("/api/status")).json()["usage"][0]["who"]
    words: dict[str, tuple[str, int]] = {}

    async def is_told(request_id: str, outcome: str, status: int) -> None:
        words[request_id] = (outcome, status)
        await until(lambda: told(own, request_id), f"the log to tell of {request_id}")

    # what goes well
    for request_id, path, body in (
        ("whole", CHAT, HELLO),
        ("stream", CHAT, STREAM),
        ("counted", CHAT, COUNTED),
        ("text", PROMPT, {"prompt": "hello you there"}),
        ("completion", COMPLETIONS, {"prompt": "hello you there", "stream": True}),
        ("messages", "/v1/messages", {**STREAM, "max_tokens": 100}),
        ("responses", "/v1/responses", {"input": "hello you there", "stream": True}),
    ):
        assert await ask(own, request_id, path, body) == 200
        await is_told(request_id, "finished", 200)
    for request_id, path, body in (
        ("short", CHAT, {**STREAM, "max_tokens": 5}),
        ("short-message", "/v1/messages", {**HELLO, "max_tokens": 5}),
    ):
        assert await ask(own, request_id, path, body) == 200
        await is_told(request_id, "length", 200)

    # what is refused unread
    assert await ask(own, "nonsense", CHAT, b"{") == 400
    assert await ask(own, "nobody", CHAT, {"model": "nobody"}) == 404
    await is_told("nonsense", "refused", 400)
    await is_told("nobody", "refused", 404)

    # what is not waited for, and what there is no room for
    own.control(**SLOW)
    first = await own.unix.open(CHAT, STREAM, headers={"x-request-id": "left"})
    await first.until(b"tok1")
    second = await own.unix.open(CHAT, STREAM, headers={"x-request-id": "cancelled"})
    await second.until(b"tok1")
    assert await ask(own, "busy", CHAT, STREAM, **{"x-vllmd-wait": "0"}) == 503
    await is_told("busy", "overloaded", 503)
    now = await scrape(own.unix)
    assert value(now, "vllmd_requests_running", model="tiny") == 2
    assert value(now, "vllmd_streams_open", model="tiny") == 2
    assert value(now, "vllmd_places", model="tiny") == 2
    await first.leave()
    await is_told("left", "left", 200)
    assert own.fetch("/api/requests/cancelled", "DELETE")[0] == 202
    await second.end()
    await second.leave()
    await is_told("cancelled", "cancelled", 200)

    # what an engine's death does
    once = str(own.folder / "once")
    own.control(fault="cut", fault_exit="SIGKILL", fault_after=5, once=once)
    assert await ask(own, "continued", CHAT, COUNTED) == 200
    await is_told("continued", "finished", 200)
    own.control(fault="cut", fault_exit="SIGKILL", fault_after=5, once=f"{once}2")
    assert await ask(own, "broken", COMPLETIONS, {"prompt": "x", "stream": True}) == 200
    await is_told("broken", "engine_error", 200)
    await until(lambda: (own.model().generation, own.model().state) == (3, "ready"), "the third engine")

    # what the engine refuses
    own.control(fault="http:400")
    assert await ask(own, "bad", CHAT, HELLO) == 400
    await is_told("bad", "refused", 400)

    # what an administrator's order does
    own.control(**SLOW)
    stream = await own.unix.open(CHAT, STREAM, headers={"x-request-id": "unloaded"})
    await stream.until(b"tok1")
    own.order("unload", wait=True)
    await stream.end()
    await stream.leave()
    await is_told("unloaded", "cut", 200)
    assert await ask(own, "stopped", CHAT, HELLO) == 503
    await is_told("stopped", "unavailable", 503)

    counted = await scrape(own.unix)
    expected: dict[str, int] = {}
    for outcome, _ in words.values():
        expected[outcome] = expected.get(outcome, 0) + 1
    refused_unread = 2
    expected["refused"] -= refused_unread
    assert requests_of(counted, who) == expected
    assert requests_of(counted, who, "") == {"refused": refused_unread}
    for request_id, (outcome, _) in words.items():
        (line,) = told(own, request_id)
        assert (line["outcome"], line["who"]) == (outcome, who), line
        assert "hello" not in line["message"]

    # their numbers
    assert value(counted, "vllmd_continuations_total", model="tiny") == 1
    assert value(counted, "vllmd_replays_total", model="tiny") == 0
    restarts = {dict(labels)["cause"] for (name, labels) in counted if name == "vllmd_engine_restarts_total"}
    assert restarts, "an engine that died was started again, and why is told"
    states = {each.value: value(counted, "vllmd_model_state", model="tiny", state=each.value) for each in State}
    assert states == {**dict.fromkeys(states, 0), "stopped": 1}
    assert value(counted, "vllmd_engine_scrape_ok", model="tiny") == 0
    assert value(counted, "vllmd_time_to_ready_seconds_count", model="tiny") == 3
    assert value(counted, "vllmd_relayed_bytes_total", model="tiny") > 5000
    refused_at_once = {"busy", "stopped", "nonsense", "nobody"}
    assert value(counted, "vllmd_queue_seconds_count", model="tiny") == len(words.keys() - refused_at_once)
    (line,) = told(own, "counted")
    assert "3 → 16 tokens in " in line["message"]
    assert line["message"].endswith("), stop")
    assert line["model"] == "tiny"
    assert "continued 1 ×" in told(own, "continued")[0]["message"]


async def test_tokens_and_times_add_up(start: Start) -> None:
    daemon = start()
    who = (await daemon.unix.ask("/api/status")).json()["usage"][0]["who"]
    for path, body in ((CHAT, HELLO), (CHAT, COUNTED), (PROMPT, {"prompt": "hello you there"}), (CHAT, STREAM)):
        assert (await daemon.unix.ask(path, body)).status == 200
    found = await scrape(daemon.unix)
    assert value(found, "vllmd_prompt_tokens_total", model="tiny", identity=who) == 3 * 3  # the last one told none
    assert value(found, "vllmd_generated_tokens_total", model="tiny", identity=who) == 4 * 16
    assert value(found, "vllmd_time_to_first_token_seconds_count", model="tiny") == 3
    assert value(found, "vllmd_inter_token_seconds_count", model="tiny") == 3
    assert value(found, "vllmd_queue_seconds_count", model="tiny") == 4
    assert value(found, "vllmd_request_duration_seconds_count", model="tiny") == 4
    assert value(found, "vllmd_probes_total", model="tiny", result="ok") == 1
    assert value(found, "vllm:generation_tokens_total", model="tiny", model_name="tiny", engine="0") == 4 * 16 + 1
    daemon.config.write_text(daemon.config.read_text() + "\n[log]\nrequests = false\n")
    assert daemon.fetch("/api/reload", "POST")[0] == 200
    lines = daemon.log.count("16 tokens in")
    assert (await daemon.unix.ask(CHAT, HELLO)).status == 200
    found = await scrape(daemon.unix)
    assert value(found, "vllmd_requests_total", model="tiny", identity=who, outcome="finished") == 5, "it survives"
    assert daemon.log.count("16 tokens in") == lines == 4


async def test_prompts_are_logged_only_where_that_was_asked_for(start: Start) -> None:
    daemon = start(log={"prompts": True})
    await daemon.unix.ask(CHAT, {"messages": [{"role": "user", "content": "the secret\n" + "x" * 100_000}]})
    (line,) = [each for each in daemon.log.splitlines() if "the secret" in each]
    assert len(line) < 5000
    assert "whoever may read the log" in daemon.log
    daemon.config.write_text(daemon.config.read_text().replace('"prompts" = true', '"prompts" = false'))
    assert daemon.fetch("/api/reload", "POST")[0] == 200
    await daemon.unix.ask(CHAT, {"messages": [{"role": "user", "content": "another secret"}]})
    assert "another secret" not in daemon.log


async def test_an_engine_that_tells_nothing_costs_its_numbers_alone(own: Daemon) -> None:
    own.control(metrics="hang")
    found = await scrape(own.unix)
    assert value(found, "vllmd_engine_scrape_ok", model="tiny") == 0
    assert value(found, "vllmd_model_state", model="tiny", state="ready") == 1
    assert not [name for name, _ in found if name.startswith("vllm:")]
    own.control()
    assert value(await scrape(own.unix), "vllmd_engine_scrape_ok", model="tiny") == 1


async def test_many_who_ask_at_once_ask_the_engine_no_more_often(own: Daemon) -> None:
    own.control(metrics="hang")
    own.forget()
    pages = await asyncio.gather(*(scrape(own.unix) for _ in range(20)))
    assert [value(each, "vllmd_engine_scrape_ok", model="tiny") for each in pages] == [0] * 20
    assert 1 <= len(own.journal("scrape")) < 10
    own.control()


@pytest.mark.parametrize("page", ["\x00garbage" * 9999, "vllm:x 1\nvllm:x 2\n# TYPE vllm:x gauge\n"])
async def test_an_engine_that_tells_garbage_spoils_nothing(own: Daemon, page: str) -> None:
    own.control(metrics=page)
    found = await scrape(own.unix)
    assert value(found, "vllmd_engine_scrape_ok", model="tiny") == 1
    assert value(found, "vllmd_model_state", model="tiny", state="ready") == 1
    assert not [name for name, _ in found if name.startswith("vllm:")]
    own.control()


async def test_prometheus_own_parsers_accept_the_page(own: Daemon) -> None:
    page = (await own.unix.ask(METRICS)).body
    answer = await own.unix.ask(METRICS, headers={"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
    assert answer.header("content-type").startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in read_open(answer.body.decode())}
    assert names == {family.name.removesuffix("_info") for family in read_text(page.decode())}
    assert {"vllmd_requests", "vllm:num_requests_running", "process_resident_memory_bytes"} <= names


def test_promtool_accepts_the_page(own: Daemon) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NO promtool(1) HERE: the page is not held to its rules; packaging/test-tools.sh installs it")
    page = asyncio.run(own.unix.ask(METRICS)).body
    ran = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    complaints = [each for each in ran.stderr.decode().splitlines() if not VLLM_S_OWN.match(each)]
    assert complaints == []


async def test_who_may_see_it_and_whom_they_see(start: Start, tmp_path: Any) -> None:
    file = tmp_path / "keys"
    ci, boss = make(file, "ci"), make(file, "boss", Scope.ADMIN)
    daemon = start(access={"keys": str(file)})
    for key in (ci, boss):
        assert (await daemon.tcp.ask(CHAT, HELLO, headers=shows(key))).status == 200
    assert (await daemon.tcp.ask(METRICS)).status == 401
    assert requests_of(await scrape(daemon.tcp, **shows(boss)), "key:ci") == {"finished": 1}
    mine = await scrape(daemon.tcp, **shows(ci))
    assert requests_of(mine, "key:ci") == requests_of(mine, "other") == {"finished": 1}
    assert not requests_of(mine, "key:boss")


@pytest.mark.parametrize(("access", "status"), [("open", 200), ("administrators", 401), ("off", 401)])
async def test_without_a_key_only_where_it_is_open(start: Start, tmp_path: Any, access: str, status: int) -> None:
    """With the key of somebody who may ask: not where it is for administrators, and nobody where it is off."""
    file = tmp_path / "keys"
    key = make(file, "ci")
    daemon = start(ready=False, access={"keys": str(file)}, metrics={"access": access})
    assert (await daemon.tcp.ask(METRICS)).status == status
    assert (await daemon.tcp.ask(METRICS, headers=shows(key))).status == {
        "open": 200,
        "administrators": 403,
        "off": 404,
    }[access]
    assert (await daemon.unix.ask(METRICS)).status == (404 if access == "off" else 200)
