"""The environments that engines run in: listed, installed, chosen and removed over HTTP."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from vllmd import wire
from vllmd.engine.environments import Environments, Installed
from vllmd.engine.installing import Tally
from vllmd.engine.jobs import Job, Jobs, Kind
from vllmd.engine.run import Report
from vllmd.engine.settling import Settling
from vllmd.engine.supervisors import Supervisors
from vllmd.engine.variants import wanted
from vllmd.errors import InUse, RequestError
from vllmd.provisions import EnvironmentStatus
from vllmd.sections import Current
from vllmd.server.access import identify, require_administrator
from vllmd.server.bodies import choose_model, json_response, read_body, read_json
from vllmd.server.calls import Calls
from vllmd.server.upgrade import Upgrade
from vllmd.settings import Problem, read
from vllmd.wire import InstallRequest, UseRequest

T = TypeVar("T")

log = logging.getLogger(__name__)


class Versions:
    """The handlers of `/api/environments`.

    Args:
        current: who may administer, and what the file says.
        settling: what each model is to run in.
        environments: those that there are.
        supervisors: the models.
        upgrade: moves them.
        jobs: the daemon's own long work.
        calls: whether vllmd still takes any.
    """

    def __init__(
        self,
        current: Current,
        settling: Settling,
        environments: Environments,
        supervisors: Supervisors,
        upgrade: Upgrade,
        jobs: Jobs,
        calls: Calls,
    ) -> None:
        self._current = current
        self._settling = settling
        self._environments = environments
        self._supervisors = supervisors
        self._upgrade = upgrade
        self._jobs = jobs
        self._calls = calls

    async def list(self, request: web.Request) -> web.Response:
        """The environments that are installed, what suits this machine, and why."""
        users, every = await self._users(), await self._root_of_all()
        shown = [wire.to_json(_status(each, users.get(each.root, ()), every)) for each in self._environments.all()]
        return json_response(
            {
                "environments": shown,
                "machine": self._machine(),
                "free": await self._environments.free_bytes(),
            }
        )

    def _machine(self) -> dict[str, str]:
        """What suits it, and what is used instead because it served here first."""
        machine, config = self._settling.machine, self._current.config
        suits, settled = self._settling.made_with(config.environment), self._settling.settled(config)
        return {"variant": machine.variant, "reason": machine.reason, "requirement": suits, "settled": settled}

    async def install(self, request: web.Request) -> web.Response:
        """`POST /api/environments`: 202 and the job that installs one; the same one for who asks for the same."""
        asked = await self._asked(request, InstallRequest)
        configured, machine = self._current.config.environment, self._settling.machine
        requirement, reason = wanted(asked.variant or "", asked.version or "", machine, configured.index)

        async def work(job: Job[Installed]) -> Installed:
            return await self._environments.install(requirement, configured.python, configured.index, _telling(job))

        job = self._jobs.ask(Kind.INSTALL, requirement, work)
        return json_response({"job": wire.to_json(job.status), "requirement": requirement, "reason": reason}, 202)

    async def use(self, request: web.Request) -> web.Response:
        """`POST /api/environments/{id}/use`: 202 and the job that moves models, and back if they bring no token."""
        asked = await self._asked(request, UseRequest)
        model = choose_model(asked.model, self._supervisors, "") if asked.model else None
        installed = self._environments.find(request.match_info["id"])
        choice = await self._upgrade.choice(installed, model)

        async def work(job: Job[None]) -> None:
            await self._upgrade.use(job, installed, choice, model)

        subject = f"{installed.id} for {model}" if model else installed.id
        return json_response({"job": wire.to_json(self._jobs.ask(Kind.USE, subject, work).status)}, 202)

    async def remove(self, request: web.Request) -> web.Response:
        """`DELETE /api/environments/{id}`: removes one that no model runs in or is meant to."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        installed = self._environments.find(request.match_info["id"])
        if self._upgrade.is_under_way:
            raise InUse("models are being moved between environments", "wait until that is over")
        if users := (await self._users()).get(installed.root, ()):
            raise InUse(f"{installed.id} is in use by {', '.join(users)}", "let them use another one first")
        if installed.root == await self._root_of_all():
            raise InUse(f"{installed.id} is the current one", "use another one first")
        await self._environments.remove(installed, log.info)
        return json_response({"id": installed.id, "removed": True})

    async def _asked(self, request: web.Request, cls: type[T]) -> T:
        """What an administrator asks for; an empty body asks for nothing special. Raises Denied, RequestError."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        self._calls.refuse_if_closed()
        body = await read_body(request, self._current.config.limits)
        table = read_json(body) if body else {}
        told = {key: value for key, value in table.items() if value is not None} if isinstance(table, dict) else table
        problems: list[Problem] = []
        asked = read(cls, told, "", problems)
        for problem in problems:
            known = ", ".join(each.name for each in fields(cls))  # type: ignore[arg-type]
            raise RequestError(str(problem), f"the fields are {known}", param=problem.place or None)
        return asked

    async def _users(self) -> dict[Path, tuple[str, ...]]:
        """Of each environment the models that run in it, or would when they are loaded."""
        users: dict[Path, set[str]] = {}
        for name, supervisor in self._supervisors.items():
            meant = await self._environments.root_of(supervisor.plan.environment)
            for root in filter(None, (meant, supervisor.environment)):
                users.setdefault(root, set()).add(name)
        return {root: tuple(sorted(names)) for root, names in users.items()}

    async def _root_of_all(self) -> Path | None:
        """Where a model runs that has nothing of its own."""
        settings = self._settling.of_all(self._current.config, self._settling.choices.kept)
        return await self._environments.root_of(settings)


def _status(installed: Installed, models: tuple[str, ...], current: Path | None) -> EnvironmentStatus:
    record = installed.record
    return EnvironmentStatus(
        id=installed.id,
        requirement=record.requirement,
        version=record.version or installed.version,
        current=installed.root == current,
        models=models,
        bytes=record.bytes or None,
        installed_at=record.installed_at or None,
    )


def _telling(job: Job[Any]) -> Report:
    """Tells a job what an installer says."""
    tally = Tally()

    def said(line: str) -> None:
        nonlocal tally
        tally = tally.after(line)
        job.line(line)
        job.report(tally.phase, tally.done, tally.total)

    return said
