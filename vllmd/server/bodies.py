"""JSON in and out: from a client's request to a call, and from a value to a response."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from vllmd.errors import ModelNotFound, RequestError, VllmdError
from vllmd.routes import WAIT_HEADER
from vllmd.server.access import identify
from vllmd.server.calls import Call
from vllmd.settings import nearest
from vllmd.wire import dumps

REQUEST_ID = web.RequestKey("request_id", str)

_PASSED = frozenset({"accept", "user-agent", "traceparent", "tracestate", "anthropic-version", "anthropic-beta"})
"""The client's headers that the engine gets to see."""


async def read_json(request: web.Request) -> object:
    """The body as JSON, whatever the content type says: curl's `-d` sends a form type.

    Raises:
        RequestError: it is not JSON.
    """
    body = await request.read()
    if not body:
        raise RequestError("the body is empty", 'send JSON, such as {"prompt": "…"}')
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}", "check quotes and commas") from None


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.json_response(value, status=status, dumps=dumps)


def mistake(request_id: str) -> VllmdError:
    """What a client is told of an error that nobody foresaw; the log says the rest."""
    return VllmdError("vllmd made a mistake", f"its log says more about request {request_id}")


def choose_model(wanted: object, known: Iterable[str], default: str) -> str:
    """The configured model that a request means; None and an empty name mean the default.

    Raises:
        RequestError: the name is no string.
        ModelNotFound: no such model; lists the known ones.
    """
    if wanted is None or wanted == "":
        return default
    if not isinstance(wanted, str):
        raise RequestError(f"model: expected a string, found {wanted!r}", param="model")
    names = list(known)
    if wanted not in names:
        listed = ", ".join(names)
        raise ModelNotFound(f"no model {wanted!r} here{nearest(wanted, names)}", f"known are: {listed}", "model")
    return wanted


def make_call(request: web.Request, *, model: str, path: str, body: bytes, stream: bool) -> Call:
    """The call that `request` makes for; the body is what the engine will be sent."""
    return Call(
        id=request[REQUEST_ID],
        who=identify(request).name,
        model=model,
        path=path,
        body=body,
        headers=_engine_headers(request),
        stream=stream,
        may_wait=request.headers.get(WAIT_HEADER, "1").strip() != "0",
    )


def _engine_headers(request: web.Request) -> Mapping[str, str]:
    passed: dict[str, Any] = {key: value for key, value in request.headers.items() if key.lower() in _PASSED}
    return {**passed, "Content-Type": "application/json", "X-Request-Id": request[REQUEST_ID]}
