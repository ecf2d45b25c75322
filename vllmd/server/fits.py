"""`GET /api/models/{name}/fit`: whether the memory is there that a model needs."""

from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from vllmd import wire
from vllmd.engine.fitting import fit_of
from vllmd.engine.supervisor import Supervisor
from vllmd.sections import Current
from vllmd.server.access import identify, require_administrator
from vllmd.server.bodies import choose_model, json_response
from vllmd.server.queries import LENGTH


class Fits:
    """The handler.

    Args:
        current: who may administer, and which model is the default.
        supervisors: one for each model.
    """

    def __init__(self, current: Current, supervisors: Mapping[str, Supervisor]) -> None:
        self._current = current
        self._supervisors = supervisors

    async def fit(self, request: web.Request) -> web.Response:
        """`GET /api/models/{name}/fit`: whether the memory is there that a model needs, and what would fit.

        Raises:
            Denied: it reads files and asks drivers, which is an administrator's to have done.
            ModelNotFound: no such model.
        """
        require_administrator(identify(request), self._current.config.access.admin_group)
        name = choose_model(request.match_info["name"], self._supervisors, self._current.config.default_model)
        supervisor, length = self._supervisors[name], LENGTH.read(request)
        path = supervisor.plan.environment.path
        root = Path(path).expanduser() if path else None
        is_alive = supervisor.status.pid is not None  # a start that waits for memory has none
        return json_response(wire.to_json(await fit_of(supervisor.plan, root, length=length, is_alive=is_alive)))
