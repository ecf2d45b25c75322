"""The composition root: arguments → configuration → objects wired → run → exit status. It knows everybody and decides
nothing."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from vllmd import __version__
from vllmd.config import Config, load, locate
from vllmd.engine.environment import ensure
from vllmd.engine.feed import Feed
from vllmd.engine.plan import Plan
from vllmd.engine.runtime import exclusive
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import ExitStatus, NotReady, VllmdError, outcome_of
from vllmd.lifecycle import Load
from vllmd.notify import Notifier
from vllmd.oneline import OneLine
from vllmd.server.accounts import Accounts
from vllmd.server.app import build
from vllmd.server.calls import Calls
from vllmd.server.clients import Census
from vllmd.server.keyring import open_keyring
from vllmd.server.sockets import addresses_of, listening, serving

T = TypeVar("T")

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/vllmd/vllmd.toml")

STATUS_INTERVAL_S = 5.0
SETTLED_S = 60.0

OPEN_FILES = 65536
"""As many as the shipped unit allows: a running stream is two of them."""

CUT_SHORT_S = 5.0
"""Seconds that clients whose calls were cut short get to take the error."""


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `vllmd`; leaves the process."""
    arguments = parser().parse_args(argv)
    _log_to_stderr(arguments.verbose)
    try:
        config = locate(load(arguments.config), os.environ, os.getuid())
        sys.exit(arguments.act(config, arguments))
    except KeyboardInterrupt:
        sys.exit(ExitStatus.INTERRUPTED)
    except VllmdError as error:
        for line in error.message.splitlines():
            print(f"vllmd: {line}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        sys.exit(outcome_of(error).exit_status)


def parser() -> argparse.ArgumentParser:
    """The command line of `vllmd`."""
    parser = argparse.ArgumentParser("vllmd", description="Runs vLLM as a service and streams its answers.")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"vllmd {__version__}")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", dest="act", action="store_const", const=_check, help="check the configuration and exit"
    )
    what.add_argument(
        "--install", dest="act", action="store_const", const=_install, help="build the engine's environment and exit"
    )
    parser.set_defaults(act=_serve)
    return parser


def _log_to_stderr(verbose: bool) -> None:
    # The journal has its own clock; a terminal or a file needs the time in the line.
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(OneLine(f"{stamp}%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[stderr], level=logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _check(config: Config, arguments: argparse.Namespace) -> int:
    for name, model in config.models.items():
        print(f"{name}: {model.model}{' (default)' if model.default else ''}")
    print(f"{arguments.config}: no mistakes found")
    return 0


def _install(config: Config, arguments: argparse.Namespace) -> int:
    if config.environment.path:
        print(f"nothing to install: environment.path is {config.environment.path}")
        return 0
    settings = config.environment
    install = ensure(settings.requirement, Path(config.paths.state) / "environments", settings.python, print)
    print(_run(install).root)
    return 0


def _serve(config: Config, arguments: argparse.Namespace) -> int:
    _raise_limits()
    with suppress(OSError):  # who needs it says what is wrong with it
        Path(config.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    _run(serve(config))
    return 0


def _raise_limits() -> None:
    """Opens as many files as it may: most processes begin with leave for 1024 (systemd.exec(5), LimitNOFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def serve(config: Config) -> None:
    """Runs the daemon until SIGTERM or SIGINT, then ends every stream and every engine in order.

    Raises:
        ConfigError: the file of the keys cannot be used.
        AddressError: a door cannot be opened, or the directories are too deep for the engines' sockets.
    """
    feed, accounts, keyring = Feed(), Accounts(config.limits), open_keyring(config.access.keys, os.environ)
    calls = Calls(accounts)
    with (
        Notifier() as notifier,
        exclusive(Path(config.paths.runtime)),
        listening(config.listen, os.environ, has_keys=keyring is not None) as sockets,
        _signals() as signals,
    ):
        supervisors = _supervisors(config, feed, notifier)
        app = build(config, supervisors, feed, calls, accounts, keyring, addresses_of(sockets))
        census = Census(config.limits)
        for supervisor in supervisors.values():
            supervisor.post(Load())  # before the doors open: sockets that systemd passes have clients waiting already
        async with _running(supervisors, config.default_model, feed, notifier), serving(app, sockets, census) as doors:
            log.info("vllmd %s listens on %s", __version__, ", ".join(addresses_of(sockets)))
            await signals.get()
            log.info("stopping: running streams get %g s to finish", config.relay.drain_s)
            notifier.stopping()
            await doors.close()
            await _drain(calls, config.relay.drain_s, signals)
            # Who signals once more need not wait for the engines either: leaving the block kills them.
            await _unless_hurried(*(each.close() for each in supervisors.values()), signals=signals)
    log.info("stopped")


def _supervisors(config: Config, feed: Feed, notifier: Notifier) -> dict[str, Supervisor]:
    def extend() -> None:
        notifier.extend(config.supervision.startup_stall_s)

    plans = [Plan(name, model, config.environment, config.paths, os.environ) for name, model in config.models.items()]
    for plan in plans:
        plan.check()
    return {plan.name: Supervisor(plan, config.supervision, feed, extend) for plan in plans}


@contextmanager
def _signals() -> Iterator["asyncio.Queue[signal.Signals]"]:
    """SIGTERM and SIGINT as they come, instead of their default effect."""
    loop, received = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _running(
    supervisors: Mapping[str, Supervisor], default: str, feed: Feed, notifier: Notifier
) -> AsyncIterator[None]:
    """Supervisors and the conversation with systemd, for as long as the block lasts."""
    async with asyncio.TaskGroup() as group:
        works = [each.run() for each in supervisors.values()]
        works += [_tell_systemd(notifier, supervisors[default], feed), _feed_watchdog(notifier)]
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _tell_systemd(notifier: Notifier, supervisor: Supervisor, feed: Feed) -> None:
    """READY=1 with the first token of the default model, and a STATUS= line for every change."""
    while True:
        status = supervisor.status
        notifier.status(f"{status.name}: {status.sentence()}")
        if supervisor.client is not None:
            notifier.ready()
        elif not status.is_passing:
            # Unloaded, or given up: the daemon stays and says why, though systemd still waits for the first token.
            notifier.extend(SETTLED_S)
        # What passes is told again now and then, since its age or what is left of it changes.
        with suppress(TimeoutError):
            is_settled = status.state == "ready" and not notifier.is_behind
            async with asyncio.timeout(None if is_settled else STATUS_INTERVAL_S):
                await feed.after(feed.last)


async def _feed_watchdog(notifier: Notifier) -> None:
    """Signs of life from the event loop; a blocked one gives none."""
    while (interval_s := notifier.watchdog_interval_s) is not None:
        notifier.watchdog()
        await asyncio.sleep(interval_s)


async def _drain(calls: Calls, drain_s: float, signals: "asyncio.Queue[signal.Signals]") -> None:
    """Lets running calls finish for `drain_s` seconds; a second signal ends the patience."""
    farewell = NotReady("vllmd is stopping", "ask again when it is back")
    calls.close(farewell)
    await _unless_hurried(calls.wait_idle(), signals=signals, timeout_s=drain_s)
    calls.cut_short(farewell)
    with suppress(TimeoutError):
        await asyncio.wait_for(calls.wait_idle(), CUT_SHORT_S)


async def _unless_hurried(
    *works: Coroutine[Any, Any, None], signals: "asyncio.Queue[signal.Signals]", timeout_s: float | None = None
) -> None:
    """Waits for all of `works`, but only until another signal comes or the time is up; then they are called off."""
    tasks = [asyncio.ensure_future(work) for work in works]
    hurry = asyncio.ensure_future(signals.get())
    all_done = asyncio.ensure_future(asyncio.wait(tasks))
    awaited: list[asyncio.Future[Any]] = [all_done, hurry]
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for each in (*awaited, *tasks):
        each.cancel()
