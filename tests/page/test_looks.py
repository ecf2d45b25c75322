"""Whether people can use it: those who see little, those on phones, those who read from the right."""

from collections.abc import Iterator

import pytest
from daemons import Daemon, running
from playwright.sync_api import expect

from page.browser import Tab
from page.conftest import Visit

LOOPS = ("uvloop",)

pytestmark = pytest.mark.timeout(300)

TOO_LONG = "word " * 2100
"""The fake engine refuses it by itself."""

RICH = (
    """# A heading

A paragraph with `code`, a [link](https://example.org) and **more**.

```python
print("a line of code that is far too long for the screen of any phone that people carry in their pockets")
```

| one | two | three | four | a-very-long-word-in-a-column |
|---|---|---|---|---|
| 1 | 2 | 3 | 4 | five |

- [x] done
- [ ] to do

> said by somebody

"""
    + "unbroken" * 40
)

LANGUAGES = """这是一个关于光的散射的简短说明。蓝光的波长较短,因此散射得更多。

هذه فقرة قصيرة باللغة العربية حول `print()` في بايثون.

- זו רשימה בעברית
- A list item in English

```python
print("שלום")
```
"""


@pytest.fixture(scope="module")
def loading() -> Iterator[Daemon]:
    """A daemon whose model loads for ever."""
    with running(Daemon(knobs={"start_end": "never", "start_at": 0.5}), ready=False) as daemon:
        daemon.wait_for("starting")
        yield daemon


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_any_state(daemon: Daemon, loading: Daemon, visit: Visit, theme: str) -> None:
    faults: dict[str, list[str]] = {}
    tab = visit(daemon, color_scheme=theme)
    tab.forgive("Failed to load resource: .* 400")
    tab.open_ready()
    faults["empty"] = tab.faults()
    daemon.control(text=RICH, fault="hang", fault_after=12)
    answer = tab.send("show me all you have")
    expect(answer.locator(".words")).to_contain_text("more")
    faults["streaming"] = tab.faults()
    daemon.control(text=RICH)
    tab.until_done(answer)
    tab.page.locator(".question").hover()
    faults["answer"] = tab.faults()
    tab.ask(TOO_LONG)
    tab.page.locator("#menu summary").click()
    faults["error and menu"] = tab.faults()
    tab.page.keyboard.press("Escape")
    tab.page.locator(".question").first.hover()
    tab.page.locator(".question").first.get_by_text("Edit").click()
    faults["editing"] = tab.faults()
    tab.page.get_by_role("button", name="Settings").click()
    faults["settings"] = tab.faults()
    away = visit(loading, color_scheme=theme).open()
    away.page.evaluate("document.getElementById('key').showModal()")
    faults["key"] = away.faults()
    away.page.get_by_role("button", name="Cancel").click()
    away.send("when you can")
    expect(away.answers.locator(".waiting")).to_contain_text("as soon as the model is ready")
    faults["loading"] = away.faults()
    assert {state: found for state, found in faults.items() if found} == {}


def test_the_theme_is_the_system_s_until_one_is_chosen(daemon: Daemon, visit: Visit) -> None:
    tab = visit(daemon, color_scheme="dark").open_ready()
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = tab.page.evaluate(colour)
    tab.page.get_by_role("button", name="Theme: as the system").click()
    light = tab.page.evaluate(colour)
    assert light != dark
    tab.page.reload()
    expect(tab.page.locator("html")).to_have_attribute("data-theme", "light")
    assert tab.page.evaluate(colour) == light
    tab.page.get_by_role("button", name="Theme: light").click()
    assert tab.page.evaluate(colour) == dark
    tab.page.emulate_media(color_scheme="light")
    assert tab.page.evaluate(colour) == dark, "the choice goes before the system"
    tab.page.get_by_role("button", name="Theme: dark").click()
    expect(tab.page.locator("html")).not_to_have_attribute("data-theme", "dark")
    assert tab.page.evaluate(colour) == light


def test_a_phone_of_320_pixels_shows_it_all(daemon: Daemon, visit: Visit) -> None:
    daemon.control(text=RICH)
    tab = visit(daemon, viewport={"width": 320, "height": 560}, has_touch=True, is_mobile=True).open_ready()
    assert not tab.overflows()
    tab.ask("a question-that-has-" + "no-break-" * 20)
    assert not tab.overflows()
    wide = tab.page.locator(".words > *").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0
    expect(tab.page.locator("#history")).not_to_be_in_viewport()
    tab.page.locator("#open-history").tap()
    expect(tab.page.locator("#conversations .open")).to_be_in_viewport()
    assert tab.faults() == []
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#open-history")).to_be_focused()
    tab.page.locator("#open-knobs").tap()
    expect(tab.page.locator("#knobs")).to_be_visible()
    assert not tab.overflows()


def test_each_block_has_the_direction_of_its_language(daemon: Daemon, tab: Tab) -> None:
    daemon.control(text=LANGUAGES, split="chars")
    tab.without_limit().open_ready()
    answer = tab.ask("שלום, מה שלומך?")
    directions = "all => all.map(each => getComputedStyle(each).direction)"
    assert tab.questions.evaluate_all(directions) == ["rtl"]
    assert answer.locator(".words > p").evaluate_all(directions) == ["ltr", "rtl"]
    assert answer.locator("li").evaluate_all(directions) == ["rtl", "ltr"]
    assert answer.locator("pre").evaluate_all(directions) == ["ltr"]
    expect(answer.locator(".words > p").first).to_have_text(
        "这是一个关于光的散射的简短说明。蓝光的波长较短,因此散射得更多。"
    )


def test_a_long_answer_is_followed_until_one_scrolls(daemon: Daemon, tab: Tab) -> None:
    daemon.control(text="line\n\n" * 200, fault="hang", fault_after=150)
    tab.open_ready()
    answer = tab.send("long")
    expect(answer.locator("p").nth(140)).to_be_in_viewport()
    tab.page.locator("#scroll").hover()
    tab.page.mouse.wheel(0, -2000)
    expect(tab.page.get_by_text("Jump to the end")).to_be_visible()
    daemon.control(text="line\n\n" * 200)
    tab.until_done(answer)
    expect(answer.locator("p").nth(190)).not_to_be_in_viewport()
    tab.page.get_by_text("Jump to the end").click()
    expect(answer.locator("p").nth(199)).to_be_in_viewport()


def test_what_streams_is_what_a_reload_shows(daemon: Daemon, tab: Tab) -> None:
    daemon.control(text=RICH + "\n\n" + LANGUAGES + "\n\n[late]: https://example.org\n\nSee [late].", split="chars")
    tab.without_limit().open_ready()
    answer = tab.ask("all")
    markup = "each => each.querySelector('.words').innerHTML"
    streamed = answer.evaluate(markup)
    tab.page.reload()
    expect(tab.answers).to_contain_text("See late")
    assert tab.answers.evaluate(markup) == streamed
    assert 'href="https://example.org"' in streamed
