"""A conversation: written, streamed, stopped, asked again, changed, kept and taken along."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon
from playwright.sync_api import expect
from waiting import until_sync

from page.browser import Tab
from page.conftest import Visit

LOOPS = ("uvloop",)

pytestmark = pytest.mark.timeout(300)


def last_request(daemon: Daemon) -> dict[str, Any]:
    body: dict[str, Any] = daemon.requests()[-1]["body"]
    return body


def test_a_question_is_answered_word_by_word(daemon: Daemon, tab: Tab) -> None:
    daemon.control(tokens=6, fault="hang", fault_after=3)
    tab.open_ready()
    tab.write("one")
    tab.page.keyboard.press("Shift+Enter")
    tab.page.keyboard.type("two")
    tab.page.keyboard.press("Enter")
    answer = tab.answers.last
    expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2")
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(tab.page.locator("#question")).to_have_value("")
    daemon.control(tokens=6)
    tab.until_done(answer)
    expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2 tok3 tok4 tok5")
    expect(answer.locator(".figures")).to_contain_text("6 tokens · ")
    expect(answer.locator(".figures")).to_contain_text("first after ")
    expect(tab.questions).to_have_text("one\ntwo")
    body = last_request(daemon)
    assert body["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.7, 512, "tiny")
    assert not {"seed", "stop", "top_p"} & set(body), "what nobody set is the model's to choose"
    tab.ask("three")
    assert [each["content"] for each in last_request(daemon)["messages"]] == [
        "one\ntwo",
        "tok0 tok1 tok2 tok3 tok4 tok5",
        "three",
    ]


def test_stop_ends_the_engine_s_work(daemon: Daemon, tab: Tab) -> None:
    daemon.control(tokens=100_000, tokens_per_s=20)
    tab.open_ready()
    for number, way in enumerate(("key", "button"), 1):
        answer = tab.send("on and on")
        expect(answer.locator(".words")).to_contain_text("tok3")
        if way == "key":
            tab.page.keyboard.press("Escape")
        else:
            tab.page.locator("#stop").click()
        tab.until_done(answer)
        expect(answer.locator(".under")).to_contain_text("Stopped")
        until_sync(partial(_has_ended, daemon, number), "the engine to end its work")
        assert daemon.journal("end")[-1]["how"] == "cancelled"
    until_sync(lambda: daemon.model().running == 0, "vllmd to have nothing to do")


def _has_ended(daemon: Daemon, count: int) -> bool:
    return len(daemon.journal("end")) == count


def test_a_reload_keeps_the_conversation(daemon: Daemon, tab: Tab) -> None:
    daemon.control(tokens=100_000, tokens_per_s=20)
    tab.open_ready()
    answer = tab.send("to be kept")
    expect(answer.locator(".words")).to_contain_text("tok3")
    tab.page.reload()
    expect(tab.questions).to_have_text("to be kept")
    expect(tab.answers.locator(".words")).to_contain_text("tok0 tok1")
    expect(tab.answers.locator(".under")).to_contain_text("Interrupted")
    until_sync(lambda: daemon.journal("end"), "the engine to end its work")
    daemon.control(tokens=2)
    tab.answers.get_by_text("Try again").click()
    expect(tab.answers.locator(".words")).to_have_text("tok0 tok1")
    tab.until_done(tab.answers)
    assert len(last_request(daemon)["messages"]) == 1


def test_regenerate_edit_and_undo(daemon: Daemon, tab: Tab) -> None:
    daemon.control(echo=1)
    tab.open_ready()
    tab.ask("first")
    tab.ask("second")
    daemon.control(tokens=3)
    tab.answers.last.get_by_text("Regenerate").click()
    expect(tab.answers.last.locator(".words")).to_have_text("tok0 tok1 tok2")
    tab.until_done(tab.answers.last)
    daemon.control(echo=1)
    tab.page.locator(".question").first.hover()
    tab.page.locator(".question").first.get_by_text("Edit").click()
    tab.page.get_by_label("Edit your message").fill("changed")
    tab.page.keyboard.press("Enter")
    expect(tab.questions).to_have_text(["changed"])
    expect(tab.answers.locator(".words")).to_have_text(["changed"])
    tab.until_done(tab.answers)
    assert [each["content"] for each in last_request(daemon)["messages"]] == ["changed"]
    tab.page.get_by_text("Undo").click()
    expect(tab.questions).to_have_text(["first", "second"])
    expect(tab.answers.locator(".words")).to_have_text(["first", "tok0 tok1 tok2"])
    tab.page.locator("#question").focus()
    tab.page.keyboard.press("ArrowUp")
    expect(tab.page.get_by_label("Edit your message")).to_have_value("second")
    tab.page.keyboard.press("Escape")
    expect(tab.questions).to_have_text(["first", "second"])


def test_settings_go_with_the_question(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.get_by_label("System prompt").fill("Be brief.")
    tab.page.locator("#temperature").fill("1.5")
    tab.page.locator("#top_p").fill("0.9")
    tab.page.locator("#max_tokens").fill("4")
    tab.page.locator("#seed").fill("7")
    tab.page.locator("#stop-words").fill("###\nEND")
    tab.page.get_by_role("button", name="Done").click()
    answer = tab.ask("hi")
    expect(answer.locator(".words")).to_have_text("tok0 tok1 tok2 tok3")
    expect(answer.locator(".under")).to_contain_text("Cut off at its longest length")
    body = last_request(daemon)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    told = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert told == {"temperature": 1.5, "top_p": 0.9, "max_tokens": 4, "seed": 7, "stop": ["###", "END"]}
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.locator("#max_tokens").fill("0")
    tab.page.get_by_role("button", name="Done").click()
    expect(tab.page.locator("#knobs")).to_be_visible()
    tab.page.keyboard.press("Escape")
    tab.ask("again")
    assert last_request(daemon)["max_tokens"] == 4, "what is out of range is not taken"


def test_many_conversations_and_the_way_out_of_the_browser(daemon: Daemon, tab: Tab) -> None:
    daemon.control(text="An *answer*.")
    tab.open_ready()
    tab.ask("the first")
    tab.page.keyboard.press("Alt+N")
    expect(tab.answers).to_have_count(0)
    tab.ask("the second")
    listed = tab.page.locator("#conversations .open")
    expect(listed).to_have_text(["the second", "the first"])
    listed.last.click()
    expect(tab.questions).to_have_text("the first")
    for label, ending in (("Save as Markdown", "md"), ("Save as JSON", "json")):
        tab.page.locator("#menu summary").click()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == f"the-first.{ending}"
        text = Path(download.value.path()).read_text()
        if ending == "md":
            assert text == "# the first\n\n## You\n\nthe first\n\n## tiny\n\nAn *answer*.\n"
        else:
            assert [each["content"] for each in json.loads(text)["messages"]] == ["the first", "An *answer*."]
    tab.page.get_by_role("button", name="Delete: the second").click()
    expect(listed).to_have_text(["the first"])
    assert [each["title"] for each in tab.kept()] == ["the first"]
    tab.page.get_by_text("Undo").click()
    expect(listed).to_have_count(2)
    expect(tab.questions).to_have_text("the second")


def test_two_tabs_see_each_other_s_conversations(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    other = tab.another()
    other.goto(daemon.url)
    tab.ask("here")
    expect(other.locator("#conversations .open")).to_have_text(["here"])


def test_a_full_browser_is_told_of_and_loses_nothing(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    tab.page.evaluate(
        "for (let size = 4e6; size >= 1; size /= 2)"
        "try { for (let i = 0; ; i++) localStorage['x' + size + i] = 'x'.repeat(size) } catch {}"
    )
    answer = tab.ask("no room for this")
    expect(answer.locator(".words")).to_contain_text("tok15")
    expect(tab.page.locator("#notice")).to_contain_text("room for conversations is full")
    tab.page.evaluate("localStorage.clear()")
    tab.ask("but for this")
    (kept,) = tab.kept()
    assert len(kept["messages"]) == 4


def test_code_is_copied_as_it_is(daemon: Daemon, visit: Visit) -> None:
    code = 'if x < 1:\n    print("a & b")\n'
    daemon.control(text=f"So:\n\n```python\n{code}```\n")
    tab = visit(daemon, permissions=["clipboard-read", "clipboard-write"]).open_ready()
    answer = tab.ask("code?")
    expect(answer.locator(".code header")).to_contain_text("python")
    answer.get_by_role("button", name="Copy code").click()
    expect(answer.locator(".code header button")).to_have_text("Copied")
    assert tab.page.evaluate("navigator.clipboard.readText()") == code.rstrip("\n")
    answer.locator(".tools").get_by_text("Copy").click()
    expect(answer.locator(".tools").get_by_text("Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == f"So:\n\n```python\n{code}```\n"


def test_an_input_method_keeps_its_enter(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    tab.page.locator("#question").focus()
    session = tab.page.context.new_cdp_session(tab.page)
    session.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    for kind in ("rawKeyDown", "keyUp"):
        session.send(
            "Input.dispatchKeyEvent", {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
        )
    expect(tab.answers).to_have_count(0)
    session.send("Input.insertText", {"text": "你好"})
    expect(tab.page.locator("#question")).to_have_value("你好")
    tab.page.keyboard.press("Enter")
    expect(tab.questions).to_have_text("你好")
    tab.until_done(tab.answers)


def test_all_of_it_by_keyboard(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    expect(tab.page.locator("#question")).to_be_focused()
    tab.page.keyboard.type("by keys alone")
    tab.page.keyboard.press("Enter")
    tab.until_done(tab.answers)
    expect(tab.page.locator("#question")).to_be_focused()
    reached: list[str] = []
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        reached.append(
            tab.page.evaluate("(e => e.id || e.getAttribute('aria-label') || e.textContent)(document.activeElement)")
        )
        if reached[-1] == "question":
            break
    needed = [
        "model",
        "open-knobs",
        "to-chat",
        "to-service",
        "theme",
        "new",
        "by keys alone",
        "scroll",
        "Edit",
        "Copy",
        "Regenerate",
    ]
    assert [each for each in needed if each not in reached] == [], reached
    tab.page.locator("#open-knobs").focus()
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#knobs")).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#knobs")).to_be_hidden()
    expect(tab.page.locator("#open-knobs")).to_be_focused()


def test_a_reader_hears_sentences_and_not_words(daemon: Daemon, tab: Tab) -> None:
    daemon.control(text="First one. Second one! 第三句。And the rest")
    tab.open_ready()
    tab.page.evaluate(
        "window.heard = []; new MutationObserver(list => list.forEach(each => each.addedNodes.forEach("
        "node => heard.push(node.textContent)))).observe(document.getElementById('spoken'), {childList: true})"
    )
    tab.ask("speak")
    assert tab.page.evaluate("heard") == [
        "First one.",
        "Second one!",
        "第三句。",
        "And the rest",
        "The answer is complete.",
    ]
    expect(tab.page.locator("#scroll")).to_have_attribute("aria-live", "off")


def test_the_second_view_comes_and_goes(daemon: Daemon, tab: Tab) -> None:
    tab.open("#service")
    expect(tab.page.locator("#service")).not_to_be_empty()
    expect(tab.page.locator("#chat")).to_be_hidden()
    tab.page.get_by_role("link", name="Chat").click()
    expect(tab.page.locator("#service")).to_be_empty()
    expect(tab.page.locator("#question")).to_be_visible()


def test_events_are_read_however_they_are_cut(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    stream = ": note\r\n\r\ndata: a\ndata:b\nevent: x\nid: 3\n\ndata: c\r\rdata\n\nid: 4\n\n"
    for size in (1, 2, 3, 7, 100):
        found = tab.page.evaluate(
            "async ([text, size]) => { const { Decoder } = await import('/page/sse.js'); const decoder = new Decoder();"
            "const found = []; const feed = (piece) => found.push(...decoder.feed(piece));"
            "for (let i = 0; i < text.length; i += size) feed(text.slice(i, i + size));"
            "return found.map(each => [each.event, each.data, each.id, each.comment]) }",
            [stream, size],
        )
        assert found == [
            ["message", None, None, "note"],
            ["x", "a\nb", "3", None],
            ["message", "c", None, None],
            ["message", "", None, None],
        ], size
