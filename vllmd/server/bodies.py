"""JSON in and out: from a client's request to a call, and from a value to a response."""

import asyncio
import json
from collections.abc import Collection, Sized
from typing import TypeVar

from aiohttp import hdrs, web

from vllmd import trace
from vllmd.about import CURRENT
from vllmd.errors import BodyTooLarge, ModelNotFound, RequestError, TooSlow, VllmdError
from vllmd.limits import Limits
from vllmd.routes import WAIT_HEADER
from vllmd.server.access import Identity
from vllmd.server.calls import Call
from vllmd.settings import nearest
from vllmd.wire import dumps

T = TypeVar("T", bound=Sized)

REQUEST_ID = web.RequestKey("request_id", str)

_PASSED = (hdrs.ACCEPT, hdrs.USER_AGENT, "anthropic-version", "anthropic-beta")
"""The client's headers that the engine gets to see, beside those of `trace`."""

BYTES_PER_S = 64 * 1024
"""So fast a body has to come at least, after the time that any may take."""


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """The whole body, decompressed.

    Raises:
        TooSlow: it does not come in time. The rest of it is not waited for.
        BodyTooLarge: it is over `limits.body_bytes`.
        RequestError: it breaks off, or is not compressed as it says.
    """
    try:
        if request.content.is_eof():  # it came together with its head, as nearly all do
            return _bounded(request.content.read_nowait(), limits.body_bytes)
        return await _rest(request, limits)
    except web.RequestPayloadError:
        raise RequestError("the body is not as its head says", "see Content-Encoding and Transfer-Encoding") from None


async def _rest(request: web.BaseRequest, limits: Limits) -> bytes:
    began_at, body = asyncio.get_running_loop().time(), bytearray()
    try:
        async with asyncio.timeout_at(began_at + limits.body_s) as deadline:
            async for piece in request.content.iter_any():
                body += piece
                _bounded(body, limits.body_bytes)
                deadline.reschedule(began_at + limits.body_s + len(body) / BYTES_PER_S)
    except TimeoutError:
        raise TooSlow(f"after {limits.body_s:g} s and more the body is not here", "send it faster") from None
    return bytes(body)


def _bounded(body: T, most: int) -> T:
    if len(body) > most:
        raise BodyTooLarge(f"the body is over {most} bytes", "send less, or raise limits.body_bytes")
    return body


def read_json(body: bytes) -> object:
    """A body as JSON, whatever the content type says: curl's `-d` sends a form type.

    Raises:
        RequestError: it is not JSON.
    """
    if not body:
        raise RequestError("the body is empty", 'send JSON, such as {"prompt": "…"}')
    try:
        # Nearly all JSON is UTF-8 (RFC 8259, 8.1), which begins so; else Python has to find out.
        return json.loads(body.decode(errors="surrogatepass") if body.startswith(b'{"') else body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}", "check quotes and commas") from None


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.json_response(value, status=status, dumps=dumps)


def mistake(request_id: str) -> VllmdError:
    """What a client is told of an error that nobody foresaw; the log says the rest."""
    return VllmdError("vllmd made a mistake", f"its log says more about request {request_id}")


def choose_model(wanted: object, known: Collection[str], default: str) -> str:
    """The configured model that a request means; None and an empty name mean the default.

    Raises:
        RequestError: the name is no string.
        ModelNotFound: no such model; lists the known ones.
    """
    if wanted is None or wanted == "":
        return default
    if not isinstance(wanted, str):
        raise RequestError(f"model: expected a string, found {wanted!r}", param="model")
    if wanted not in known:
        names = list(known)
        listed = ", ".join(names)
        raise ModelNotFound(f"no model {wanted!r} here{nearest(wanted, names)}", f"known are: {listed}", "model")
    return wanted


def make_call(
    request: web.BaseRequest,
    *,
    who: Identity,
    model: str,
    path: str,
    body: bytes,
    stream: bool,
    begins_traces: bool = False,
) -> Call:
    """The call that `request` makes for; the body is what the engine will be sent.

    Args:
        begins_traces: a request that is part of no trace begins one.
    """
    request_id = request[REQUEST_ID]
    headers = _engine_headers(request, request_id)
    if begins_traces or trace.PARENT in request.headers:
        headers |= _trace_headers(request, begins_traces)
    return Call(
        id=request_id,
        who=who.name,
        model=model,
        path=path,
        body=body,
        headers=headers,
        stream=stream,
        may_wait=request.headers.get(WAIT_HEADER, "1").strip() != "0",
    )


def _engine_headers(request: web.BaseRequest, request_id: str) -> dict[str, str]:
    headers = request.headers
    passed: dict[str, str] = {name: headers[name] for name in _PASSED if name in headers}
    return {**passed, "Content-Type": "application/json", "X-Request-Id": request_id}


def _trace_headers(request: web.BaseRequest, begins_traces: bool) -> dict[str, str]:
    """Those that tell the engine which trace the request is part of; what is logged for it says so from here on."""
    headers = request.headers
    found = trace.read(headers.getall(trace.PARENT, ()), headers.getall(trace.STATE, ()))
    if found is None and begins_traces:
        found = trace.begin()
    if found is None:
        return {}
    CURRENT.set({**CURRENT.get(), "trace_id": found.id})
    return found.headers
