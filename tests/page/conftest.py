"""One browser for the tests of a module, and a visitor for each."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemons import Daemon
from playwright.sync_api import Browser

from page.browser import CHROMIUM, Tab, chromium

Visit = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module at a time: playwright's own event loop is in the way of tests that are coroutines."""
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM HERE: the chat page is not tested; packaging/test-tools.sh installs it")
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Visitors of the test's own: `visit(daemon, **how a browser's context is made)`. Nothing may be wrong for any."""
    tabs: list[Tab] = []

    def visit(daemon: Daemon, **how: Any) -> Tab:
        tabs.append(Tab(browser.new_context(**how), daemon))
        return tabs[-1]

    yield visit
    for tab in tabs:
        tab.see_to_its_end()


@pytest.fixture
def tab(daemon: Daemon, visit: Visit) -> Tab:
    """A visitor of the shared daemon."""
    return visit(daemon)
