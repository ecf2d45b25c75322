"""What surrounds every request: an id, checks, and errors in one shape; and what every answer bears.

aiohttp would take a coroutine for each of these. All of them are plain functions, called by one coroutine before, and
by one signal after: a short request would pay for each, and a stream would keep them for as long as it lasts.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from random import getrandbits
from typing import Protocol, TypeVar

from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from vllmd import __version__
from vllmd.about import CURRENT
from vllmd.errors import (
    MethodNotAllowed,
    RequestError,
    RouteNotFound,
    Unauthenticated,
    Unavailable,
    VllmdError,
    outcome_of,
)
from vllmd.server.access import IDENTITY, peer_of
from vllmd.server.bodies import REQUEST_ID, json_response, mistake
from vllmd.wire import error_body

log = logging.getLogger(__name__)

SERVER = f"vllmd/{__version__}"
SHIELD = CIMultiDict(
    {
        hdrs.CACHE_CONTROL: "no-store",
        istr("Content-Security-Policy"): "default-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        istr("Cross-Origin-Resource-Policy"): "same-origin",
        istr("Referrer-Policy"): "no-referrer",
        istr("X-Content-Type-Options"): "nosniff",
        istr("X-Frame-Options"): "DENY",
    }
)
"""What a browser is told that shows an answer as if it were a page: a model's words are not to be run, framed or kept.
A handler that has a page to show sets its own policy. An `istr` knows its lower case; of any other string, every answer
would make and keep its own."""

_REQUEST_ID = istr("X-Request-Id")
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

Check = Callable[[web.BaseRequest], web.Response | None]
"""Looks at a request: raises what is wrong with it, or answers it itself, or leaves it to the next."""

CHECKS = web.AppKey("checks", list[Check])
"""All of an application's, in their order."""

R = TypeVar("R", bound=web.BaseRequest)
A = TypeVar("A")


class Guard(Protocol):
    """Serves a request by its handler, whatever happens there."""

    async def __call__(self, request: R, handler: Callable[[R], Awaitable[A]]) -> A | web.Response:
        """The answer; never a VllmdError."""


def guarded(checks: Iterable[Check]) -> Guard:
    """The middleware that gives a request its id, makes the checks, serves it, and turns every failure into an error
    body; an unforeseen one is logged and told without its traceback."""

    @web.middleware
    async def guard(request: R, handler: Callable[[R], Awaitable[A]]) -> A | web.Response:
        _identify(request)
        try:
            for check in checks:
                if (answer := check(request)) is not None:
                    return answer
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

    return guard


def _identify(request: web.BaseRequest) -> None:
    """Keeps the client's `X-Request-Id`, or makes one; a client's that could break a log line is replaced.

    What is logged for the request says so (`about.CURRENT`). Who asks is, until a key says more, who is at the other
    end of the connection.
    """
    given, peer = request.headers.get(_REQUEST_ID), peer_of(request)
    request_id = given if given and _SANE_ID.fullmatch(given) else f"{getrandbits(128):032x}"
    request[REQUEST_ID], request[IDENTITY] = request_id, peer
    about = {"request_id": request_id}
    CURRENT.set(about if peer.uid is None else {**about, "uid": str(peer.uid)})


def _nobody(request: web.BaseRequest) -> web.Response:
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


def _named(request: web.BaseRequest, error: web.HTTPException) -> VllmdError:
    """One of aiohttp's own refusals, in our words."""
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound(f"nothing is served at {request.path}", "README.md shows the routes")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method} does not fit {request.path}", f"use {allowed}")
    return RequestError(error.reason)


def sign(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Puts the daemon's name and the request's id on an answer."""
    response.headers[hdrs.SERVER] = SERVER
    if request_id := request.get(REQUEST_ID):  # aiohttp answers an Expect that it does not know before there is one
        response.headers[_REQUEST_ID] = request_id
