"""The route table, and what stands around it: everything that is served, on one screen."""

from functools import wraps
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from vllmd import routes
from vllmd.engine.incidents import archive_in
from vllmd.sections import Current
from vllmd.server import middleware
from vllmd.server.admission import OPEN, only_with_a_key
from vllmd.server.asked import SHORTCUT, Serve, Way
from vllmd.server.assets import FOLDER, Assets, read
from vllmd.server.control import Control
from vllmd.server.finish import Finish
from vllmd.server.fits import Fits
from vllmd.server.incidents import Incidents
from vllmd.server.logs import Logs
from vllmd.server.metrics import Metrics
from vllmd.server.openai import INFERENCE, OpenAI
from vllmd.server.openapi import Description
from vllmd.server.origin import only_known_hosts
from vllmd.server.prompt import Prompt
from vllmd.server.reload import Reload
from vllmd.server.reply import Reply
from vllmd.server.requests import Requests
from vllmd.server.service import Service
from vllmd.server.stored import Stored
from vllmd.server.unambiguous import unambiguous
from vllmd.server.upgrade import Upgrade
from vllmd.server.versions import Versions
from vllmd.server.work import Work


def build(service: Service, reload: Reload, addresses: tuple[str, ...]) -> web.Application:
    """The application that all doors share.

    Args:
        service: what there is to ask.
        reload: reads the configuration anew.
        addresses: where clients come in.
    """
    current, supervisors = service.current, service.supervisors
    control = Control(current, supervisors, service.feed, service.jobs, service.calls, service.accounts, addresses)
    logs = Logs(current, supervisors)

    openai = OpenAI(service.relay, supervisors, current, service.accounts)
    checks, finish, asking = _checks(service), Finish(service.calls), _asking(service, openai)
    app = _guarded([unambiguous, *checks], finish)
    app[SHORTCUT] = Way(asking, middleware.guarded(checks), finish)  # what is ordinary is not ambiguous
    app.on_shutdown.extend((control.dismiss, logs.dismiss))
    app.add_routes(
        [
            *(web.post(path, _by_aiohttp(handler)) for path, handler in asking.items()),
            web.get(routes.MODELS, openai.models),
            web.get(routes.MODELS + "/{name:.+}", openai.model),
            *_page(current),
            *_watching(service, control, logs),
            *_maintaining(service, reload),
            *_models(service, control),
        ]
    )
    return app


def _asking(service: Service, openai: OpenAI) -> dict[str, Serve]:
    """Whatever asks a model for something, by its path: all of them are POST."""
    prompt = Prompt(service.relay, service.current, service.accounts)
    return {
        **{path: openai.infer(path) for path in INFERENCE},
        routes.PROMPT: prompt.prompt,
        routes.WORKFLOW_RUNS: prompt.workflow_run,
    }


def _page(current: Current) -> list[web.RouteDef]:
    assets = Assets(current, dict(read(FOLDER)))
    return [
        web.get(routes.OPENAPI, Description().serve),
        web.get(routes.PAGE, assets.index),
        web.get(routes.PAGE_FILES + "{file:.+}", assets.file),
    ]


def _watching(service: Service, control: Control, logs: Logs) -> list[web.RouteDef]:
    current, supervisors, calls = service.current, service.supervisors, service.calls
    requests = Requests(calls, current)
    incidents = Incidents(current, supervisors.keys(), archive_in(Path(current.config.paths.state)))
    return [
        web.get(routes.HEALTH, control.health),
        web.get(routes.READY, control.ready),
        web.get(routes.STATUS, control.status),
        web.get(routes.EVENTS, control.events),
        web.get(routes.LOGS, logs.lines),
        web.get(routes.METRICS, Metrics(current, supervisors, calls, service.tallies).page),
        web.get(routes.REQUESTS, requests.list),
        web.delete(routes.REQUESTS + "/{id:.+}", requests.cancel),
        web.get(routes.INCIDENTS, incidents.list),
        web.get(routes.INCIDENTS + "/{id:.+}", incidents.whole),
    ]


def _maintaining(service: Service, reload: Reload) -> list[web.RouteDef]:
    work, versions = Work(service.current, service.jobs), _versions(service)
    return [
        web.get(routes.JOBS, work.list),
        web.get(routes.JOBS + "/{id:[0-9]+}", work.show),
        web.delete(routes.JOBS + "/{id:[0-9]+}", work.cancel),
        web.get(routes.ENVIRONMENTS, versions.list),
        web.post(routes.ENVIRONMENTS, versions.install),
        web.post(routes.ENVIRONMENTS + "/{id:[^/]+}/use", versions.use),
        web.delete(routes.ENVIRONMENTS + "/{id:[^/]+}", versions.remove),
        web.get(routes.PLAN, reload.plan),
        web.post(routes.RELOAD, reload.reload),
    ]


def _versions(service: Service) -> Versions:
    current, settling, environments = service.current, service.settling, service.environments
    upgrade = Upgrade(current, settling, environments, service.supervisors, service.calls)
    return Versions(current, settling, environments, service.supervisors, upgrade, service.jobs, service.calls)


def _models(service: Service, control: Control) -> list[web.RouteDef]:
    stored = Stored(service.current, service.supervisors, service.library, service.calls)
    return [
        web.get("/api/models/{name:.+}/fit", Fits(service.current, service.supervisors).fit),
        web.post(routes.PULL, stored.pull),
        web.post(routes.VERIFY, stored.verify),
        web.post(routes.PRUNE, stored.prune),
        web.get(routes.LOCAL, stored.list),
        web.delete(routes.LOCAL + "/{name:.+}", stored.remove),
        web.post("/api/models/{name:.+}/{verb:load|unload|restart}", control.order),
    ]


def _guarded(checks: list[middleware.Check], finish: Finish) -> web.Application:
    """An application without routes: what a request has to pass before those, and what its answer bears."""
    app = web.Application(middlewares=[middleware.guarded(checks)])
    app[middleware.CHECKS] = checks
    app.on_response_prepare.append(finish.signal)
    return app


def _checks(service: Service) -> list[middleware.Check]:
    """What every request has to pass."""
    current = service.current
    open_to_all = OPEN | ({routes.METRICS} if current.config.metrics.access == "open" else set())
    return [only_known_hosts(current), only_with_a_key(service.keyring, service.accounts, open_to_all)]


def _by_aiohttp(serve: Serve) -> Handler:
    """A handler as aiohttp knows them."""

    @wraps(serve)
    async def handle(request: web.Request) -> web.StreamResponse:
        answer = await serve(request)
        return answer.response() if isinstance(answer, Reply) else answer

    return handle
