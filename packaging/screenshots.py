"""Renews the pictures of the README, packaging/screenshots/*.png: the page on the fake engine, in Debian's chromium.

usage: python packaging/screenshots.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from daemons import Daemon, running  # noqa: E402
from page.browser import Tab, chromium  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

FOLDER = ROOT / "packaging" / "screenshots"
SIZE = {"width": 1040, "height": 720}
MODEL = "qwen2-7b-instruct"
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
        tab.page.get_by_role("link", name="Service").click()
        expect(tab.page.locator("#service")).not_to_be_empty()
        tab.page.screenshot(path=FOLDER / "service.png")
        tab.see_to_its_end()


if __name__ == "__main__":
    main()
