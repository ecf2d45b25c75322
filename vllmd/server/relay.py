"""A request to the engine and its answer back, with all promises about endings kept on the way.

Whole events only are passed on, so that a comment or an error never lands inside one. The first event is looked at
before the client gets its 200: vLLM reports many errors inside the stream, and as long as no byte is out a request can
still get a true status, or be sent again to the next engine.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from vllmd.config import Config
from vllmd.engine.client import EngineAnswer, EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineRefused, EngineUnreachable, StreamBroken, VllmdError
from vllmd.server import endings
from vllmd.server.bodies import mistake
from vllmd.server.calls import Call, Calls
from vllmd.server.doors import Door
from vllmd.server.endings import Fault
from vllmd.server.queue import Queue
from vllmd.server.silence import Silence
from vllmd.sse import Splitter

log = logging.getLogger(__name__)

DYING_S = 2.0
"""An engine that fails a request may be about to exit; it does so within this time (measured: 0.9 to 1.6 s)."""

DYING = (500, 502)
"""What a dying vLLM answers, and an answer that it aborted. Its 503 means a full queue."""

_UNFINISHED = "the engine ended its answer without finishing it"


class Relay:
    """Carries calls to engines and answers to doors.

    Args:
        config: how long to wait, how often to try again, how much silence to bear.
        supervisors: one for each model.
        feed: changes when an engine's state does.
        calls: where calls are counted while they are under way.
    """

    def __init__(self, config: Config, supervisors: Mapping[str, Supervisor], feed: Feed, calls: Calls) -> None:
        self._config = config
        self._supervisors = supervisors
        self._feed = feed
        self._calls = calls
        self._queue = Queue(config.queue, feed, calls)

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
                await door.fail(call.ended_by)
            except VllmdError as error:
                await door.fail(error)
            except ConnectionError:
                raise  # the client has left
            except Exception:
                if door.response is None:
                    raise
                log.exception("request %s: unforeseen error", call.id)
                await door.fail(mistake(call.id))

    async def _carry(self, call: Call, door: Door) -> None:
        supervisor, tries_left = self._supervisors[call.model], self._config.replay.limit
        while True:
            client = await self._queue.engine_for(call, supervisor, door.comment)
            generation = supervisor.engine.generation
            try:
                return await self._attempt(client, call, door, supervisor)
            except EngineRefused:
                pass  # it was not sent, and so is not sent again
            except EngineUnreachable:
                if door.has_answer or not tries_left:
                    raise
                tries_left -= 1
            await self._is_lost(supervisor, generation)

    async def _attempt(self, client: EngineClient, call: Call, door: Door, supervisor: Supervisor) -> None:
        """Sends the request once. Raises EngineUnreachable if it may be sent again."""
        generation = supervisor.engine.generation
        call.sent_at = time.monotonic()
        async with client.send("POST", call.path, body=call.body, headers=call.headers) as answer:
            refusal = await self._answer(answer, door)
        if refusal is None:
            return
        if refusal.status in DYING and await self._is_lost(supervisor, generation):
            raise EngineUnreachable(f"the engine ended: {refusal.message}")
        await door.refuse(refusal)

    async def _answer(self, answer: EngineAnswer, door: Door) -> Fault | None:
        """Passes an answer on; returns the error that it is instead, as long as nothing of it is out."""
        if answer.is_stream:
            return await self._stream(answer, door)
        body = await answer.read()
        if answer.status >= 400:
            return endings.refusal(answer.status, body)
        if fault := endings.aborted(body):
            return fault
        if door.response is not None:
            raise StreamBroken("the engine answered in one piece where a stream was asked for")
        await door.whole(answer.status, answer.headers, body)
        return None

    async def _stream(self, answer: EngineAnswer, door: Door) -> Fault | None:
        """Passes a stream on to its end; returns the fault if it began with one, so that nothing is out."""
        silence = Silence(
            self._config.sse.keepalive_s,
            self._config.relay.stall_s,
            lambda: door.comment("the engine is at work"),
            answer.abort,
        )
        try:
            async with silence:
                return await self._copy(answer, door, silence)
        except StreamBroken as error:
            raise _broken(error, door, self._config.relay.stall_s if silence.is_stalled else None) from error

    async def _copy(self, answer: EngineAnswer, door: Door, silence: Silence) -> Fault | None:
        splitter = Splitter()
        async for chunk in answer.chunks():
            silence.pause()
            reading = endings.read(splitter.feed(chunk))
            if reading.fault and not door.has_answer:
                return reading.fault
            if reading.kept:
                if door.response is None:
                    await door.begin(answer.headers)
                await door.send(reading.kept)
            if reading.fault:
                raise StreamBroken(reading.fault.message)
            if reading.done:
                await door.end()
                await answer.discard()
                return None
            silence.heard()
        raise StreamBroken(_UNFINISHED)

    async def _is_lost(self, supervisor: Supervisor, generation: int) -> bool:
        """Whether the engine of that generation is no longer ready, after the time that a dying one takes to go."""

        def is_gone() -> bool:
            return supervisor.client is None or supervisor.engine.generation != generation

        with suppress(TimeoutError):
            async with asyncio.timeout(DYING_S):
                while not is_gone():
                    await self._feed.after(self._feed.last)
        return is_gone()


def _broken(error: StreamBroken, door: Door, stalled_for_s: float | None) -> VllmdError:
    """What a stream that broke means: before the first event it is as if there had been no answer."""
    message = error.message if stalled_for_s is None else f"the engine was silent for {stalled_for_s:g} s"
    if not door.has_answer and stalled_for_s is None:
        return EngineUnreachable(message)
    return StreamBroken(message, "what came so far is incomplete; ask again")


def _uncancel() -> None:
    """The cancellation was vllmd's own way to end the call; the client is still there to be told."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
