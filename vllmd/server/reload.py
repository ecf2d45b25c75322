"""The configuration read anew: what would change, and changing it while everything runs.

A file that cannot be used changes nothing. Of one that can, most keys apply at once, to whatever comes next. A model
whose engine would be started differently gets a new one, in this order: new requests are held, running ones get
`relay.drain_s` to end, the engine is replaced. Models that are new are loaded, those that are gone are served no more
and unloaded when their requests have ended. What only a new vllmd can do is named; it takes over the engines (see
`engine.kept`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import web

from vllmd import wire
from vllmd.changes import compare, in_force
from vllmd.engine.plan import Plan
from vllmd.engine.supervisor import Supervisor
from vllmd.engine.supervisors import Supervisors
from vllmd.engine.tasks import start
from vllmd.errors import VllmdError
from vllmd.limits import Limits
from vllmd.sections import Config, Current
from vllmd.server.access import identify, require_administrator
from vllmd.server.bodies import json_response
from vllmd.server.calls import Calls
from vllmd.server.relay import Relay
from vllmd.settings import Applies
from vllmd.statuses import Change

log = logging.getLogger(__name__)


class Told(Protocol):
    """Who wants to know that it happens (notify.Notifier)."""

    def reloading(self) -> None:
        """It begins."""

    def reloaded(self) -> None:
        """It is over."""


class Limited(Protocol):
    """Who keeps the limits of clients (`accounts`, `census`)."""

    def change(self, limits: Limits) -> None:
        """Other ones hold from now on."""


class Reload:
    """Reads the configuration anew, when a signal or an administrator says so.

    Args:
        read: reads and checks it; raises ConfigError.
        plans: what a configuration wants to be run; raises AddressError.
        current: what is in force.
        supervisors: the models.
        calls: what they are working on.
        relay, limited: have to be told of other bounds.
        told: systemd.
    """

    def __init__(
        self,
        read: Callable[[], Config],
        plans: Callable[[Config], list[Plan]],
        current: Current,
        supervisors: Supervisors,
        calls: Calls,
        relay: Relay,
        limited: Iterable[Limited],
        told: Told,
    ) -> None:
        self._read = read
        self._plans = plans
        self._current = current
        self._supervisors = supervisors
        self._calls = calls
        self._relay = relay
        self._limited = tuple(limited)
        self._told = told
        self._wanted: dict[Supervisor, Plan] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ── the handlers ──

    async def plan(self, request: web.Request) -> web.Response:
        """`GET /api/plan`: what a reload would change."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        return _response(compare(self._current.config, self._read()))

    async def reload(self, request: web.Request) -> web.Response:
        """`POST /api/reload`: what it has changed, and is about to."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        self._calls.refuse_if_closed()
        return _response(self.now())

    # ── the work ──

    def now(self) -> tuple[Change, ...]:
        """Reads the file and puts in force what can be; engines are replaced from now on, one does not wait for it.

        Returns:
            What differs.

        Raises:
            ConfigError, AddressError: it cannot be used; nothing has changed.
        """
        self._told.reloading()
        try:
            config = self._read()
            changes, allowed = compare(self._current.config, config), in_force(self._current.config, config)
            self._put_in_force(allowed, self._plans(allowed))
        except VllmdError as error:
            _complain(error)
            raise
        finally:
            self._told.reloaded()
        for change in changes:
            log.info("reload: %s", sentence(change))
        log.info("reload: %s", f"keys that differ: {len(changes)}" if changes else "nothing has changed")
        return changes

    def _put_in_force(self, config: Config, plans: list[Plan]) -> None:
        self._current.config = config
        for supervisor in self._supervisors.values():
            supervisor.policy = config.supervision
        for name in self._supervisors.keys() - config.models.keys():
            self._start(self._remove(self._supervisors.take_out(name)))
        for plan in plans:
            self._see_to(plan)
        for each in self._limited:
            each.change(config.limits)
        self._relay.reconfigure()  # lets go whoever may have a place now, by the new limits

    def _see_to(self, plan: Plan) -> None:
        supervisor = self._supervisors.get(plan.name)
        if supervisor is None:
            self._supervisors.add(plan)
        elif supervisor in self._wanted:
            self._wanted[supervisor] = plan  # its engine is about to be replaced anyway
        elif supervisor.plan.digest == plan.digest:
            supervisor.plan = plan
        else:
            self._wanted[supervisor] = plan
            self._start(self._renew(supervisor))

    async def _renew(self, supervisor: Supervisor) -> None:
        with supervisor.holding():
            await self._unused(supervisor.name)
            plan = self._wanted.pop(supervisor)
            if supervisor.plan.digest == plan.digest:
                supervisor.plan = plan  # the change was taken back meanwhile
            elif self._supervisors.get(supervisor.name) is supervisor:  # and was not taken out meanwhile
                await supervisor.renew(plan)

    async def _remove(self, supervisor: Supervisor) -> None:
        await self._unused(supervisor.name)
        await self._supervisors.end(supervisor)

    async def _unused(self, name: str) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls.wait_unused(name), self._current.config.relay.drain_s)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = start(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Replaces no more engines."""
        for task in self._tasks:
            task.cancel()


def _complain(error: VllmdError) -> None:
    for line in error.message.splitlines():
        log.error("reload: nothing was changed: %s", line)


def _response(changes: Iterable[Change]) -> web.Response:
    return json_response({"changes": [wire.to_json(each) for each in changes]})


def sentence(change: Change) -> str:
    """One change in words."""
    values = " → ".join((change.before or "nothing", change.after or "nothing"))
    match change.applies:
        case Applies.ENGINE:
            return f"{change.key}: {values}, with a new engine of {', '.join(change.models) or 'no model'}"
        case Applies.DAEMON:
            return f"{change.key}: {values}, but only after:  systemctl restart vllmd   (which keeps the engines)"
    return f"{change.key}: {values}"
