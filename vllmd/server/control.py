"""Watching and steering the daemon: health, readiness, status, events, load and unload."""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from vllmd import __version__, routes, statuses, wire
from vllmd.engine.feed import Entry, Feed
from vllmd.engine.jobs import Jobs
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import NotReady, RequestError
from vllmd.incident import Incident
from vllmd.lifecycle import Event, Load, Restart, State, Unload
from vllmd.provisions import JobStatus
from vllmd.sections import Current
from vllmd.server.access import IS_STRANGER, identify, require_administrator, why_denied
from vllmd.server.accounts import Accounts
from vllmd.server.bodies import choose_model, json_response
from vllmd.server.calls import Calls
from vllmd.server.doors import require_client
from vllmd.server.followers import Followers
from vllmd.server.queries import WAIT
from vllmd.server.queue import places
from vllmd.server.refusals import not_ready, retry_after_s
from vllmd.server.requests import rate_of
from vllmd.statuses import Continued, ModelStatus

_SETTLED = (State.READY, State.ASLEEP, State.STOPPED, State.FAILED)
_NUMBER = re.compile("[0-9]{1,18}")
_EVENTS: dict[type, str] = {ModelStatus: "model", JobStatus: "job", Continued: "continued", Incident: "incident"}
_ORDERS: dict[str, Event] = {"load": Load(ordered=True), "unload": Unload(), "restart": Restart()}


class Control:
    """The handlers that ask about engines or give orders to supervisors.

    Args:
        current: who may administer, and which model is the default.
        supervisors: one for each model.
        feed: what happens to them.
        jobs: the daemon's own long work.
        calls: what they are working on.
        accounts: what everybody has had.
        addresses: where clients come in.
    """

    def __init__(
        self,
        current: Current,
        supervisors: Mapping[str, Supervisor],
        feed: Feed,
        jobs: Jobs,
        calls: Calls,
        accounts: Accounts,
        addresses: tuple[str, ...],
    ) -> None:
        self._current = current
        self._supervisors = supervisors
        self._feed = feed
        self._jobs = jobs
        self._calls = calls
        self._accounts = accounts
        self._since = time.time()
        self._addresses = addresses
        self._followers = Followers()
        self.dismiss = self._followers.dismiss

    async def health(self, request: web.Request) -> web.Response:
        """200 while the event loop turns."""
        return json_response({"status": "alive"})

    async def ready(self, request: web.Request) -> web.Response:
        """200 only while the default model answers with tokens, or would when its turn in memory has come; why it does
        not is none of a stranger's business."""
        supervisor = self._supervisors[self._current.config.default_model]
        if supervisor.status.is_available:
            return json_response({"status": "ready", "model": supervisor.name})
        if request.get(IS_STRANGER):
            raise NotReady("the service is not ready", "a key shows the reason", retry_after_s(supervisor))
        raise not_ready(supervisor)

    async def status(self, request: web.Request) -> web.Response:
        """Everything at a glance; of what others have used, only administrators are told."""
        who, config = identify(request), self._current.config
        denied = why_denied(who, config.access.admin_group)
        models = await asyncio.gather(*map(self._status_of, self._supervisors.values()))
        default = self._supervisors[config.default_model]
        status = statuses.Status(
            version=__version__,
            state=default.engine.state.value,
            model=default.name,
            since=self._since,
            addresses=self._addresses,
            models=tuple(models),
            usage=tuple(each for each in self._accounts.usage() if not denied or each.who == who.name),
            queue_limit=config.queue.limit,
            asker=who.name,
            denied=denied,
        )
        return json_response(wire.to_json(status))

    async def _status_of(self, supervisor: Supervisor) -> ModelStatus:
        gauges = await supervisor.gauges()
        running, held = self._calls.count(supervisor.name)
        return replace(
            supervisor.status,
            running=running,
            held=held,
            tokens_per_s=rate_of(call for call in self._calls if call.model == supervisor.name),
            places=places(self._current.config).get(supervisor.name, 0),
            engine_running=gauges.running if gauges else None,
            engine_waiting=gauges.waiting if gauges else None,
            kv_cache_usage=gauges.kv_cache_usage if gauges else None,
            used_at=_wall_time(self._calls.used_at(supervisor.name)),
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Every change of state and phase, every incident: the present first, or what came after `Last-Event-ID`."""
        last = _last_event_id(request)
        require_client(request)
        async with (
            self._followers.joined(),
            sse_response(request, sep="\n", ping_interval=self._current.config.sse.keepalive_s) as stream,
        ):
            if last is None or last > self._feed.last:  # a number of another life of the daemon's
                last = self._feed.last
                await _send(stream, [Entry(last, each) for each in self._present()])
            while True:
                entries, missed = await self._feed.after(last)
                if missed:
                    await stream.send(wire.dumps({"missed": missed}), event="missed")
                await _send(stream, entries)
                last = entries[-1].number

    def _present(self) -> Iterator[ModelStatus | JobStatus]:
        """All models, and the jobs that run."""
        yield from (each.status for each in self._supervisors.values())
        yield from (each.status for each in self._jobs.values() if not each.is_over)

    async def order(self, request: web.Request) -> web.Response:
        """`POST /api/models/{name}/load`, `/unload`, `/restart`: 202 at once, or the outcome with `?wait=1`."""
        require_administrator(identify(request), self._current.config.access.admin_group)
        wait = WAIT.read(request)
        self._calls.refuse_if_closed()
        name = choose_model(request.match_info["name"], self._supervisors, self._current.config.default_model)
        supervisor, verb = self._supervisors[name], request.match_info["verb"]
        supervisor.post(_ORDERS[verb])
        if not wait:
            return json_response({"model": name, "watch": routes.EVENTS}, status=202)
        await self._outcome(supervisor, verb)
        return json_response(wire.to_json(await self._status_of(supervisor)))

    async def _outcome(self, supervisor: Supervisor, verb: str) -> None:
        """Waits until an order has come to its end. Raises EngineFailed or NotReady if that is not the one wanted."""
        await asyncio.sleep(0)  # the supervisor takes the order before its state means anything
        while not _is_settled(supervisor):
            await self._feed.after(self._feed.last)
        if verb != "unload" and supervisor.engine.state is not State.READY:
            raise not_ready(supervisor)
        if verb == "unload" and supervisor.engine.state is not State.STOPPED:
            raise NotReady(f"{supervisor.name} was loaded again meanwhile: {supervisor.status.summary}")


def _is_settled(supervisor: Supervisor) -> bool:
    """Whether nothing more comes soon; others who are away may be so for a night, and nobody waits that long."""
    engine = supervisor.engine
    is_patient = engine.state is State.BACKOFF and engine.setbacks > supervisor.policy.restart_limit
    return engine.state in _SETTLED or is_patient


def _wall_time(at: float) -> float | None:
    """Unix seconds of a moment in `time.monotonic`'s; None for one that never was."""
    return time.time() - time.monotonic() + at if at else None


def _last_event_id(request: web.Request) -> int | None:
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise RequestError(f"Last-Event-ID: expected a number, found {text!r}", param="Last-Event-ID")
    return int(text)


async def _send(stream: EventSourceResponse, entries: Sequence[Entry]) -> None:
    for entry in entries:
        body = wire.dumps(wire.to_json(entry.news))
        await stream.send(body, id=str(entry.number), event=_EVENTS[type(entry.news)])
