"""`/metrics`: vllmd's own numbers, and those of its engines, on one page for Prometheus.

The numbers are read here, in one go; the engines are asked meanwhile, and have but a moment for it. What is made of it
all happens in a thread (`prometheus`), so that no stream waits for it.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import web

from vllmd import routes
from vllmd.engine.client import EngineClient
from vllmd.engine.connection import no_glance
from vllmd.engine.http import Head
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineError, RouteNotFound, VllmdError
from vllmd.sections import Current
from vllmd.server.access import administers, identify, require_administrator
from vllmd.server.calls import Calls
from vllmd.server.queue import places
from vllmd.server.snapshot import ModelNow, Snapshot, taken, without_names
from vllmd.server.tallies import Tallies

SCRAPE_S = 2.0
"""An engine that has not told its numbers by then is left out; Prometheus itself gives up after 10 s."""

PAGE_BYTES = 4 * 1024 * 1024
"""A longer page of an engine is none. The real one has 60 KiB."""


class Metrics:
    """The handler of `/metrics`.

    Args:
        current: who may see it, and the bounds that are told.
        supervisors: one for each model.
        calls: what is under way.
        tallies: what was counted.
    """

    def __init__(self, current: Current, supervisors: Mapping[str, Supervisor], calls: Calls, tallies: Tallies) -> None:
        self._current = current
        self._supervisors = supervisors
        self._calls = calls
        self._tallies = tallies
        self._asking: asyncio.Task[dict[str, str]] | None = None
        self._turn = asyncio.Lock()

    async def page(self, request: web.Request) -> web.Response:
        """Numbers for Prometheus: vllmd's and its engines'."""
        self._check(request)
        engines = await self._engines()
        snapshot = self._snapshot(engines)
        if not self._names_are_for(request):
            snapshot = without_names(snapshot, identify(request).name)
        is_open = "application/openmetrics-text" in request.headers.get("Accept", "")
        async with self._turn:  # many threads at once would keep the event loop from its turns
            kind, body = await asyncio.to_thread(_rendered, snapshot, engines, is_open)
        return web.Response(body=body, headers={"Content-Type": kind})

    def _check(self, request: web.Request) -> None:
        config = self._current.config
        if config.metrics.access == "off":
            raise RouteNotFound(f"nothing is served at {routes.METRICS}", "metrics.access is off")
        if config.metrics.access == "administrators":
            require_administrator(identify(request), config.access.admin_group)

    def _names_are_for(self, request: web.Request) -> bool:
        config = self._current.config
        return config.metrics.identities or administers(identify(request), config.access.admin_group)

    async def _engines(self) -> dict[str, str]:
        """What each engine says that says anything. Who wants it while they are asked gets what the others get."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> dict[str, str]:
        clients = {name: each.client for name, each in self._supervisors.items()}
        asked = [(name, client) for name, client in clients.items() if client is not None]
        try:
            pages = await asyncio.gather(*(_ask(client) for _, client in asked))
        finally:
            self._asking = None
        return {name: page for (name, _), page in zip(asked, pages, strict=True) if page is not None}

    def _snapshot(self, engines: Mapping[str, str]) -> Snapshot:
        config, tallies = self._current.config, self._tallies
        rooms = places(config)
        models = {
            name: ModelNow(
                each.engine.state,
                *self._calls.count(name),
                sum(call.stream for call in self._calls if call.model == name),
                rooms.get(name, 0),
                dict(each.probes),
                name in engines,
            )
            for name, each in self._supervisors.items()
        }
        return taken(models, config.queue.limit, tallies)


def _rendered(snapshot: Snapshot, engines: Mapping[str, str], is_open: bool) -> tuple[str, bytes]:
    """The page and its media type; in a thread, whose first run also loads Prometheus' library."""
    from vllmd.server.prometheus import render

    return render(snapshot, engines, is_open=is_open)


async def _ask(client: EngineClient) -> str | None:
    """What an engine says of itself; None if it does not, or not in time."""
    try:
        async with asyncio.timeout(SCRAPE_S), client.send("GET", "/metrics") as exchange:
            sink = _Sheet(asyncio.get_running_loop().create_future())
            exchange.attach(sink)
            status, body = await sink.answer
            return body.decode(errors="replace") if status == 200 else None
    except (TimeoutError, VllmdError):
        return None


class _Sheet:
    """Takes an engine's page, up to a bearable length.

    Args:
        answer: is set to its status and body, or to why there is none.
    """

    glance = staticmethod(no_glance)

    def __init__(self, answer: "asyncio.Future[tuple[int, bytes]]") -> None:
        self.answer = answer
        self._status = 0
        self._body = bytearray()

    def begun(self, head: Head) -> None:
        """The head is there."""
        self._status = head.status

    def payload(self, data: bytes) -> None:
        """Some of the body."""
        self._body += data
        if len(self._body) > PAGE_BYTES:
            raise EngineError(f"the engine's page of metrics is over {PAGE_BYTES} bytes")

    def ended(self, error: Exception | None) -> None:
        """All of it is there, or no more comes."""
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result((self._status, bytes(self._body)))
        else:
            self.answer.set_exception(error)
