"""The models on the disk: pulled, listed, verified, and taken away."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web

from vllmd import wire
from vllmd.engine.jobs import Job
from vllmd.engine.library import Library
from vllmd.engine.shared import Shared
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import RequestError
from vllmd.lifecycle import State
from vllmd.sections import Current
from vllmd.server.access import identify, require_administrator
from vllmd.server.bodies import json_response, read_body, read_json
from vllmd.server.calls import Calls
from vllmd.settings import Problem, read
from vllmd.wire import PullRequest

FRESH_S = 1.0
"""How old a list may be while nothing was changed here."""

_AT_REST = (State.STOPPED, State.FAILED)


class Stored:
    """The handlers.

    Args:
        current: who may administer, and what bodies may be like.
        supervisors: who uses what.
        library: the models on the disk.
        calls: whether vllmd still takes any.
    """

    def __init__(self, current: Current, supervisors: Mapping[str, Supervisor], library: Library, calls: Calls) -> None:
        self._current = current
        self._supervisors = supervisors
        self._library = library
        self._calls = calls
        self._listing = Shared(lambda: asyncio.to_thread(library.stored), FRESH_S)

    async def list(self, request: web.Request) -> web.Response:
        """The models on the disk, each of their commits. All who ask at once share one walk through the cache."""
        found = await self._listing.get(self._library.changes)
        return json_response({"models": [wire.to_json(each) for each in found]})

    async def pull(self, request: web.Request) -> web.Response:
        """Fetches a model as it is on the hub now: 202 at once, and a job to follow."""
        asked = await self._asked(request)
        return _begun(self._library.pull(self._library.wanted(asked.model, asked.revision or "")))

    async def verify(self, request: web.Request) -> web.Response:
        """Compares a model's files with what the hub had: 202 at once, and a job to follow."""
        asked = await self._asked(request)
        wanted = self._library.wanted(asked.model, asked.revision or "")
        return _begun(self._library.verify(wanted, repair=asked.repair))

    async def remove(self, request: web.Request) -> web.Response:
        """Takes a model off the disk, or with `@REVISION` one of its commits; never one that is in use."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        name = request.match_info["name"]
        freed = await asyncio.to_thread(self._library.remove, name, self._users(name))
        return json_response({"model": name, "freed": freed})

    async def prune(self, request: web.Request) -> web.Response:
        """Takes off the disk what was pulled and has made way for a newer commit, unless an engine is made of it."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        self._calls.refuse_if_closed()
        living = [each for each in self._supervisors.values() if each.engine.state not in _AT_REST]
        lines = [line for each in living if (line := _command_line(each.status.pid))]
        starting = [each.plan for each in living if not _command_line(each.status.pid)]
        gone, freed = await asyncio.to_thread(self._library.prune, lines, starting)
        return json_response({"removed": gone, "freed": freed})

    def _users(self, name: str) -> Sequence[str]:
        """The models in memory that are made of the same repository."""
        loaded = [each for each in self._supervisors.values() if each.engine.state not in _AT_REST]
        return [each.name for each in loaded if self._library.uses(each.plan, name)]

    async def _asked(self, request: web.Request) -> PullRequest:
        require_administrator(identify(request), self._current.config.access.admin_group)
        self._calls.refuse_if_closed()
        table = read_json(await read_body(request, self._current.config.limits))
        problems: list[Problem] = []
        asked = read(PullRequest, table, "", problems)
        for problem in problems:
            raise RequestError(str(problem), 'send {"model": "Qwen/Qwen2-7B-Instruct"}', param=problem.place or None)
        if not asked.model:
            raise RequestError("model: missing", 'send {"model": "Qwen/Qwen2-7B-Instruct"}', param="model")
        return asked


def _command_line(pid: int | None) -> bytes:
    """Of a process that lives; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() if pid else b""
    except OSError:
        return b""


def _begun(job: Job[Path]) -> web.Response:
    return json_response({"job": wire.to_json(job.status)}, status=202)
