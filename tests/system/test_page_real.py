"""The chat page on a real vLLM: words come, a stop ends the work, and an engine that dies is a pause."""

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest
from daemons import Daemon
from page.browser import CHROMIUM, Tab, chromium
from playwright.sync_api import expect
from system.real import STARTS_WITHIN_S, real_daemon
from waiting import until_sync

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

LONG = "Explain in three paragraphs why the sky is blue."
LONG_TAKES_MS = 300_000
"""At most, on a CPU that others use too."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with real_daemon() as daemon:
        yield daemon


@pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM HERE: packaging/test-tools.sh installs it")
def test_a_conversation(daemon: Daemon) -> None:
    with chromium() as browser:
        tab = Tab(browser.new_context(), daemon)
        tab.open_ready()
        answer = tab.send("Say hello.")
        tab.until_done(answer, LONG_TAKES_MS)
        expect(answer.locator(".words")).to_have_text(re.compile(r"\w"))
        expect(answer.locator(".figures")).to_have_text(re.compile(r"\d+ tokens · \d.* tokens/s · first after \d"))
        assert answer.locator(".failure").count() == 0
        _stops(tab, daemon)
        _goes_on(tab, daemon)
        tab.see_to_its_end()


def _stops(tab: Tab, daemon: Daemon) -> None:
    answer = tab.send(LONG)
    expect(answer.locator(".words")).to_have_text(re.compile(r"\w"))
    tab.page.keyboard.press("Escape")
    expect(answer.locator(".under")).to_contain_text("Stopped")
    until_sync(lambda: daemon.model().running == 0, "vllmd to have nothing to do")


def _goes_on(tab: Tab, daemon: Daemon) -> None:
    tab.page.keyboard.press("Alt+N")
    answer = tab.send(LONG)
    expect(answer.locator(".words")).to_have_text(re.compile(r"\w"))
    os.kill(daemon.engine_pid, signal.SIGKILL)
    expect(answer.locator(".waiting")).to_contain_text("The answer goes on as soon as the model is back")
    before = answer.locator(".words").inner_text()
    began = time.monotonic()
    daemon.wait_for("ready", STARTS_WITHIN_S)
    tab.until_done(answer, LONG_TAKES_MS)
    print(f"the answer went on after {time.monotonic() - began:.0f} s")
    assert answer.locator(".failure").count() == 0
    assert answer.locator(".words").inner_text().startswith(before[:40])
    assert len(answer.locator(".words").inner_text()) > len(before)
