"""Models that are out of memory until a question brings them in: told in words, and asked like any other.

Their states are put into what the browser reads; everything else is the real daemon.
"""

import json
import time
from typing import Any

from daemons import Daemon
from playwright.sync_api import Route, expect

from page.browser import Tab
from vllmd import sse

LOOPS = ("uvloop",)

GIB = 1 << 30


class Told:
    """What the browser is told of the models; it may change.

    Each connection for events is told the present states and ends, so that the page soon asks again.

    Args:
        tab: whose requests are answered.
        models: what each says other than the daemon's own model.
    """

    def __init__(self, tab: Tab, daemon: Daemon, *models: dict[str, Any]) -> None:
        self._status = daemon.fetch("/api/status")[1]
        self.tell(*models)
        tab.page.route("**/api/status", self._answer_status)
        tab.page.route("**/api/events", self._answer_events)

    def tell(self, *models: dict[str, Any]) -> None:
        """From now on they say this."""
        (real,) = self._status["models"]
        self._models = [{**real, **each} for each in models]

    def _answer_status(self, route: Route) -> None:
        route.fulfill(json={**self._status, "denied": "", "models": self._models})

    def _answer_events(self, route: Route) -> None:
        body = b"".join(sse.encode(json.dumps(each), event="model") for each in self._models)
        route.fulfill(body=body, content_type="text/event-stream")


def resting() -> list[dict[str, Any]]:
    now = time.time()
    return [
        {"on_demand": True, "used_at": now - 200, "claim_bytes": 16 * GIB, "state": "asleep"},
        {"name": "embeddings", "default": False, "load": "demand", "on_demand": True, "state": "stopped"},
        {"name": "dozer", "default": False, "on_demand": True, "state": "dozing", "phases": []},
        {"name": "by-hand", "default": False, "load": "manual", "state": "stopped"},
    ]


def test_the_service_s_view_tells_who_rests_and_how_to_have_it_back(daemon: Daemon, tab: Tab) -> None:
    Told(tab, daemon, *resting())
    tab.open("#service")
    cards = tab.page.locator(".engine")
    expect(cards.locator(".state-word")).to_have_text(["asleep", "not loaded", "falling asleep", "stopped"])
    facts = cards.locator(".facts")
    expect(facts.nth(0)).to_contain_text("last request 3 min ago · takes 16.0 GiB")
    expect(facts.nth(1)).to_contain_text("not loaded for ")
    expect(facts.nth(1)).to_contain_text("loaded on demand")
    expect(facts.nth(3)).to_contain_text("loaded by hand")
    orders = [each.get_by_role("button").all_inner_texts() for each in cards.locator(".orders").all()]
    assert orders == [["Load", "Unload"], ["Load"], ["Unload"], ["Load"]]
    assert not tab.faults()


def test_a_question_to_a_model_that_is_not_loaded_waits_and_says_for_what(daemon: Daemon, tab: Tab) -> None:
    away: dict[str, Any] = {"load": "demand", "on_demand": True, "state": "stopped"}
    told, asked = Told(tab, daemon, away), list[Route]()
    tab.page.route("**/v1/chat/completions", lambda route: asked.append(route))
    tab.open()
    expect(tab.page.locator("#empty-state")).to_have_text("It is not loaded: a question loads it.")
    expect(tab.page.locator("#model-state")).to_have_text("not loaded")
    told.tell({**away, "state": "asleep"})
    expect(tab.page.locator("#empty-state")).to_have_text("It is asleep: a question wakes it.")
    waiting = tab.send("wake up").locator(".waiting")
    expect(waiting).to_contain_text("The question is sent as soon as the model is ready.")
    for phase, shown in (("waiting for memory", "Waiting for memory"), ("waking up", "Waking up")):
        told.tell({**away, "state": "starting", "phase": phase})
        expect(waiting).to_contain_text(shown)
    told.tell({**away, "state": "ready"})
    asked[0].continue_()
    tab.until_done(tab.answers.last)
    expect(tab.answers.last.locator(".words")).to_contain_text("tok15")
    assert len(asked) == 1
