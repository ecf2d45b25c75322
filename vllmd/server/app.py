"""The route table, and what stands around it: everything that is served, on one screen."""

from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from vllmd import routes
from vllmd.config import Current
from vllmd.engine.feed import Feed
from vllmd.engine.incidents import archive_in
from vllmd.engine.jobs import Jobs
from vllmd.engine.library import Library
from vllmd.engine.supervisor import Supervisor
from vllmd.server import middleware
from vllmd.server.accounts import Accounts
from vllmd.server.admission import OPEN, only_with_a_key
from vllmd.server.assets import FOLDER, Assets, read
from vllmd.server.calls import Calls
from vllmd.server.control import Control
from vllmd.server.fits import Fits
from vllmd.server.incidents import Incidents
from vllmd.server.keyring import Keyring
from vllmd.server.logs import Logs
from vllmd.server.metrics import Metrics
from vllmd.server.openai import INFERENCE, OpenAI
from vllmd.server.openapi import Description
from vllmd.server.origin import only_known_hosts, shield
from vllmd.server.prompt import Prompt
from vllmd.server.relay import Relay
from vllmd.server.reload import Reload
from vllmd.server.requests import Requests
from vllmd.server.stored import Stored
from vllmd.server.tallies import Tallies
from vllmd.server.unambiguous import unambiguous
from vllmd.server.versions import Versions
from vllmd.server.work import Work


def build(
    current: Current,
    supervisors: Mapping[str, Supervisor],
    feed: Feed,
    jobs: Jobs,
    versions: Versions,
    library: Library,
    calls: Calls,
    relay: Relay,
    reload: Reload,
    accounts: Accounts,
    keyring: Keyring | None,
    addresses: tuple[str, ...],
    tallies: Tallies,
) -> web.Application:
    """The application that all doors share."""
    openai = OpenAI(relay, supervisors, current, accounts)
    prompt = Prompt(relay, current, accounts)
    control = Control(current, supervisors, feed, jobs, calls, accounts, addresses)
    logs = Logs(current, supervisors)
    work, stored = Work(current, jobs), Stored(current, supervisors, library)
    requests = Requests(calls, current)
    assets = Assets(current, dict(read(FOLDER)))
    incidents = Incidents(current, supervisors.keys(), archive_in(Path(current.config.paths.state)))

    app = _guarded(current, keyring, accounts)
    app.on_response_prepare.append(middleware.finished(middleware.sign, shield, middleware.part_if(calls)))
    app.on_shutdown.extend((control.dismiss, logs.dismiss))
    app.add_routes(
        [
            *(web.post(path, openai.infer(path)) for path in INFERENCE),
            web.get(routes.MODELS, openai.models),
            web.get(routes.MODELS + "/{name:.+}", openai.model),
            web.post(routes.PROMPT, prompt.prompt),
            web.post(routes.WORKFLOW_RUNS, prompt.workflow_run),
            web.get(routes.OPENAPI, Description().serve),
            web.get(routes.PAGE, assets.index),
            web.get(routes.PAGE_FILES + "{file:.+}", assets.file),
            web.get(routes.HEALTH, control.health),
            web.get(routes.READY, control.ready),
            web.get(routes.STATUS, control.status),
            web.get(routes.EVENTS, control.events),
            web.get(routes.LOGS, logs.lines),
            web.get(routes.METRICS, Metrics(current, supervisors, calls, tallies).page),
            web.get(routes.REQUESTS, requests.list),
            web.get(routes.JOBS, work.list),
            web.get(routes.JOBS + "/{id:[0-9]+}", work.show),
            web.delete(routes.JOBS + "/{id:[0-9]+}", work.cancel),
            web.get(routes.ENVIRONMENTS, versions.list),
            web.post(routes.ENVIRONMENTS, versions.install),
            web.post(routes.ENVIRONMENTS + "/{id:[^/]+}/use", versions.use),
            web.delete(routes.ENVIRONMENTS + "/{id:[^/]+}", versions.remove),
            web.get(routes.PLAN, reload.plan),
            web.post(routes.RELOAD, reload.reload),
            web.get(routes.INCIDENTS, incidents.list),
            web.get(routes.INCIDENTS + "/{id:.+}", incidents.whole),
            web.delete(routes.REQUESTS + "/{id:.+}", requests.cancel),
            web.get("/api/models/{name:.+}/fit", Fits(current, supervisors).fit),
            web.post(routes.PULL, stored.pull),
            web.post(routes.VERIFY, stored.verify),
            web.get(routes.LOCAL, stored.list),
            web.delete(routes.LOCAL + "/{name:.+}", stored.remove),
            web.post("/api/models/{name:.+}/{verb:load|unload|restart}", control.order),
        ]
    )
    return app


def _guarded(current: Current, keyring: Keyring | None, accounts: Accounts) -> web.Application:
    """An application without routes, and what a request has to pass before those."""
    body_bytes = current.config.limits.body_bytes
    open_to_all = OPEN | ({routes.METRICS} if current.config.metrics.access == "open" else set())
    checks = [unambiguous, only_known_hosts(current), only_with_a_key(keyring, accounts, open_to_all)]
    app = web.Application(middlewares=[middleware.guarded(checks)], client_max_size=body_bytes)
    app[middleware.CHECKS] = checks
    app[middleware.BODY_BYTES] = body_bytes
    return app
