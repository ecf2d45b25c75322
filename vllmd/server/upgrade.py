"""Models moved to another environment, and back by themselves if it serves them worse.

One after the other, each model is tried in the new environment beside the engine that serves, where there is memory
for both. When a token has come out of it, or where there is no memory, its new requests are held, running ones get
`relay.drain_s` to end, and an engine takes the place of the old one. Only when tokens have come out of all of them is
the choice kept. The first that fails, and a job that is called off, puts every one of them back where it was, its
requests still held. Until then nothing is written: a vllmd that dies over it is followed by one that knows only the old
environment.
"""

import asyncio
import logging
from contextlib import suppress

from vllmd.engine.causes import Cause
from vllmd.engine.choices import Choice, Chosen, said
from vllmd.engine.environments import Environments, Installed
from vllmd.engine.flags import require_known
from vllmd.engine.jobs import Job
from vllmd.engine.plan import Plan
from vllmd.engine.settling import Settling
from vllmd.engine.supervisor import Supervisor
from vllmd.engine.supervisors import Supervisors
from vllmd.errors import InUse, TrialFailed
from vllmd.lifecycle import State, Verdict
from vllmd.sections import Current
from vllmd.server.calls import Calls

log = logging.getLogger(__name__)

_AWAY = (State.STOPPED, State.DOZING, State.ASLEEP)
_NO_MEMORY = (
    Cause.DOES_NOT_FIT,
    Cause.MEMORY_NOT_FREE,
    Cause.OUT_OF_GPU_MEMORY,
    Cause.OUT_OF_MEMORY,
    Cause.NO_KV_CACHE,
    Cause.KILLED_FOR_MEMORY,
)
"""What may be otherwise when the engine that serves has ended; if it is not, the trial in its place shows that."""

_OUTCOMES = (State.READY, State.BACKOFF, State.FAILED)


class Upgrade:
    """Moves models between environments, one move at a time.

    Args:
        current: the configuration in force.
        settling: what each model is to run in.
        environments: those that there are.
        supervisors: the models.
        calls: what they are working on.
    """

    def __init__(
        self,
        current: Current,
        settling: Settling,
        environments: Environments,
        supervisors: Supervisors,
        calls: Calls,
    ) -> None:
        self._current = current
        self._settling = settling
        self._environments = environments
        self._supervisors = supervisors
        self._calls = calls
        self._moving = asyncio.Lock()

    @property
    def is_under_way(self) -> bool:
        """Whether models are being moved."""
        return self._moving.locked()

    async def choice(self, installed: Installed, model: str | None) -> Choice:
        """The choice of an environment for a model; None means all of them.

        Raises:
            InUse: the configuration has the last word on the model's.
            UnknownFlags: its vLLM does not know all flags of a model that would move.
            InstallError: nothing leads to it.
        """
        config = self._current.config
        if model and config.models[model].environment:
            pin = f"models.{model}.environment is {config.models[model].environment!r}"
            raise InUse(f"the configuration says where {model} runs: {pin}", "change it there, or remove it")
        settings = await self._environments.settings_of(installed, config.environment)
        choice = Choice(settings.requirement, settings.python, said(config.environment))
        for name in await self._movers(self._settling.choices.kept.but(model, choice), installed):
            record = installed.record
            require_known(config.models[name].args, record.version or record.requirement, record.flags)
        return choice

    async def use(self, job: Job[None], installed: Installed, choice: Choice, model: str | None) -> None:
        """Moves what the choice means, and keeps it.

        Raises:
            TrialFailed: a model brought no token there, or the choice cannot be kept; nothing has changed.
        """
        job.report("waiting for another upgrade to end" if self.is_under_way else "begins")
        async with self._moving:
            await self._move(job, installed, choice, model)
        job.line(f"{installed.id} is what {model or 'every model'} runs in from now on")

    async def _movers(self, chosen: Chosen, installed: Installed) -> list[str]:
        """The models that would run in `installed` by those choices, and do not now."""
        config, choices, root_of = self._current.config, self._settling.choices, self._environments.root_of
        before, after = (self._settling.settings(config, each) for each in (choices.kept, chosen))
        return [
            name
            for name in after
            if before[name] != after[name]
            and await root_of(before[name]) != installed.root == await root_of(after[name])
        ]

    async def _move(self, job: Job[None], installed: Installed, choice: Choice, model: str | None) -> None:
        moved: list[str] = []
        try:
            for name in await self._movers(self._settling.choices.kept.but(model, choice), installed):
                await self._try(job, installed, choice, name)
                moved.append(name)
            self._keep(self._settling.choices.kept.but(model, choice))  # the machine may have settled meanwhile
        except BaseException:
            for name in moved:
                await self._put_back(job, name)
            raise

    async def _try(self, job: Job[None], installed: Installed, choice: Choice, name: str) -> None:
        """One model's trial; in the end it runs in the new environment, or is being started in the old one."""
        supervisor = self._supervisors[name]
        await self._try_beside(job, supervisor, installed.id, choice)
        self._settling.choices.begin_trial(name, choice)
        with supervisor.holding():
            try:
                await self._renew(job, supervisor, installed.id)
            except TrialFailed as error:
                failure = error
                job.line(f"{name}: {error.message}")
                before = await self._back(supervisor)
            except BaseException:
                await self._back(supervisor)
                raise
            else:
                return
        job.report(f"{name}: starting in the environment from before")
        job.line(f"{name}: is {await supervisor.wait_beyond(before, *_OUTCOMES)} in the environment from before")
        raise failure

    async def _try_beside(self, job: Job[None], supervisor: Supervisor, id: str, choice: Choice) -> None:
        """Returns when a token has come out of a second engine, or when there is no memory for one, or nobody to spare.

        Raises:
            TrialFailed: it brought none; the one that serves has noticed nothing.
        """
        name, plan = supervisor.name, self._plan_by(choice, supervisor.name)
        if plan is None or supervisor.client is None:
            return
        job.report(f"{name}: starting in {id}, beside the one that serves")
        async with self._supervisors.beside(plan) as trial:
            verdict = await trial.outcome()
            is_ready = trial.engine.state is State.READY
        if verdict and not is_ready and verdict.cause not in _NO_MEMORY:
            raise _failed(name, id, verdict)
        done = "a token came" if is_ready else "there is no memory for a second engine"
        job.line(f"{name}: {done} in {id}, beside the one that serves")

    def _plan_by(self, choice: Choice, name: str) -> Plan | None:
        """What a model would run by a choice."""
        self._settling.choices.begin_trial(name, choice)
        try:
            return self._plan(name)
        finally:
            self._settling.choices.end_trial(name)

    async def _back(self, supervisor: Supervisor) -> int:
        """Starts what runs by the choices that are kept; returns the number of the engine that ended for it."""
        before = supervisor.engine.generation
        self._settling.choices.end_trial(supervisor.name)
        await self._renew_now(supervisor)
        return before

    async def _renew(self, job: Job[None], supervisor: Supervisor, id: str) -> None:
        name = supervisor.name
        if supervisor.engine.state in _AWAY:
            job.line(f"{name} is not loaded, and was not tried in {id}")
            await self._renew_now(supervisor)
            return
        job.report(f"{name}: waiting for its running requests to end")
        await self._unused(name)
        job.report(f"{name}: starting in {id}")
        before = supervisor.engine.generation
        await self._renew_now(supervisor)
        if await supervisor.wait_beyond(before, *_OUTCOMES) is not State.READY:
            is_away = supervisor.engine.state is State.STOPPED
            raise _failed(name, id, None if is_away else supervisor.engine.verdict)
        job.line(f"{name}: a token came in {id}")

    async def _put_back(self, job: Job[None], name: str) -> None:
        job.line(f"{name}: goes back to the environment from before")
        supervisor = self._supervisors.get(name)
        if supervisor is None:  # a reload has taken it out meanwhile
            self._settling.choices.end_trial(name)
            return
        with supervisor.holding():
            await self._unused(name)
            await self._back(supervisor)

    async def _renew_now(self, supervisor: Supervisor) -> None:
        plan = self._plan(supervisor.name)
        if plan and self._supervisors.get(supervisor.name) is supervisor:  # and was not taken out meanwhile
            await supervisor.renew(plan)

    def _plan(self, name: str) -> Plan | None:
        return next((each for each in self._settling.plans(self._current.config) if each.name == name), None)

    def _keep(self, chosen: Chosen) -> None:
        choices = self._settling.choices
        try:
            choices.keep(chosen)
        except OSError as error:
            raise TrialFailed(f"the choice cannot be written: {error}", "look at the state directory") from error
        for name in self._current.config.models:
            choices.end_trial(name)

    async def _unused(self, name: str) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls.wait_unused(name), self._current.config.relay.drain_s)


def _failed(name: str, id: str, verdict: Verdict | None) -> TrialFailed:
    if verdict is None:
        return TrialFailed(f"{name} was unloaded while it was tried in {id}", "nothing was changed")
    hint = f"nothing was changed; {verdict.hint}" if verdict.hint else "nothing was changed"
    return TrialFailed(f"{name} brought no token in {id}: {verdict.message}", hint)
