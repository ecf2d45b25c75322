"""Fixtures for every test: real daemons on the fake engine."""

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
from daemons import LAUNCHERS, Daemon, running
from hypothesis import HealthCheck, settings
from loopback_hub import LoopbackHub, serving
from pulls import MODEL, REPO, TOKEN
from sharing import Sharing, longest_first
from waiting import until_sync
from xdist.remote import Producer

from vllmd.routes import PROMPT

# On a machine that is busy with other things, how long an example takes says nothing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    """Which worker gets which tests."""
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the longest."""
    items.sort(key=lambda item: longest_first(item.nodeid))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the tests of the shared daemon on either event loop, or on those that their module names in LOOPS."""
    if "shared_daemon" in metafunc.fixturenames:
        loops = getattr(metafunc.module, "LOOPS", tuple(LAUNCHERS))
        metafunc.parametrize("shared_daemon", loops, indirect=True, scope="module")


@pytest.fixture(scope="session")
def on_loop() -> Iterator[Callable[[str], Daemon]]:
    """One daemon for each event loop, from the first test on that asks for it, in whatever order tests come."""
    with ExitStack() as stack:
        yield cache(lambda loop: stack.enter_context(running(Daemon(loop=loop))))


@pytest.fixture(scope="module")
def shared_daemon(request: pytest.FixtureRequest, on_loop: Callable[[str], Daemon]) -> Daemon:
    """One daemon for all tests that leave it as they find it."""
    return on_loop(request.param)


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon, with a harmless engine and an empty journal; afterwards it is as it was."""
    shared_daemon.control()
    shared_daemon.forget()
    yield shared_daemon
    shared_daemon.control()
    until_sync(lambda: _is_idle(shared_daemon), "vllmd to be ready and without any call")


def _is_idle(daemon: Daemon) -> bool:
    model = daemon.model()
    return model.state == "ready" and model.running == model.held == 0


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A hub that has one model, and knows one token."""
    with serving() as hub:
        hub.token = TOKEN
        hub.put(REPO, MODEL)
        yield hub


@pytest.fixture
async def still_serves(daemon: Daemon) -> AsyncIterator[None]:
    """Whatever was sent before: the next request is answered."""
    yield
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert answer.whole
    assert answer.events[-1].name == "done"


Start = Callable[..., Daemon]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons of the test's own: `start(ready=True, **what Daemon takes)`."""
    with ExitStack() as stack:

        def start(*, ready: bool = True, **how: Any) -> Daemon:
            return stack.enter_context(running(Daemon(**how), ready=ready))

        yield start


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
