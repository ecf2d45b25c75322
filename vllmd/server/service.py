"""What a daemon consists of, and how that is put together: whoever needs a part takes it from here, and only that."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllmd.engine import command
from vllmd.engine.environments import Environments
from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Jobs
from vllmd.engine.kept import NOWHERE
from vllmd.engine.library import Library
from vllmd.engine.plan import Plan
from vllmd.engine.residency import Rules
from vllmd.engine.residents import Residents
from vllmd.engine.settling import Settling, settling_here
from vllmd.engine.supervisor import Supervisor
from vllmd.engine.supervisors import Supervisors
from vllmd.notify import Notifier
from vllmd.sections import Config, Current
from vllmd.server.accounts import Accounts
from vllmd.server.calls import Calls
from vllmd.server.census import Census
from vllmd.server.keyring import Keyring
from vllmd.server.relay import Relay
from vllmd.server.tallies import Tallies


@dataclass(frozen=True)
class Service:
    """The parts that live as long as the daemon does. Each owns its state; nobody puts another one in its place.

    Args:
        current: the configuration in force.
        feed: what happens, for all who follow or wait.
        supervisors: one for each model.
        residents: those of their engines that have memory, and those that want some.
        jobs: the daemon's own long work.
        library: the models on the disk.
        settling: what each model is to run in.
        environments: those that there are to run in.
        calls: the requests under way.
        relay: brings them to the engines.
        accounts: what each identity has had, and may have.
        census: the connections.
        keyring: the keys that open the door; None where none are asked for.
        tallies: what is counted for `/metrics`.
    """

    current: Current
    feed: Feed
    supervisors: Supervisors
    residents: Residents
    jobs: Jobs
    library: Library
    settling: Settling
    environments: Environments
    calls: Calls
    relay: Relay
    accounts: Accounts
    census: Census
    keyring: Keyring | None
    tallies: Tallies


def compose(config: Config, keyring: Keyring | None, notifier: Notifier, environ: Mapping[str, str]) -> Service:
    """Puts a daemon together, of which nothing runs yet.

    Args:
        config: what is in force at first.
        keyring: the keys, if any are asked for.
        notifier: what supervisors tell systemd by.
        environ: the daemon's environment variables.

    Raises:
        AddressError: the directories are too deep for the engines' sockets.
    """
    # Each may know those above it.
    current, tallies, accounts, census = Current(config), Tallies(), Accounts(config.limits), Census(config.limits)
    feed, calls, settling = Feed(on_change=tallies.lives.note), Calls(accounts), settling_here(config, environ)
    jobs, environments = Jobs(feed), Environments(Path(config.paths.state) / "environments")
    library = _library(current, settling, jobs, environ)
    residents = Residents(lambda: _rules(current.config), feed, calls)
    supervisors = _supervisors(current, settling, feed, notifier, library, residents)
    relay = Relay(current, supervisors, feed, calls, accounts, tallies.requests.add, tallies.lag.observe)
    return Service(
        current=current,
        feed=feed,
        supervisors=supervisors,
        residents=residents,
        jobs=jobs,
        library=library,
        settling=settling,
        environments=environments,
        calls=calls,
        relay=relay,
        accounts=accounts,
        census=census,
        keyring=keyring,
        tallies=tallies,
    )


def _library(current: Current, settling: Settling, jobs: Jobs, environ: Mapping[str, str]) -> Library:
    paths = current.config.paths
    around = command.surroundings(environ, Path(paths.cache))
    return Library(jobs, Path(paths.state), around, lambda: settling.plans(current.config))


def _rules(config: Config) -> Rules:
    return Rules(config.memory.max_models, config.memory.turn_s)


def _supervisors(
    current: Current, settling: Settling, feed: Feed, notifier: Notifier, library: Library, residents: Residents
) -> Supervisors:
    def extend() -> None:
        notifier.extend(current.config.supervision.startup_stall_s)

    def make(plan: Plan) -> Supervisor:
        return Supervisor(plan, current.config.supervision, feed, extend, notifier, library.provide, residents)

    def make_trial(plan: Plan) -> Supervisor:
        policy = replace(current.config.supervision, restart_limit=0)
        return Supervisor(plan, policy, Feed(), extend, NOWHERE, library.provide, residents)

    return Supervisors(make, settling.plans(current.config), make_trial)
