"""The requests for inference that are under way: who may see them, what is told of them, and ending one."""

import logging
import time
from collections.abc import Iterable

from aiohttp import web

from vllmd import statuses, wire
from vllmd.errors import Cancelled, Denied, RequestNotFound
from vllmd.sections import Current
from vllmd.server.access import Identity, administers, identify
from vllmd.server.bodies import json_response
from vllmd.server.calls import Call, Calls

log = logging.getLogger(__name__)


class Requests:
    """The handlers of `/api/requests`. Administrators see all requests, everybody else those of their own identity.

    Args:
        calls: what is under way.
        current: says who administers.
    """

    def __init__(self, calls: Calls, current: Current) -> None:
        self._calls = calls
        self._current = current

    async def list(self, request: web.Request) -> web.Response:
        """`GET /api/requests`: the oldest first."""
        told = [wire.to_json(describe(call)) for call in self._of(identify(request))]
        return json_response({"requests": told})

    async def cancel(self, request: web.Request) -> web.Response:
        """`DELETE /api/requests/{id}`: 202; the client is told at once, and the engine's work ends.

        Clients may choose their ids, and so may use one twice: all with it that the caller may end are ended.

        Raises:
            RequestNotFound: there is none.
            Denied: there is one, of somebody else.
        """
        identity, wanted = identify(request), request.match_info["id"]
        if not any(call.id == wanted for call in self._calls):
            raise RequestNotFound(f"no request {wanted!r} is under way", "see:  vllmctl ps")
        found = [call for call in self._of(identity) if call.id == wanted]
        if not found:
            raise Denied("this request is somebody else's", "administrators may cancel it")
        for call in found:
            log.info("request %s: cancelled by %s", call.id, identity.name)
            message = f"the request was cancelled by {identity.name}"
            self._calls.cancel(call, Cancelled(message, "ask again if the answer is wanted after all"))
        return json_response({"id": wanted, "cancelled": len(found)}, status=202)

    def _of(self, identity: Identity) -> Iterable[Call]:
        """The calls that somebody may see and end."""
        sees_all = administers(identity, self._current.config.access.admin_group)
        return [call for call in self._calls if sees_all or call.who == identity.name]


def describe(call: Call) -> statuses.RequestStatus:
    """One call as it is told of."""
    age_s, answer = time.monotonic() - call.began_at, call.answer
    return statuses.RequestStatus(
        id=call.id,
        who=call.who,
        model=call.model,
        path=call.path,
        state="held" if call.held else "running",
        since=time.time() - age_s,
        age_s=round(age_s, 3),
        stream=call.stream,
        tokens=answer.tokens if answer and call.stream else None,
        tokens_per_s=rate_of([call]),
        replays=answer.replays if answer else 0,
        continuations=answer.continuations if answer else 0,
    )


def rate_of(calls: Iterable[Call]) -> float | None:
    """Tokens per second of all these streams together, each on average but for its waits; None if none has any."""
    rates = [_rate(call) for call in calls]
    return round(sum(rates), 1) if any(rates) else None


def _rate(call: Call) -> float:
    if call.held or not call.stream or call.sent_at is None or call.answer is None:
        return 0.0
    at_work_s = time.monotonic() - call.began_at - call.held_s
    return call.answer.tokens / max(at_work_s, 1e-3)
