"""The composition root: arguments → configuration → objects wired → run → exit status. It knows everybody and decides
nothing."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from vllmd import __version__
from vllmd.config import load, locate
from vllmd.engine import systemd
from vllmd.engine.environment import ensure
from vllmd.engine.environments import Environments
from vllmd.engine.jobs import Kind
from vllmd.engine.kept import found
from vllmd.engine.runtime import exclusive
from vllmd.engine.settling import settling_here
from vllmd.engine.succession import hand_over, is_followed, take_over
from vllmd.engine.supervisors import Supervisors
from vllmd.errors import ExitStatus, VllmdError, outcome_of
from vllmd.journal.lines import Format
from vllmd.journal.setup import logging_to
from vllmd.notify import Notifier
from vllmd.passed import passed
from vllmd.sections import Config
from vllmd.server.app import build
from vllmd.server.draining import Signals, drain, unless_hurried
from vllmd.server.entrance import Doors, serving
from vllmd.server.idle import until_idle
from vllmd.server.keyring import open_keyring
from vllmd.server.reload import Reload
from vllmd.server.service import Service, compose
from vllmd.server.sockets import addresses_of, listening

T = TypeVar("T")

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/vllmd/vllmd.toml")

OPEN_FILES = 65536
"""As many as the shipped unit allows: a running stream is two of them."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `vllmd`; leaves the process."""
    arguments = parser().parse_args(argv)
    try:
        config = _read(arguments)
        with logging_to(Format(config.log.format), arguments.verbose, os.environ):
            sys.exit(arguments.act(config, arguments))
    except KeyboardInterrupt:
        sys.exit(ExitStatus.INTERRUPTED)
    except VllmdError as error:
        for line in error.message.splitlines():
            print(f"vllmd: {line}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        sys.exit(outcome_of(error).exit_status)


def _read(arguments: argparse.Namespace) -> Config:
    return locate(load(arguments.config), os.environ, os.getuid())


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


def _check(config: Config, arguments: argparse.Namespace) -> int:
    for name, model in config.models.items():
        print(f"{name}: {model.model}{' (default)' if model.default else ''}")
    print(f"{arguments.config}: no mistakes found")
    return 0


def _install(config: Config, arguments: argparse.Namespace) -> int:
    if config.environment.path:
        print(f"nothing to install: environment.path is {config.environment.path}")
        return 0
    settling = settling_here(config, os.environ)
    print(settling.machine.reason)
    settings = settling.of_all(config, settling.choices.now)
    folder = Path(config.paths.state) / "environments"
    built = ensure(settings.requirement, folder, settings.python, print, index=settings.index, asker="vllmd --install")
    print(_run(built).root)
    return 0


def _serve(config: Config, arguments: argparse.Namespace) -> int:
    _raise_limits()
    with suppress(OSError):  # who needs it says what is wrong with it
        Path(config.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    _run(serve(config, lambda: _read(arguments)))
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


async def serve(config: Config, read: Callable[[], Config]) -> None:
    """Runs the daemon until SIGTERM or SIGINT, then ends every stream in order, and every engine that is not left to
    the next vllmd.

    Args:
        config: what is in force at first.
        read: reads the configuration anew.

    Raises:
        ConfigError: the file of the keys cannot be used.
        AddressError: a door cannot be opened, or the directories are too deep for the engines' sockets.
    """
    keyring = open_keyring(config.access.keys, os.environ)
    with (
        Notifier() as notifier,
        exclusive(Path(config.paths.runtime)),
        listening(config.listen, os.environ, has_keys=keyring is not None) as sockets,
        _signals() as signals,
    ):
        service = compose(config, keyring, notifier, os.environ)
        reload, addresses = _reload(service, read, notifier), addresses_of(sockets)
        app = build(service, reload, addresses)
        # Before the doors open: sockets that systemd passes have clients waiting already.
        await take_over(found(passed(os.environ, os.getpid())), service.supervisors, notifier)
        async with _running(service, notifier), serving(app, sockets, service.census) as doors:
            log.info("vllmd %s listens on %s", __version__, ", ".join(addresses))
            await _until_stopped(signals, reload, _idle(service, doors))
            await _end(service, reload, doors, notifier, signals)
    log.info("stopped")


def _reload(service: Service, read: Callable[[], Config], notifier: Notifier) -> Reload:
    limited = (service.accounts, service.census)
    return Reload(
        read,
        service.settling.plans,
        service.current,
        service.supervisors,
        service.calls,
        service.relay,
        limited,
        notifier,
    )


async def _end(service: Service, reload: Reload, doors: Doors, notifier: Notifier, signals: Signals) -> None:
    """Everything ends that was begun, from outside in."""
    current, calls, supervisors = service.current, service.calls, service.supervisors
    log.info("stopping: running streams get %g s to finish", current.config.relay.drain_s)
    notifier.stopping()
    doors.close_for_good()
    followed = await is_followed(notifier)
    staying = _answering(supervisors) if followed else []
    await drain(calls, doors, current.config.relay.drain_s, signals, staying)
    reload.close()
    await service.jobs.close(Kind.USE)  # which puts back what it has moved
    # Who signals once more need not wait for the engines either: leaving the block kills them.
    await unless_hurried(hand_over(supervisors.values(), followed), signals=signals)
    # Only now: to a start that needs its model the end of the pull would be a failure.
    await service.jobs.close()


async def _until_stopped(signals: Signals, reload: Reload, idle: Coroutine[Any, Any, None]) -> None:
    """Waits for SIGTERM or SIGINT, or until nobody has wanted anything for long; SIGHUP reloads."""
    waiting = asyncio.ensure_future(idle)
    told = asyncio.ensure_future(_obey(signals, reload))
    ended, _ = await asyncio.wait([waiting, told], return_when=asyncio.FIRST_COMPLETED)
    for each in (waiting, told):
        each.cancel()
    for each in ended:
        each.result()  # a mistake of ours is no wish to end: systemd shall see it


async def _obey(signals: Signals, reload: Reload) -> None:
    while await signals.get() is signal.SIGHUP:
        try:
            reload.now()
        except VllmdError:
            pass  # the log has told it already
        except Exception:
            log.exception("reload: unforeseen error")


@contextmanager
def _signals() -> Iterator[Signals]:
    """SIGTERM, SIGINT and SIGHUP as they come, instead of their default effect."""
    loop, received = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in SIGNALS:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _running(service: Service, notifier: Notifier) -> AsyncIterator[None]:
    """Supervisors, residents, the broom, and the conversation with systemd, for as long as the block lasts."""
    async with service.supervisors.running() as group:
        works = [
            systemd.tell(notifier, service.supervisors, service.current, service.feed),
            systemd.feed_watchdog(notifier),
            service.residents.run(),
            _sweep(service.environments),
            _settle(service),
        ]
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _sweep(environments: Environments) -> None:
    """Clears away what a vllmd has left that was killed over an installation."""
    try:
        await environments.sweep(log.info)
    except OSError as error:
        log.warning("what is left of an installation cannot be cleared away: %s", error)


async def _settle(service: Service) -> None:
    """Has the vLLM that suits the machine kept, once it serves: a newer vllmd shall not begin with another one."""
    settling, feed, current = service.settling, service.feed, service.current
    try:
        while True:
            seen = feed.last
            for served in [each.plan.environment for each in service.supervisors.values() if each.client is not None]:
                if settling.settle(current.config, served):
                    log.info("%s is what models run in until another one is used:  vllmctl env", served.requirement)
            await feed.after(seen)
    except OSError as error:
        log.warning("what models run in cannot be written down, and may be another vLLM after an upgrade: %s", error)


async def _idle(service: Service, doors: Doors) -> None:
    """Returns when vllmd may end because nobody has wanted anything for long: the doors are closed then."""
    limit_s = service.current.config.listen.exit_idle_s
    if not limit_s or not any(not each.is_stored for each in passed(os.environ, os.getpid())):
        await asyncio.Event().wait()
    await until_idle(limit_s, doors, service.calls, service.supervisors, service.jobs, service.feed)
    log.info("nobody has asked for anything for %g s", limit_s)


def _answering(supervisors: Supervisors) -> list[str]:
    return [name for name, each in supervisors.items() if each.client is not None]
