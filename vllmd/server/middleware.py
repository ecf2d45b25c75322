"""What surrounds every request: an id, and errors in one shape."""

import logging
import re
from collections.abc import Awaitable, Callable
from random import getrandbits

from aiohttp import web
from aiohttp.typedefs import Handler

from vllmd import __version__
from vllmd.about import CURRENT
from vllmd.errors import (
    BodyTooLarge,
    MethodNotAllowed,
    RequestError,
    RouteNotFound,
    Unauthenticated,
    Unavailable,
    VllmdError,
    outcome_of,
)
from vllmd.server.access import peer_of
from vllmd.server.bodies import REQUEST_ID, json_response, mistake
from vllmd.server.calls import Calls
from vllmd.wire import error_body

log = logging.getLogger(__name__)

SERVER = f"vllmd/{__version__}"
SHIELD = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What a browser is told that shows an answer as if it were a page: a model's words are not to be run, framed or kept.
A handler that has a page to show sets its own policy."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@web.middleware
async def request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keeps the client's `X-Request-Id`, or makes one; a client's that could break a log line is replaced.

    What is logged for the request says so (`about.CURRENT`).
    """
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if given and _SANE_ID.fullmatch(given) else f"{getrandbits(128):032x}"
    uid = peer_of(request).uid
    CURRENT.set({"request_id": request[REQUEST_ID], **({} if uid is None else {"uid": str(uid)})})
    return await handler(request)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every failure into an error body; an unforeseen one is logged and told without its traceback."""
    try:
        return await handler(request)
    except VllmdError as error:
        return error_response(error)
    except web.HTTPException as error:
        return error_response(_named(request, error), error)
    except (ConnectionError, TimeoutError):
        return _nobody(request)  # the client is gone, or takes nothing any more (aiohttp-sse's send_timeout)
    except Exception:
        log.exception("request %s: unforeseen error", request[REQUEST_ID])
        # Once part of an answer is out, a second head would only land in the middle of it.
        return _nobody(request) if request.writer.output_size else error_response(mistake(request[REQUEST_ID]))


def _nobody(request: web.Request) -> web.Response:
    """Cuts the connection. aiohttp wants a response nevertheless, and drops it without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def error_response(error: VllmdError, cause: web.HTTPException | None = None) -> web.Response:
    """An error as HTTP: status, body, and the headers that belong to it."""
    response = json_response(error_body(error), status=outcome_of(error).status)
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if cause is not None and "Allow" in cause.headers:
        response.headers["Allow"] = cause.headers["Allow"]
    return response


def _named(request: web.Request, error: web.HTTPException) -> VllmdError:
    """One of aiohttp's own refusals, in our words."""
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound(f"nothing is served at {request.path}", "README.md shows the routes")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method} does not fit {request.path}", f"use {allowed}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.app[BODY_BYTES]
        return BodyTooLarge(f"the body is over {limit} bytes", "send less, or raise limits.body_bytes")
    return RequestError(error.reason)


BODY_BYTES = web.AppKey("body_bytes", int)


def part_if(calls: Calls) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Once no more calls are taken, each answer is the last on its connection (a signal of aiohttp's)."""

    async def part(request: web.Request, response: web.StreamResponse) -> None:
        if calls.is_closed:
            response.force_close()
            response.headers["Connection"] = "close"

    return part


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Puts the daemon's name and the request's id on every response (a signal of aiohttp's, so streams too)."""
    response.headers["Server"] = SERVER
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
