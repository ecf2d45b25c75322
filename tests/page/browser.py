"""A real browser on the chat page: Debian's chromium, by playwright, with whatever must never happen looked out for."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from daemons import Daemon
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Route, expect, sync_playwright

from vllmd import keys
from vllmd.keys import Scope

CHROMIUM = shutil.which("chromium")

PATIENCE_MS = 30_000

FLAGS = [
    "--no-sandbox",  # tests may run as root
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

AXE_RULES = {"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser, without a window."""
    assert CHROMIUM is not None
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=2 * PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


def key_of(file: Path, name: str, scope: Scope) -> str:
    """A fresh key, which the file knows from now on."""
    key, text = keys.new(name, scope)
    keys.change(file, lambda old: (*old, key))
    return text


class Tab:
    """One visitor with one tab on the page of a daemon, a stranger to all others.

    Args:
        context: a fresh one.
        daemon: whose page it is.
    """

    def __init__(self, context: BrowserContext, daemon: Daemon) -> None:
        self._context, self._daemon = context, daemon
        self._wrong: list[str] = []
        self._forgiven: list[str] = []
        self.page = self.another()
        context.route("**/*", self._only_own)

    def another(self) -> Page:
        """One more tab of the same visitor."""
        page = self._context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._wrong.append(f"an exception: {error}"))
        page.on("dialog", lambda dialog: self._wrong.append(f"a dialog: {dialog.message}"))
        return page

    def forgive(self, pattern: str) -> None:
        """What the browser says of refused requests is expected here."""
        self._forgiven.append(pattern)

    def see_to_its_end(self) -> None:
        """Closes it, and asserts that nothing was wrong in it: no error, nothing blocked, no other host asked."""
        self._context.close()
        wrong = [each for each in self._wrong if not any(re.search(pattern, each) for pattern in self._forgiven)]
        assert not wrong, "\n".join(wrong)

    def _only_own(self, route: Route) -> None:
        if route.request.url.startswith(f"{self._daemon.url}/"):
            route.fallback()
        else:
            self._wrong.append(f"another host was asked: {route.request.url}")
            route.abort()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self._wrong.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    # ── what one does ──

    def open(self, view: str = "") -> "Tab":
        self.page.goto(f"{self._daemon.url}/{view}")
        return self

    def without_limit(self) -> "Tab":
        """From now on answers may be as long as they like."""
        self._context.add_init_script("""try { localStorage['vllmd.knobs'] = '{"max_tokens": null}' } catch {}""")
        return self

    def show_key(self, text: str) -> None:
        """Answers the page, which asks for a key."""
        self.page.locator("#key-text").fill(text)
        self.page.locator("#key-text").press("Enter")

    def open_ready(self) -> "Tab":
        self.open()
        expect(self.page.locator("#empty-state")).to_have_text("Ready.")
        return self

    def write(self, text: str) -> None:
        self.page.locator("#question").fill(text)

    def send(self, text: str) -> Locator:
        """Asks; returns the answer, which may still grow."""
        count = self.answers.count()
        self.write(text)
        self.page.keyboard.press("Enter")
        expect(self.answers).to_have_count(count + 1)
        return self.answers.last

    def ask(self, text: str) -> Locator:
        """Asks, and waits until the answer is complete."""
        answer = self.send(text)
        self.until_done(answer)
        return answer

    def until_done(self, answer: Locator, patience_ms: float = PATIENCE_MS) -> None:
        expect(answer.locator(".under .tools")).to_be_attached(timeout=patience_ms)
        expect(self.page.locator("#stop")).to_be_hidden()

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answer")

    @property
    def questions(self) -> Locator:
        return self.page.locator(".question .words")

    def kept(self) -> list[dict[str, Any]]:
        """The conversations that this browser keeps."""
        found: list[dict[str, Any]] = self.page.evaluate(
            "Object.keys(localStorage).filter(k => k.startsWith('vllmd.conversation.'))"
            ".map(k => JSON.parse(localStorage[k]))"
        )
        return found

    def faults(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        self.page.emulate_media(reduced_motion="reduce")  # what is half faded in has half the contrast
        found = Axe().run(self.page, options=AXE_RULES).response["violations"]
        self.page.emulate_media(reduced_motion="no-preference")
        return [
            f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes']]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def overflows(self) -> bool:
        """Whether one would have to scroll sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))
