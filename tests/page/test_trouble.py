"""What the page shows when all is not well: never a cursor that stands still for no reason."""

import signal
from pathlib import Path

import pytest
from conftest import Start
from daemons import Daemon
from playwright.sync_api import expect

from page.browser import Tab
from page.conftest import Visit
from vllmd import keys
from vllmd.keys import Scope

LOOPS = ("uvloop",)

pytestmark = pytest.mark.timeout(300)

TOO_LONG = "word " * 2100
"""The fake engine takes 2048 tokens: it refuses this by itself, and a health check never meets the refusal."""


def test_while_the_model_loads_the_page_says_so_and_sends_the_question_then(start: Start, visit: Visit) -> None:
    daemon = start(ready=False, knobs={"ready_after_s": 600, "start_at": 0.5, "start_end": "never"})
    daemon.wait_for("starting")
    tab = visit(daemon).open()
    expect(tab.page.locator("#empty-state")).to_contain_text("It is on its way")
    expect(tab.page.locator("#model-dot")).to_have_attribute("data-state", "starting")
    answer = tab.send("as soon as you can")
    expect(answer.locator(".waiting")).to_contain_text("The question is sent as soon as the model is ready.")
    daemon.control(tokens=3)
    daemon.order("restart")
    expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2")
    tab.until_done(answer)
    expect(answer.locator(".waiting")).to_have_count(0)
    assert len(daemon.requests()) == 1


def test_phase_percent_and_what_is_left_are_shown(daemon: Daemon, tab: Tab) -> None:
    """As `/api/events` would say it: what the engine's log becomes is tested elsewhere."""
    tab.open_ready()
    shown = tab.page.evaluate(
        """async () => {
            const { Waiting } = await import("/page/waiting.js");
            const models = Object.assign(new EventTarget(), { failure: null, get: () => (
                { name: "tiny", state: "starting", phase: "loading weights", percent: 43, eta_s: 38 }) });
            const waiting = new Waiting(models, "tiny");
            const shown = [waiting.element.textContent, waiting.element.querySelector("progress").value];
            waiting.end();
            return shown;
        }"""
    )
    text, percent = shown
    assert text.startswith("Loading weights 43 %about 40 s left")
    assert percent == 43


@pytest.mark.parametrize("continuation", [True, False])
def test_an_engine_that_dies_in_mid_answer(start: Start, visit: Visit, continuation: bool) -> None:
    knobs = {"tokens": 6, "tokens_per_s": 10, "fault": "cut", "fault_after": 3, "fault_exit": "SIGKILL"}
    daemon = start(replay={"continuation": continuation})
    daemon.control(**knobs, once=str(daemon.folder / "once"))
    tab = visit(daemon).open_ready()
    answer = tab.ask("go on")
    if continuation:
        expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2 tok3 tok4 tok5")
        expect(answer.locator(".failure")).to_have_count(0)
    else:
        expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2")
        expect(answer.locator(".failure .said")).not_to_be_empty()
        expect(answer.locator(".failure .whose")).to_have_text("Says the engine.")
        expect(tab.page.locator(".streaming")).to_have_count(0)
        answer.get_by_text("Try again").click()
        expect(tab.answers.locator(".words")).to_have_text("tok0 tok1 tok2 tok3 tok4 tok5")
        tab.until_done(tab.answers)


def test_errors_are_told_as_the_api_tells_them(daemon: Daemon, tab: Tab) -> None:
    tab.forgive("Failed to load resource: .* 400")
    tab.open_ready()
    daemon.control(tokens=6, tokens_per_s=10, fault="error:400", fault_after=2)
    answer = tab.ask("break")
    expect(answer.locator(".words")).to_have_text("tok0 tok1")
    expect(answer.locator(".failure .said")).to_contain_text("Grammar error")
    daemon.control()
    answer = tab.ask(TOO_LONG)
    expect(answer.locator(".failure .said")).to_contain_text("maximum context length")
    expect(answer.locator(".failure .whose")).to_have_text("Says the engine.")
    tab.page.reload()
    expect(tab.answers.locator(".failure")).to_have_count(2)
    tab.page.locator(".question").last.hover()
    tab.page.locator(".question").last.get_by_text("Edit").click()
    tab.page.get_by_label("Edit your message").fill("well again")
    tab.page.keyboard.press("Enter")
    expect(tab.answers.last.locator(".words")).to_contain_text("tok15")
    tab.until_done(tab.answers.last)
    assert [each["role"] for each in daemon.requests()[-1]["body"]["messages"]] == ["user", "assistant", "user"]


def test_a_lost_vllmd_is_told_of_and_found_again(start: Start, visit: Visit) -> None:
    daemon = start(knobs={"tokens": 100_000, "tokens_per_s": 20})
    tab = visit(daemon).open_ready()
    tab.forgive("net::ERR_")
    answer = tab.send("and then")
    expect(answer.locator(".words")).to_contain_text("tok3")
    daemon.signal(signal.SIGKILL)
    tab.until_done(answer)
    expect(answer.locator(".failure .said")).to_have_text("The connection broke off before the answer was complete")
    expect(answer.locator(".words")).to_contain_text("tok3")
    expect(tab.page.locator("#model-state")).to_have_text("vllmd cannot be reached")
    daemon.wait()
    daemon.control()
    answer = tab.ask("are you there?")
    expect(answer.locator(".failure .said")).to_have_text("vllmd cannot be reached")
    daemon.start()
    expect(tab.page.locator("#model-dot")).to_have_attribute("data-state", "ready")
    answer.get_by_text("Try again").click()
    expect(tab.answers.last.locator(".words")).to_contain_text("tok15")
    tab.until_done(tab.answers.last)


def test_a_key_is_asked_for_and_kept(start: Start, visit: Visit, tmp_path: Path) -> None:
    made = [keys.new(name, Scope.INFERENCE) for name in ("one", "other")]
    keys.change(tmp_path / "keys", lambda old: (*old, *(key for key, _ in made)))
    (_, first), (_, second) = made
    daemon = start(access={"keys": str(tmp_path / "keys")})
    tab = visit(daemon)
    tab.forgive("Failed to load resource: .* 401")
    tab.open()
    field, use = tab.page.get_by_label("API key"), tab.page.get_by_role("button", name="Use this key")
    field.fill("wrong")
    use.click()
    expect(tab.page.locator("#key-reason")).to_contain_text("none of this service's")
    field.fill(first)
    use.click()
    expect(tab.page.locator("#empty-state")).to_have_text("Ready.")
    tab.ask("with a key")
    assert tab.page.evaluate("[sessionStorage['vllmd.key'], localStorage['vllmd.key']]") == [first, None]
    keys.change(tmp_path / "keys", lambda old: tuple(each for each in old if each.name != "one"))
    answer = tab.send("with a key that was revoked")
    field.fill(second)
    tab.page.get_by_label("Remember it in this browser").check()
    use.click()
    tab.until_done(answer)
    expect(answer.locator(".words")).to_contain_text("tok15")
    assert tab.page.evaluate("[sessionStorage['vllmd.key'] ?? null, localStorage['vllmd.key']]") == [None, second]
    assert first not in str(tab.kept())
    tab.page.reload()
    expect(tab.answers).to_have_count(2)
    expect(tab.page.locator("#model-dot")).to_have_attribute("data-state", "ready")
    expect(tab.page.locator("#key")).to_be_hidden()
    keys.change(tmp_path / "keys", lambda old: ())
    answer = tab.send("without")
    expect(tab.page.locator("#key")).to_be_visible()
    tab.page.get_by_role("button", name="Cancel").click()
    expect(answer.locator(".failure .said")).to_contain_text("none of this service's")
