"""The supervisors of all models. They come and go with the configuration, and everybody sees the same ones."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import replace

from vllmd.engine.plan import Plan
from vllmd.engine.supervisor import Supervisor
from vllmd.lifecycle import Load


class Supervisors(Mapping[str, Supervisor]):
    """Model → its supervisor.

    Args:
        make: makes one.
        plans: of the models that there are at first.
        make_trial: makes one that tries its engine once, keeps it for no other vllmd, and publishes nothing.
    """

    def __init__(
        self, make: Callable[[Plan], Supervisor], plans: Iterable[Plan], make_trial: Callable[[Plan], Supervisor]
    ) -> None:
        self._make = make
        self._make_trial = make_trial
        self._all = {plan.name: make(plan) for plan in plans}
        self._leaving: set[Supervisor] = set()
        self._tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def __getitem__(self, name: str) -> Supervisor:
        return self._all[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Lets all of them run, and those that come later; at the end nothing of theirs is alive, unless it was left.

        Yields:
            The group of their tasks: if one of them fails, the block is left.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            for supervisor in self._all.values():
                self._start(group, supervisor)
            try:
                yield group
            finally:
                for task in self._tasks.values():
                    task.cancel()

    def add(self, plan: Plan) -> None:
        """A model that is new; its life begins as soon as nothing is alive of an earlier one of its name."""
        self._all[plan.name] = self._make(plan)
        self._begin(plan.name)

    def take_out(self, name: str) -> Supervisor:
        """A model that is served no more: nobody finds it from now on. `end` it when its last call is over."""
        supervisor = self._all.pop(name)
        self._leaving.add(supervisor)
        return supervisor

    async def end(self, supervisor: Supervisor) -> None:
        """Ends the engine of a supervisor that was taken out, and it."""
        await supervisor.close()
        if task := self._tasks.pop(supervisor, None):
            task.cancel()
        self._leaving.discard(supervisor)
        if supervisor.name in self._all:
            self._begin(supervisor.name)

    @asynccontextmanager
    async def beside(self, plan: Plan) -> AsyncIterator[Supervisor]:
        """A second engine of a model for the block: nobody is sent to it, and for nobody it has others make room.

        It has a name of its own, and with it directories of its own.
        """
        assert self._group is not None, "models are tried while all of them run"
        model = replace(plan.model, load="demand", default=False, idle_unload_s=0.0, sleep_level=0)
        trial = self._make_trial(replace(plan, name=f"{plan.name} (trial)", model=model))
        task = self._group.create_task(trial.run(), context=Context())
        trial.post(Load())
        try:
            yield trial
        finally:
            await trial.close()
            task.cancel()

    def _begin(self, name: str) -> None:
        # Two engines of one name would live in the same directories, where the second one clears away the first: until
        # then nobody hears what is wanted of it.
        assert self._group is not None, "models come while all of them run"
        supervisor = self._all[name]
        if supervisor not in self._tasks and all(each.name != name for each in self._leaving):
            self._start(self._group, supervisor)
            supervisor.begin()

    def _start(self, group: asyncio.TaskGroup, supervisor: Supervisor) -> None:
        # In a context of its own: what it logs is not about the request that may have brought it.
        self._tasks[supervisor] = group.create_task(supervisor.run(), context=Context())
