"""Fixtures for every test: real daemons on the fake engine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from daemons import LAUNCHERS, Daemon, running
from waiting import until_sync


@pytest.fixture(scope="session", params=LAUNCHERS)
def shared_daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for all tests that leave it as they find it, on either event loop."""
    with running(Daemon(loop=request.param)) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon, with a harmless engine and an empty journal; afterwards it is as it was."""
    shared_daemon.control()
    shared_daemon.forget()
    yield shared_daemon
    shared_daemon.control()
    until_sync(lambda: _is_idle(shared_daemon), "no call to be left in vllmd")
    assert shared_daemon.status().state == "ready", shared_daemon.log


def _is_idle(daemon: Daemon) -> bool:
    model = daemon.model()
    return model.running == model.held == 0


Start = Callable[..., Daemon]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons of the test's own: `start(ready=True, **what Daemon takes)`."""
    with ExitStack() as stack:

        def start(*, ready: bool = True, **how: Any) -> Daemon:
            return stack.enter_context(running(Daemon(**how), ready=ready))

        yield start
