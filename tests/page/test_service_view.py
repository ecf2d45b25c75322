"""The view of the service: starts, load, requests, incidents and the log as they happen, and nothing left behind."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Start
from daemons import Daemon
from playwright.sync_api import Locator, Page, expect
from recordings import FIXTURES

from page.browser import Tab, key_of
from page.conftest import Visit
from vllmd.engine.phases import split
from vllmd.keys import Scope

LOOPS = ("uvloop",)
SLOW = {"tokens": 1000, "tokens_per_s": 10}

ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LOADING = "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:01<00:01,  2.50it/s]"
PLACE = "11-27 14:54:13 [core.py:1]"


def stuck(daemon: Daemon, *lines: str) -> None:
    """Lets starts print this and then hang."""
    log = daemon.folder / "stuck.log"
    log.write_text("\n".join(lines))
    daemon.control(start_log=str(log), start_end="never")


def board(tab: Tab, view: str = "#service") -> Locator:
    tab.open(view)
    found = tab.page.locator(".board")
    expect(found.locator(".log")).to_be_visible()
    return found


@contextmanager
def asking(daemon: Daemon, key: str = "") -> Iterator[http.client.HTTPResponse]:
    """A stream that has begun, somebody else's."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


def rest_of(response: http.client.HTTPResponse) -> bytes:
    """What is still to come, also where it is cut."""
    try:
        return response.read()
    except http.client.IncompleteRead as cut:
        return cut.partial


def test_a_start_is_a_picture_that_ends_in_ready(start: Start, visit: Visit) -> None:
    daemon = start(ready=False, knobs={"start_end": "never"})
    stuck(daemon, LOADING)
    daemon.order("restart")
    seen = board(visit(daemon))
    expect(seen.locator(".state-word")).to_have_text("starting")
    expect(seen.locator(".start-title")).to_have_text("loading weights 43 %")
    expect(seen.locator(".start-phases li")).to_have_count(2)
    expect(seen.locator(".start-piece[data-now=true] .start-done")).to_have_attribute("style", "width: 43%;")
    expect(seen.locator(".figures")).to_be_hidden()
    daemon.control()
    daemon.order("restart")
    expect(seen.locator(".state-word")).to_have_text("ready")
    expect(seen.locator(".start-title")).to_have_text("Last start")
    expect(seen.locator(".start-phases")).to_contain_text("capturing graphs")
    expect(seen.locator(".figures")).to_be_visible()
    expect(seen.get_by_role("status").filter(has_text="tiny is ready")).to_be_attached()
    stuck(daemon, LOADING)
    daemon.order("restart")
    expect(seen.locator(".start-aside")).to_contain_text("left")


def test_a_killed_engine_is_an_incident_with_its_verdict(start: Start, visit: Visit) -> None:
    daemon = start()
    tab = visit(daemon)
    seen = board(tab)
    expect(seen).to_contain_text("No engine has failed.")
    stuck(daemon, ATTACK)
    os.kill(daemon.engine_pid, signal.SIGKILL)
    incident = seen.get_by_role("button", name="SIGKILL")
    expect(incident).to_contain_text("tiny · generation 1")
    expect(seen.locator(".facts")).to_contain_text("1 restart after failures")
    tab.forgive("Failed to load resource: .* 503")
    tab.page.route("**/api/incidents/*", lambda route: route.fulfill(status=503), times=1)
    incident.click()
    expect(seen.locator(".incident-details")).to_contain_text("status 503")
    incident.click()
    incident.click()
    expect(seen.locator(".incident-text")).to_contain_text("Application startup complete.")
    incident.click()
    expect(seen.locator(".incident-text")).to_be_hidden()
    daemon.control(start_end="exit:1", start_last=f"ValueError: {ATTACK}")
    daemon.order("restart")
    expect(seen.locator(".state-word")).to_have_text("failed")
    expect(seen.locator(".verdict")).to_contain_text(ATTACK)
    expect(seen.locator(".incident-reason").first).to_contain_text(ATTACK)
    expect(seen.locator("img, script")).to_have_count(0)
    assert not tab.faults()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


def test_an_administrator_sees_all_requests_cancels_them_and_gives_orders(
    start: Start, visit: Visit, guarded: Path
) -> None:
    ci, boss = key_of(guarded, "ci", Scope.INFERENCE), key_of(guarded, "boss", Scope.ADMIN)
    daemon = start(access={"keys": str(guarded)}, knobs=SLOW, args={"max-num-seqs": 1})
    tab = visit(daemon)
    tab.forgive("401")
    tab.open("#service")
    tab.show_key(boss)
    rows = tab.page.locator(".requests tbody tr")
    expect(tab.page.get_by_text("Nothing is running.")).to_be_visible()
    with asking(daemon, ci) as response, asking(daemon, ci):
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("key:ci")
        expect(rows.first.locator("[data-column=rate]")).to_contain_text("/s")
        expect(rows.last).to_contain_text("waiting")
        expect(tab.page.locator(".figures")).to_contain_text("of 1")
        rows.first.get_by_role("button").click()
        assert b"cancelled by key:boss" in rest_of(response)
        expect(rows).to_have_count(1)
        expect(rows).not_to_contain_text("waiting")
    expect(rows).to_have_count(0)
    orders, state = tab.page.get_by_role("group", name="Orders to tiny"), tab.page.locator(".state-word")
    orders.get_by_role("button", name="Unload").click()
    expect(orders.get_by_role("button", name="Unload: sure?")).to_be_visible()
    assert daemon.model().state == "ready"
    orders.get_by_role("button", name="Unload: sure?").click()
    expect(state).to_have_text("stopped")
    orders.get_by_role("button", name="Load", exact=True).click()
    expect(state).to_have_text("ready")


def test_who_may_give_no_orders_is_told_why(daemon: Daemon, tab: Tab) -> None:
    seen = board(tab)
    expect(seen.locator(".denied")).to_contain_text("administration is not possible over TCP without a key")
    expect(seen.locator(".orders")).to_be_hidden()


def test_the_log_is_live_harmless_and_bounded(start: Start, visit: Visit) -> None:
    daemon = start()
    tab = visit(daemon)
    seen = board(tab)
    lines = seen.locator(".log-line")
    expect(lines.last).to_contain_text("200 OK")
    stuck(daemon, f"(APIServer pid=7) ERROR {PLACE} it broke", ATTACK, f"INFO {PLACE} \x1b[31mwent on\x1b[0m")
    daemon.order("restart")
    expect(lines.last.locator(".log-text")).to_have_text(f"INFO {PLACE} went on")
    failures = seen.locator(".log-line[data-level=error] .log-text")
    expect(failures).to_have_text([f"(APIServer pid=7) ERROR {PLACE} it broke", ATTACK])
    expect(seen.locator("img, script")).to_have_count(0)
    seen.get_by_label("Level").select_option("error")
    expect(lines.locator("visible=true")).to_have_count(2)
    seen.get_by_label("Filter the log").fill("IT BROKE")
    expect(lines.locator("visible=true")).to_have_count(1)
    seen.get_by_label("Filter the log").fill("")
    seen.get_by_label("Level").select_option("all")
    daemon.control(flood=1500)
    daemon.order("restart", wait=True)
    expect(lines).to_have_count(1000)
    seen.locator(".log-lines").evaluate("each => { each.scrollTop = 0 }")
    first = lines.first.inner_text()
    with asking(daemon) as response:
        response.read()
    jump = seen.get_by_role("button", name="new lines")
    expect(jump).to_be_visible()
    assert lines.first.inner_text() == first, "who reads is left in peace"
    jump.click()
    expect(jump).to_be_hidden()
    expect(lines).to_have_count(1000)
    assert lines.first.inner_text() != first


def test_nothing_is_asked_while_nobody_looks(daemon: Daemon, tab: Tab) -> None:
    seen = board(tab)
    lines, shown = seen.locator(".log-line"), len(printed(daemon, 300))
    expect(lines).to_have_count(shown)
    before = len(printed(daemon))
    with tab.page.expect_event("requestfailed", lambda request: "/api/logs" in request.url):
        hide(tab.page, True)
    with tab.page.expect_request("**/api/logs*"):
        hide(tab.page, False)
    with asking(daemon) as response:
        response.read()
    expect(lines).to_have_count(shown + len(printed(daemon)) - before)  # none came twice
    with tab.page.expect_event("requestfailed", lambda request: "/api/logs" in request.url):
        tab.page.get_by_role("link", name="Chat").click()
    expect(seen).to_have_count(0)
    with tab.page.expect_response("**/api/status"):
        tab.page.get_by_role("link", name="Service").click()
    expect(tab.page.locator(".state-word")).to_have_text("ready")


def printed(daemon: Daemon, lines: int = 2000) -> list[object]:
    """The last lines of the engine."""
    return list(daemon.fetch(f"/api/logs?lines={lines}")[1]["lines"])


def hide(page: Page, is_hidden: bool) -> None:
    """As if another tab were looked at."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')) }",
        is_hidden,
    )


def test_a_daemon_that_is_away_is_waited_for(start: Start, visit: Visit) -> None:
    daemon = start()
    tab = visit(daemon)
    tab.forgive("Failed to load resource|ERR_|503")
    seen = board(tab)
    assert daemon.stop() == 0
    expect(seen.get_by_role("alert")).to_have_text("vllmd does not answer. Trying again …")
    daemon.start()
    expect(seen.get_by_role("alert")).to_be_hidden()
    expect(seen.locator(".state-word")).to_have_text("ready")


def test_lines_are_taken_apart_as_the_daemon_does_it(daemon: Daemon, tab: Tab) -> None:
    recorded = [line for file in sorted((FIXTURES / "startup").glob("*.log")) for line in file.read_text().splitlines()]
    lines = [line[:2000] for line in (*recorded, "", ATTACK, "ERROR is no level here", "INFO:     Uvicorn's")]
    tab.open()
    parted = "async lines => { const {parted} = await import('/page/service/lines.js'); return lines.map(parted) }"
    found = [(each["level"], each["message"]) for each in tab.page.evaluate(parted, lines)]
    assert found == [(level.lower(), message) for level, message in map(split, lines)]


def test_figures_and_lines_are_made_right(daemon: Daemon, tab: Tab) -> None:
    right = {
        "words.duration(0.01)": "0 s",
        "words.duration(0.94)": "0.9 s",
        "words.duration(59.6)": "1 min",
        "words.duration(3 * 3600 + 61)": "3 h 1 min",
        "words.duration(90000)": "1 d 1 h",
        "words.percent(0.0036)": "0.4 %",
        "words.percent(0.34)": "34 %",
        "rate.paths([{at: 59, value: 0}, {at: 60, value: 10}], 60, 60, 10)": ["M295.0 47.0L300.0 3.0"],
        "rate.paths([{at: 1, value: 0}, {at: 60, value: 10}], 60, 60, 10).length": 2,  # nobody looked in between
    }
    tab.open()
    modules = "const [words, rate] = await Promise.all(['words', 'rate'].map(n => import(`/page/service/${n}.js`)))"
    found = tab.page.evaluate(f"async () => {{ {modules}; return [{', '.join(right)}] }}")
    assert dict(zip(right, found, strict=True)) == right


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(daemon: Daemon, visit: Visit, scheme: str) -> None:
    daemon.control(**SLOW)
    tab = visit(daemon, color_scheme=scheme, viewport={"width": 320, "height": 640})
    seen = board(tab)
    with asking(daemon), asking(daemon):
        expect(seen.locator(".requests tbody tr")).to_have_count(2)
        assert not tab.faults()
        assert not tab.overflows()
        assert not seen.evaluate("each => each.scrollWidth > each.clientWidth")
        tab.page.set_viewport_size({"width": 1280, "height": 800})
        assert not tab.faults()
