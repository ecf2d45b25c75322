"""A request to the engine and its answer back, with all promises about endings kept on the way.

`attempts` decides what is tried, `stream` carries the bytes of one attempt, a door writes what the client sees. Here a
call is counted while it is under way, and whatever goes wrong is brought to its client as an error.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiohttp import web

from vllmd import routes
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import VllmdError
from vllmd.sections import Current
from vllmd.server.access import identify
from vllmd.server.accounts import Accounts
from vllmd.server.attempts import Attempts
from vllmd.server.bodies import REQUEST_ID, mistake
from vllmd.server.calls import Call, Calls
from vllmd.server.continuation import Transcript
from vllmd.server.doors import Door
from vllmd.server.ended import Ended, ended, refused
from vllmd.server.outcomes import Outcome, by_order, of_error, of_status, status_of
from vllmd.server.queue import Queue, places
from vllmd.server.requestlog import log_prompt, log_request, warn_of_prompts
from vllmd.server.silence import patience
from vllmd.server.stream import Stream
from vllmd.server.watch import Watch

log = logging.getLogger(__name__)


class Relay:
    """Carries calls to engines and answers to doors.

    Args:
        current: how long to wait, how often to try again, how much silence to bear.
        supervisors: one for each model.
        feed: changes when an engine's state does.
        calls: where calls are counted while they are under way.
        accounts: what each identity may have under way.
        on_end: is told of every request's end.
        on_lag: is told now and then how late the event loop is, in seconds.
    """

    def __init__(
        self,
        current: Current,
        supervisors: Mapping[str, Supervisor],
        feed: Feed,
        calls: Calls,
        accounts: Accounts | None = None,
        on_end: Callable[[Ended], None] = lambda record: None,
        on_lag: Callable[[float], None] = lambda lag_s: None,
    ) -> None:
        self._current = current
        self._supervisors = supervisors
        self._feed = feed
        self._calls = calls
        self._queue = Queue(current.config.queue, feed, places(current.config), accounts)
        self._patience = patience(current.config)
        self._watch = Watch(self._patience.tick_s, on_lag)
        self._on_end = on_end
        if current.config.log.prompts:
            warn_of_prompts()

    def reconfigure(self) -> None:
        """Another configuration is in force. Streams that run keep the patience with which they began."""
        config = self._current.config
        self._queue.reconfigure(config.queue, places(config))
        self._patience = patience(config)
        self._watch.interval_s = self._patience.tick_s
        if config.log.prompts:
            warn_of_prompts()

    def note_refusal(self, request: web.BaseRequest, error: VllmdError) -> None:
        """A request was refused before it became a call."""
        self._tell(refused(request[REQUEST_ID], identify(request).name, request.path, status_of(error)))

    async def carry(self, call: Call, door: Door) -> None:
        """Serves one call, from the wait for its engine to the end of its answer; then its record is told.

        Raises:
            VllmdError: it failed before anything was written to the client; later failures are written by the door.
        """
        supervisor = self._supervisors[call.model]
        stream = Stream(call, door, self._patience, self._transcript(call), supervisor)
        if self._current.config.log.prompts:
            log_prompt(call)
        try:
            await self._see_through(call, door, stream, supervisor)
        except BaseException as error:
            if call.outcome is None and not (of_error(error) is Outcome.LEFT and stream.has_all):
                call.outcome, call.status = of_error(error), status_of(error)
            raise
        finally:
            self._tell(ended(call, door, stream))

    async def _see_through(self, call: Call, door: Door, stream: Stream, supervisor: Supervisor) -> None:
        """Carries a call that is counted meanwhile, and brings to its client whatever goes wrong."""
        self._calls.add(call)
        try:
            await self._carry(call, door, stream, supervisor)
        except asyncio.CancelledError:
            if call.ended_by is None:
                raise
            _uncancel()
            await _fail(call, door, call.ended_by, by_order(of_error(call.ended_by)))
        except VllmdError as error:
            await _fail(call, door, error, _of_engine(of_error(error), call, supervisor))
        except ConnectionError:
            raise  # the client has left
        except Exception:
            if door.response is None:
                raise
            log.exception("request %s: unforeseen error", call.id)
            await _fail(call, door, mistake(call.id), Outcome.INTERNAL_ERROR)
        finally:
            self._calls.discard(call)

    async def _carry(self, call: Call, door: Door, stream: Stream, supervisor: Supervisor) -> None:
        call.answer = stream
        self._watch.add(stream)
        try:
            attempts = Attempts(call, door, stream, supervisor, self._queue, self._feed, self._current.config)
            if refusal := await attempts.answer():
                call.outcome, call.status = _of_engine(of_status(refusal.status), call, supervisor), refusal.status
                await door.refuse(refusal)
            else:
                if stream.is_done:
                    await door.end()
                await door.drain_whole()
        finally:
            self._watch.discard(stream)

    def _tell(self, record: Ended) -> None:
        """The record goes to whoever wants it."""
        self._on_end(record)
        if self._current.config.log.requests:
            log_request(record)

    def _transcript(self, call: Call) -> Transcript | None:
        settings = self._current.config.replay
        if not (settings.continuation and settings.limit and call.stream and call.path == routes.CHAT_COMPLETIONS):
            return None
        return Transcript(call.body, settings.continuation_bytes)


def _of_engine(outcome: Outcome, call: Call, supervisor: Supervisor) -> Outcome:
    """What becomes of a call by an engine that was told to end, after it had got the call, is no failure of it."""
    return by_order(outcome) if call.sent_at is not None and supervisor.ends_by_order else outcome


async def _fail(call: Call, door: Door, error: VllmdError, outcome: Outcome) -> None:
    """Brings an error to the client, unless it has its answer and is only slow to take it."""
    if call.answer is not None and call.answer.has_all:
        door.close()
    else:
        call.outcome, call.status = outcome, status_of(error)
        await door.fail(error)


def _uncancel() -> None:
    """The cancellation was vllmd's own way to end the call; the client is still there to be told."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
