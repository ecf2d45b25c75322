"""The route table and the order of the middleware: everything that is served, on one screen."""

from collections.abc import Mapping

from aiohttp import web

from vllmd import routes
from vllmd.config import Current
from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Jobs
from vllmd.engine.library import Library
from vllmd.engine.supervisor import Supervisor
from vllmd.server import middleware
from vllmd.server.accounts import Accounts
from vllmd.server.admission import only_with_a_key
from vllmd.server.calls import Calls
from vllmd.server.control import Control
from vllmd.server.keyring import Keyring
from vllmd.server.logs import Logs
from vllmd.server.openai import INFERENCE, OpenAI
from vllmd.server.openapi import Description
from vllmd.server.origin import only_known_hosts, shield
from vllmd.server.prompt import Prompt
from vllmd.server.relay import Relay
from vllmd.server.reload import Reload
from vllmd.server.requests import Requests
from vllmd.server.stored import Stored
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
) -> web.Application:
    """The application that all doors share."""
    openai = OpenAI(relay, supervisors, current, accounts)
    prompt = Prompt(relay, current, accounts)
    control = Control(current, supervisors, feed, jobs, calls, accounts, addresses)
    logs = Logs(current, supervisors)
    work, stored = Work(current, jobs), Stored(current, supervisors, library)
    requests = Requests(calls, current)

    app = _guarded(current, keyring, accounts)
    app.on_response_prepare.extend((middleware.sign, shield, middleware.part_if(calls)))
    app.on_shutdown.extend((control.dismiss, logs.dismiss))
    app.add_routes(
        [
            *(web.post(path, openai.infer) for path in INFERENCE),
            web.get(routes.MODELS, openai.models),
            web.get(routes.MODELS + "/{name:.+}", openai.model),
            web.post(routes.PROMPT, prompt.prompt),
            web.post(routes.WORKFLOW_RUNS, prompt.workflow_run),
            web.get(routes.OPENAPI, Description().serve),
            web.get(routes.HEALTH, control.health),
            web.get(routes.READY, control.ready),
            web.get(routes.STATUS, control.status),
            web.get(routes.EVENTS, control.events),
            web.get(routes.LOGS, logs.lines),
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
            web.delete(routes.REQUESTS + "/{id:.+}", requests.cancel),
            web.post(routes.PULL, stored.pull),
            web.post(routes.VERIFY, stored.verify),
            web.get(routes.LOCAL, stored.list),
            web.delete(routes.LOCAL + "/{name:.+}", stored.remove),
            web.post("/api/models/{name:.+}/{verb:load|unload|restart}", control.order),
        ]
    )
    return app


def _guarded(current: Current, keyring: Keyring | None, accounts: Accounts) -> web.Application:
    """An application without routes, and what stands around those, from outside in."""
    body_bytes = current.config.limits.body_bytes
    app = web.Application(
        middlewares=[
            middleware.request_id,
            middleware.errors,
            unambiguous,
            only_known_hosts(current),
            only_with_a_key(keyring, accounts),
        ],
        client_max_size=body_bytes,
    )
    app[middleware.BODY_BYTES] = body_bytes
    return app
