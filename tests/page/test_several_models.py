"""Models that are out of memory until a question brings them in: told in words, and asked like any other.

Where all states are to be seen at once, they are put into what the browser reads; the others are two models that the
daemon moves in and out.
"""

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon
from pairs import CHAT, Pair, pair, said
from playwright.sync_api import Route, expect
from waiting import until_sync

from page.browser import Tab, key_of
from page.conftest import Visit
from vllmd import sse
from vllmd.keys import Scope

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


# ── two models that the daemon moves in and out ──


@pytest.fixture
def both() -> Iterator[Pair]:
    """A model goes on for half a second when it is always asked and another one waits."""
    with pair(memory={"turn_s": 0.5}) as daemon:
        yield daemon


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[Pair, str]]:
    """It takes orders from whoever shows the key."""
    key = key_of(tmp_path / "keys", "boss", Scope.ADMIN)
    with pair(access={"keys": str(tmp_path / "keys")}) as daemon:
        yield daemon, key


def test_a_model_that_sleeps_wakes_for_a_question_and_for_a_button(keyed: tuple[Pair, str], visit: Visit) -> None:
    daemon, key = keyed
    tab = visit(daemon)
    tab.forgive("401")
    tab.open()
    tab.show_key(key)
    expect(tab.page.locator("#empty-state")).to_have_text("It is not loaded: a question loads it.")
    tab.ask("hello")
    engine = daemon.model("a").pid
    assert daemon.fetch(CHAT, "POST", said("b"))[0] == 200
    expect(tab.page.locator("#model-state")).to_have_text("asleep")
    expect(tab.ask("are you there?").locator(".words")).to_contain_text("tok15")
    assert daemon.states == {"a": "ready", "b": "asleep"}
    assert daemon.model("a").pid == engine
    tab.open("#service")
    cards = tab.page.locator(".engine")
    expect(cards.locator(".state-word")).to_have_text(["ready", "asleep"])
    expect(cards.nth(0).locator(".start-phases")).to_contain_text("waking up")
    expect(cards.nth(1).locator(".facts")).to_contain_text("takes 1.0 GiB")
    cards.nth(1).get_by_role("button", name="Load", exact=True).click()
    expect(cards.locator(".state-word")).to_have_text(["asleep", "ready"])
    unload = cards.nth(0).get_by_role("button", name="Unload")
    unload.click()
    unload.click()
    expect(cards.locator(".state-word")).to_have_text(["not loaded", "ready"])


def test_a_question_that_another_model_s_turn_holds_up_says_so(both: Pair, visit: Visit) -> None:
    both.control(tokens=1000, tokens_per_s=10)
    tab = visit(both)
    with stream(both, "a") as busy:
        tab.open_ready()
        with stream(both, "b"):
            until_sync(lambda: both.model("b").phase == "waiting for memory", "b to wait for memory")
            waiting = tab.send("and me?").locator(".waiting")
            expect(waiting).to_contain_text("Another model gets its memory when the running requests have ended")
            both.control()
            busy.close()
            tab.until_done(tab.answers.last)


@contextmanager
def stream(daemon: Pair, model: str) -> Iterator[http.client.HTTPConnection]:
    """A stream of somebody else's, which has begun, or waits for its model."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    try:
        connection.request("POST", CHAT, json.dumps({**said(model), "stream": True}), {})
        connection.getresponse()
        yield connection
    finally:
        connection.close()
