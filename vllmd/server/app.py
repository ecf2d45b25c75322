"""The route table and the order of the middleware: everything that is served, on one screen."""

from collections.abc import Mapping

from aiohttp import web

from vllmd import wire
from vllmd.config import Config
from vllmd.engine.feed import Feed
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
from vllmd.server.requests import Requests
from vllmd.server.unambiguous import unambiguous


def build(
    config: Config,
    supervisors: Mapping[str, Supervisor],
    feed: Feed,
    calls: Calls,
    accounts: Accounts,
    keyring: Keyring | None,
    addresses: tuple[str, ...],
) -> web.Application:
    """The application that all doors share."""
    relay = Relay(config, supervisors, feed, calls, accounts)
    openai = OpenAI(relay, supervisors, config, accounts)
    prompt = Prompt(relay, config, accounts)
    control = Control(config, supervisors, feed, calls, accounts, addresses)
    logs = Logs(config, supervisors)
    requests = Requests(calls, config.access.admin_group)

    app = web.Application(
        middlewares=[
            middleware.request_id,
            middleware.errors,
            unambiguous,
            only_known_hosts(config.listen.names, config.listen.origins),
            only_with_a_key(keyring, accounts),
        ],
        client_max_size=config.limits.body_bytes,
    )
    app[middleware.BODY_BYTES] = config.limits.body_bytes
    app.on_response_prepare.extend((middleware.sign, shield))
    app.on_shutdown.extend((control.dismiss, logs.dismiss))
    app.add_routes(
        [
            *(web.post(path, openai.infer) for path in INFERENCE),
            web.get(wire.MODELS, openai.models),
            web.get(wire.MODELS + "/{name:.+}", openai.model),
            web.post(wire.PROMPT, prompt.prompt),
            web.post(wire.WORKFLOW_RUNS, prompt.workflow_run),
            web.get(wire.OPENAPI, Description().serve),
            web.get(wire.HEALTH, control.health),
            web.get(wire.READY, control.ready),
            web.get(wire.STATUS, control.status),
            web.get(wire.EVENTS, control.events),
            web.get(wire.LOGS, logs.lines),
            web.get(wire.REQUESTS, requests.list),
            web.delete(wire.REQUESTS + "/{id:.+}", requests.cancel),
            web.post("/api/models/{name:.+}/{verb:load|unload|restart}", control.order),
        ]
    )
    return app
