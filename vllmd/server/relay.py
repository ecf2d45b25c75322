"""A request to the engine and its answer back, with all promises about endings kept on the way.

`attempts` decides what is tried, `stream` carries the bytes of one attempt, a door writes what the client sees. Here a
call is counted while it is under way, and whatever goes wrong is brought to its client as an error.
"""

import asyncio
import logging
from collections.abc import Mapping

from vllmd import routes
from vllmd.config import Current
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import VllmdError
from vllmd.server.accounts import Accounts
from vllmd.server.attempts import Attempts
from vllmd.server.bodies import mistake
from vllmd.server.calls import Call, Calls
from vllmd.server.continuation import Transcript
from vllmd.server.doors import Door
from vllmd.server.queue import Queue, places
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
    """

    def __init__(
        self,
        current: Current,
        supervisors: Mapping[str, Supervisor],
        feed: Feed,
        calls: Calls,
        accounts: Accounts | None = None,
    ) -> None:
        self._current = current
        self._supervisors = supervisors
        self._feed = feed
        self._calls = calls
        self._queue = Queue(current.config.queue, feed, places(current.config), accounts)
        self._patience = patience(current.config)
        self._watch = Watch(self._patience.tick_s)

    def reconfigure(self) -> None:
        """Another configuration is in force. Streams that run keep the patience with which they began."""
        config = self._current.config
        self._queue.reconfigure(config.queue, places(config))
        self._patience = patience(config)
        self._watch.interval_s = self._patience.tick_s

    async def carry(self, call: Call, door: Door) -> None:
        """Serves one call, from the wait for its engine to the end of its answer.

        Raises:
            VllmdError: it failed before anything was written to the client; later failures are written by the door.
        """
        with self._calls.under_way(call):
            try:
                await self._carry(call, door)
            except asyncio.CancelledError:
                if call.ended_by is None:
                    raise
                _uncancel()
                await _fail(call, door, call.ended_by)
            except VllmdError as error:
                await _fail(call, door, error)
            except ConnectionError:
                raise  # the client has left
            except Exception:
                if door.response is None:
                    raise
                log.exception("request %s: unforeseen error", call.id)
                await _fail(call, door, mistake(call.id))

    async def _carry(self, call: Call, door: Door) -> None:
        supervisor = self._supervisors[call.model]
        stream = Stream(call, door, self._patience, self._transcript(call), lambda: supervisor.is_stopping)
        call.answer = stream
        with self._watch.over(stream):
            attempts = Attempts(call, door, stream, supervisor, self._queue, self._feed, self._current.config)
            if refusal := await attempts.answer():
                await door.refuse(refusal)
            else:
                if stream.is_done:
                    await door.end()
                await door.drain_whole()

    def _transcript(self, call: Call) -> Transcript | None:
        settings = self._current.config.replay
        if not (settings.continuation and settings.limit and call.stream and call.path == routes.CHAT_COMPLETIONS):
            return None
        return Transcript(call.body, settings.continuation_bytes)


async def _fail(call: Call, door: Door, error: VllmdError) -> None:
    """Brings an error to the client, unless it has its answer and is only slow to take it."""
    if call.answer is not None and call.answer.has_all:
        door.close()
    else:
        await door.fail(error)


def _uncancel() -> None:
    """The cancellation was vllmd's own way to end the call; the client is still there to be told."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
