"""`/v1`: OpenAI's API (and Anthropic's messages), relayed to the engine that serves the model."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from vllmd import routes
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import RequestError, VllmdError
from vllmd.sections import Current
from vllmd.server import demands
from vllmd.server.access import Identity, identify
from vllmd.server.accounts import Accounts
from vllmd.server.asked import Serve
from vllmd.server.bodies import choose_model, json_response, make_call, read_body, read_json
from vllmd.server.calls import Call
from vllmd.server.doors import PlainDoor
from vllmd.server.relay import Relay
from vllmd.server.reply import Answer

INFERENCE = (
    routes.CHAT_COMPLETIONS,
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
"""The engine's routes that clients reach. Its management and development routes are none of them."""

STREAMING = frozenset({routes.CHAT_COMPLETIONS, "/v1/completions", "/v1/responses", "/v1/messages"})
"""Those that can answer with a stream; only there may a held request be told how far the model is."""


class OpenAI:
    """The handlers of `/v1`.

    Args:
        relay: carries the calls.
        supervisors: one for each model.
        current: the models, and how much one request may ask for.
        accounts: which priority whose requests have.
    """

    def __init__(
        self, relay: Relay, supervisors: Mapping[str, Supervisor], current: Current, accounts: Accounts
    ) -> None:
        self._relay = relay
        self._supervisors = supervisors
        self._current = current
        self._accounts = accounts

    def infer(self, path: str) -> Serve:
        """The handler of the engine's route `path`."""

        async def relay(request: web.BaseRequest) -> Answer:
            """Relays a request for inference; its bytes pass unchanged."""
            try:
                call, door = await self._call(request, path), PlainDoor(request)
            except VllmdError as error:
                self._relay.note_refusal(request, error)
                raise
            await self._relay.carry(call, door)
            assert door.response is not None, "a call that ends without an error has an answer"
            return door.response

        return relay

    async def _call(self, request: web.BaseRequest, path: str) -> Call:
        """What is asked. The request's JSON is looked at here and not kept."""
        body = await read_body(request, self._current.config.limits)
        table = read_json(body)
        if not isinstance(table, dict):
            raise RequestError("the body is not a JSON object")
        model = choose_model(table.get("model"), self._supervisors, self._current.config.default_model)
        who = identify(request)
        return make_call(
            request,
            who=who,
            model=model,
            path=path,
            body=self._checked(body, table, path, model, who),
            stream=table.get("stream") is True and path in STREAMING,
            begins_traces=self._current.config.relay.trace,
        )

    def _checked(self, body: bytes, table: Mapping[str, Any], path: str, model: str, who: Identity) -> bytes:
        """What the engine is sent: the client's bytes. Raises RequestError if they ask for too much."""
        limits = self._current.config.limits
        demands.check(table, path, limits)
        is_prioritised = self._current.config.models[model].is_prioritised
        priority = self._accounts.of(who).allowed.priority if is_prioritised else None
        added = demands.additions(table, path, limits, priority)
        return demands.with_additions(body, added)

    async def models(self, request: web.Request) -> web.Response:
        """Every configured model, loaded or not, in OpenAI's shape with a `status`."""
        return json_response({"object": "list", "data": [_card(each) for each in self._supervisors.values()]})

    async def model(self, request: web.Request) -> web.Response:
        """One model."""
        name = choose_model(request.match_info["name"], self._supervisors, self._current.config.default_model)
        return json_response(_card(self._supervisors[name]))


def _card(supervisor: Supervisor) -> dict[str, Any]:
    status = supervisor.status
    return {
        "id": supervisor.name,
        "object": "model",
        "created": int(status.since),
        "owned_by": "vllmd",
        "root": status.model,
        "status": status.state,
    }
