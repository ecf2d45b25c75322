"""`/api/incidents`: what is known of engines that died or hung, at a glance and each as a whole."""

import asyncio
from collections.abc import Collection

from aiohttp import web

from vllmd import wire
from vllmd.engine.incidents import Archive
from vllmd.errors import IncidentNotFound
from vllmd.sections import Current
from vllmd.server.bodies import choose_model, json_response
from vllmd.server.queries import LIMIT, OF_MODEL


class Incidents:
    """The handlers of `/api/incidents`. The list is for whoever may see the status; the whole, which has the engine's
    last lines in it, for whoever may read those (`/api/logs`).

    Args:
        current: names the default model.
        models: the configured ones, as they are now.
        archive: the files. They are read in a thread, by one request at a time.
    """

    def __init__(self, current: Current, models: Collection[str], archive: Archive) -> None:
        self._current = current
        self._models = models
        self._archive = archive
        self._turn = asyncio.Lock()

    async def list(self, request: web.Request) -> web.Response:
        """`GET /api/incidents?model=&limit=`: the newest first.

        Raises:
            ModelNotFound: no such model, and no incident of one that is gone.
            RequestError: `limit` is no number.
        """
        model, count = request.query.get(OF_MODEL.name) or None, LIMIT.read(request)
        async with self._turn:
            found = await asyncio.to_thread(self._archive.latest, count, model)
        if not found:
            choose_model(model, self._models, self._current.config.default_model)
        return json_response({"incidents": [wire.to_json(each) for each in found]})

    async def whole(self, request: web.Request) -> web.Response:
        """`GET /api/incidents/{id}`: verdict, evidence, versions, and the last lines.

        Raises:
            IncidentNotFound: there is none, or no longer.
        """
        wanted = request.match_info["id"]
        async with self._turn:
            report = await asyncio.to_thread(self._archive.find, wanted)
        if report is None:
            raise IncidentNotFound(f"no incident {wanted!r} here", "see:  vllmctl incidents")
        return json_response(wire.to_json(report))
