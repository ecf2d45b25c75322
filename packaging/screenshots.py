"""Renews the pictures of the README, packaging/screenshots/*.png: the page on the fake engine, in Debian's chromium.

usage: python packaging/screenshots.py
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from daemons import Daemon, running  # noqa: E402
from page.browser import Tab, chromium  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

FOLDER = ROOT / "packaging" / "screenshots"
SIZE = {"width": 1040, "height": 720}
MODEL = "qwen2-7b-instruct"
VISITORS = 7
QUESTION = "How do I read a large file line by line in Python?"
ANSWER = """Open it with `with`, so that it is closed whatever happens, and go over its lines:

```python
with open("large.log", encoding="utf-8") as file:
    for line in file:
        print(line.rstrip("\\n"))
```

A file is its own iterator, so only **one line at a time** is in memory. Without `encoding` the locale decides.
"""


def main() -> None:
    """Takes both pictures."""
    FOLDER.mkdir(exist_ok=True)
    daemon = Daemon(knobs={"text": ANSWER, "tokens_per_s": 42})
    daemon.configure({}, {"models": {MODEL: daemon.tiny()}})
    with running(daemon), chromium() as browser:
        tab = Tab(browser.new_context(viewport=SIZE, device_scale_factor=1), daemon)
        tab.open_ready()
        tab.ask("What is a generator?")
        tab.page.keyboard.press("Alt+N")
        tab.ask(QUESTION)
        tab.page.mouse.move(0, 0)
        tab.page.screenshot(path=FOLDER / "chat.png")
        take_service(tab, daemon)
        tab.see_to_its_end()


def take_service(tab: Tab, daemon: Daemon) -> None:
    """The view of a service whose engine was killed, has started again, and has more and more to do."""
    daemon.control(ready_after_s=12, tokens=4000, tokens_per_s=42)
    os.kill(next(each.pid for each in daemon.status().models if each.pid), signal.SIGKILL)
    daemon.wait_for("starting")
    tab.page.get_by_role("link", name="Service").click()
    expect(tab.page.locator(".state-word")).to_have_text("ready")
    rows = tab.page.locator(".requests tbody tr")
    for number in range(VISITORS):
        threading.Thread(target=ask, args=(daemon, 1900 if number % 3 else 200), daemon=True).start()
        expect(rows.first).to_be_visible()
        tab.page.wait_for_timeout(2500)
    tab.page.screenshot(path=FOLDER / "service.png")


def ask(daemon: Daemon, tokens: int) -> None:
    """One visitor, who leaves with the answer, or with the daemon."""
    body = {"prompt": "x", "max_tokens": tokens}
    with suppress(OSError, HTTPException), urlopen(f"{daemon.url}/api/prompt", json.dumps(body).encode()) as answer:
        answer.read()


if __name__ == "__main__":
    main()
