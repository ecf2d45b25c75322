"""The daemon's own long work: listed, shown, and called off."""

from typing import Any

from aiohttp import web

from vllmd import wire
from vllmd.engine.jobs import Job, Jobs
from vllmd.errors import JobNotFound
from vllmd.sections import Current
from vllmd.server.access import identify, require_administrator
from vllmd.server.bodies import json_response


class Work:
    """The handlers of `/api/jobs`.

    Args:
        current: who may administer.
        jobs: the work.
    """

    def __init__(self, current: Current, jobs: Jobs) -> None:
        self._current = current
        self._jobs = jobs

    async def list(self, request: web.Request) -> web.Response:
        """The jobs that run, and the last ones that have ended."""
        return json_response({"jobs": [wire.to_json(each.status) for each in self._jobs.values()]})

    async def show(self, request: web.Request) -> web.Response:
        """One job, and the last lines that were said about it."""
        job = self._find(request)
        return json_response({"job": wire.to_json(job.status), "lines": list(job.lines)})

    async def cancel(self, request: web.Request) -> web.Response:
        """Calls a job off: 202, as it takes a moment; one that is over stays as it is."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        job = self._find(request)
        job.cancel()
        return json_response({"job": wire.to_json(job.status)}, 200 if job.is_over else 202)

    def _find(self, request: web.Request) -> Job[Any]:
        """The job that a path names. Raises JobNotFound."""
        id = request.match_info["id"]
        if id not in self._jobs:
            raise JobNotFound(f"there is no job {id[:20]}, or no longer", "see:  GET /api/jobs")
        return self._jobs[id]
