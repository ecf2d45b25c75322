"""One answer on its way from the engine to a door, pushed by the engine's bytes rather than pulled by a task.

An ordinary event is known at a glance (`template`) and written to the client where it arrives: no await, no task, no
timer. Everything else is cut into whole events, so that a comment or an error never lands inside one, and examined
(`endings`). The first events are held back until the door has something to open for: vLLM reports many errors inside
the stream, and as long as nothing is out a request can still get a true status, or be sent again to the next engine.

The task that serves the call sleeps meanwhile. It is woken for what needs an await: to begin the stream, to wait for a
client that reads too slowly, to end. A tick a second at most (`watch`) looks for silence on either side.
"""

import asyncio
import logging
from collections.abc import Callable

from vllmd.config import Config
from vllmd.engine.client import EngineClient, Exchange
from vllmd.engine.http import Head
from vllmd.errors import VllmdError
from vllmd.server import endings, template
from vllmd.server.calls import Call
from vllmd.server.continuation import Seam, Transcript
from vllmd.server.doors import Door
from vllmd.server.endings import Fault
from vllmd.server.template import Template
from vllmd.sse import Splitter, events_in

log = logging.getLogger(__name__)

DISCARD_S = 1.0
"""Seconds that an answer may go on after its last event, until its connection is given up."""

DONE = b"data: [DONE]\n\n"

LESSONS = 8
"""Events from which a stream tries to learn what its ordinary ones look like."""


class Stream:
    """The answer to one call: a sink for the engine's bytes, over as many attempts as it takes.

    Args:
        call: the request.
        door: where the answer goes.
        config: how much silence to bear.
        transcript: keeps what was said; None where nobody could go on with it.
        is_stopping: tells whether the engine is being stopped.
    """

    def __init__(
        self,
        call: Call,
        door: Door,
        config: Config,
        transcript: Transcript | None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.transcript = transcript
        self.is_stopping = is_stopping
        self._call = call
        self._door = door
        self._keepalive_s = config.sse.keepalive_s
        self._stall_s = config.relay.stall_s
        self._send_stall_s = config.relay.send_stall_s
        self._news = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self._heard_at = self._kept_alive_at = self._moved_at = self._now()
        self._backlog = (0, 0)
        self._ordinary = self._counted = self._others = self._comments = self._seen = self._seen_comments = 0
        self._keep = transcript.text if transcript and not transcript.obstacle else None
        self._comment_is_due = False
        self._forget()

    def _forget(self) -> None:
        """What belongs to one attempt alone."""
        self.head: Head | None = None
        self.body = bytearray()
        self.fault: Fault | None = None
        self.nonsense: VllmdError | None = None
        self.error: Exception | None = None
        self.is_done = self.is_stalled = False
        self._has_ended = self._opens = self._flows = self._is_paused = False
        self._early = b""
        self._splitter = Splitter()
        self._seam: Seam | None = None
        self._exchange: Exchange | None = None
        self._client: EngineClient | None = None
        self._lessons = LESSONS
        self._learnt: Template | None = None
        self._template: Template | None = None

    # ── one attempt, in the call's own task ──

    async def carry(self, client: EngineClient, exchange: Exchange, seam: Seam | None = None) -> None:
        """Takes what the engine sends until it ends; `is_done`, `fault`, `nonsense`, `error` and `body` say how.

        Args:
            client: the engine's.
            exchange: the request that was just sent.
            seam: how the events must be changed, if this engine goes on where another one ended.

        Raises:
            ConnectionError: the client has left.
            VllmdError: the engine says what the door cannot make out.
        """
        self._forget()
        self._client, self._exchange, self._seam = client, exchange, seam
        self._heard_at = self._now()
        exchange.attach(self)
        try:
            while not await self._is_over():
                await self._news.wait()
                self._news.clear()
        finally:
            self._exchange = None
            self._count_ordinary()

    async def _is_over(self) -> bool:
        """Does what there is to await; returns whether the attempt has come to its end."""
        if self._opens and not self._flows:
            await self._begin()
        if self._is_paused:
            await self._door.drain()
            self._go_on()
        if self._comment_is_due and not self._has_ended:
            self._comment_is_due = False
            await self._door.comment("the engine is at work")
        return self._has_ended

    async def _begin(self) -> None:
        """Opens the door and lets out what was held back; from now on the engine's bytes go straight through."""
        if self._door.response is None:
            assert self.head is not None, "events come after the head"
            await self._door.begin(self.head.headers)
        early, self._early, self._flows = self._early, b"", True
        self._pass(early)

    def _go_on(self) -> None:
        self._is_paused = False
        if self._exchange is not None:
            self._exchange.resume()

    # ── the engine's side: called as bytes come ──

    def begun(self, head: Head) -> None:
        """The engine answers."""
        self.head = head

    def frame(self, data: bytes, start: int) -> None:
        """One chunk, its content in `data[start:-2]`: most often an ordinary event."""
        ordinary = self._template
        if ordinary is not None and data.startswith(ordinary.head, start) and data.endswith(ordinary.tail, 0, -2):
            text = data[start + len(ordinary.head) : -2 - len(ordinary.tail)]
            if b'"' not in text:
                self._ordinary += 1
                if self._keep is not None:
                    self._keep += text
                self._door.ordinary(data, start, text)
                if self._door.is_clogged:
                    self._wait_for_client()
                return
        self.payload(data[start:-2])

    def payload(self, data: bytes) -> None:
        """Bytes of the answer, cut anywhere."""
        if self.head is None or not self.head.is_stream:
            self.body += data
        elif not self.is_done and not self.fault:
            if data.startswith(b":"):
                self._comments += 1  # the API server lives; that its engine core does, only tokens can show
            else:
                self._others += 1
            self._take_soundly(self._splitter.feed(data))
            is_straight = self._flows and not self._splitter.rest and self._seam is None
            self._template = self._learnt if is_straight else None

    def ended(self, error: Exception | None) -> None:
        """The engine's connection has said its last."""
        self.error = error
        self._has_ended = True
        self._news.set()

    def _take_soundly(self, block: bytes) -> None:
        try:
            self._take(block)
        except VllmdError as error:
            self.nonsense = error
            self._give_up()

    def _give_up(self) -> None:
        if self._exchange is not None:
            self._exchange.abort()

    def _take(self, block: bytes) -> None:
        """Whole events that have to be looked at."""
        reading = endings.read(block, self.is_stopping())
        if self._flows:
            self._pass(reading.kept)
        else:
            self._hold_back(reading)
        self.fault = self.fault or reading.fault
        self.is_done = reading.done and not self.fault
        if self.fault:
            self._give_up()

    def _hold_back(self, reading: endings.Reading) -> None:
        self._early += reading.kept
        if not self._opens and (self._door.opens_with(reading.kept) or reading.done):
            self._opens = not reading.fault
            self._news.set()

    def _pass(self, block: bytes) -> None:
        """Lets whole events out."""
        events = events_in(block) if self._seam or self._lessons or self._keep is not None else []
        if self._seam:
            events = self._mend(self._seam, events)
            block = b"".join(events)
        for event in events:
            self._study(event)
        if block:
            self._door.send(block)
            if self._door.is_clogged:
                self._wait_for_client()

    def _mend(self, seam: Seam, events: list[bytes]) -> list[bytes]:
        """Makes the events of an engine that goes on fit, up to one that cannot."""
        mended: list[bytes] = []
        for event in events:
            fitting = seam.mend(event)
            if seam.fault:
                self.fault = Fault(502, seam.fault, b"")
                break
            mended.append(fitting)
        return mended

    def finish(self) -> None:
        """The engine broke off after it had said why its answer ends: that is an ending, though not the usual one."""
        self._door.send(DONE)
        self.is_done = True

    def _study(self, event: bytes) -> None:
        """Keeps what an event says, and learns what ordinary ones look like."""
        text = self._learnt.text_of(event) if self._learnt else None
        if text is None and self._lessons:
            self._lessons -= 1
            self._learnt = template.learn(event)
            self._lessons = 0 if self._learnt else self._lessons
        if self._keep is None or self.transcript is None:
            return
        if text is None:
            self.transcript.take(event)
            self._keep = None if self.transcript.obstacle else self.transcript.text
        else:
            self._ordinary += 1
            self._keep += text

    def _wait_for_client(self) -> None:
        if not self._is_paused and self._exchange is not None:
            self._is_paused = True
            self._exchange.pause()
            self._news.set()

    def _count_ordinary(self) -> None:
        if self.transcript is not None:
            self.transcript.tokens += self._ordinary - self._counted
        self._counted = self._ordinary

    # ── now and then ──

    def tick(self, now: float) -> None:
        """Looks for silence: of the engine, or of a client that does not read."""
        if self._comments != self._seen_comments:
            self._seen_comments, self._heard_at = self._comments, now
        if (count := self._ordinary + self._others) != self._seen:
            self._seen, self._heard_at = count, now
            self._note_progress(now)
        if self._door.is_clogged:
            self._heard_at = now  # the silence is the client's
            self._look_at_client(now)
        else:
            self._moved_at = now
            self._look_at_engine(now)

    def _note_progress(self, now: float) -> None:
        if self._client is not None:
            self._client.proved_at = now
        if self._keep is not None and self.transcript is not None:
            self.transcript.mind_the_bound()
            self._keep = None if self.transcript.obstacle else self._keep

    def _look_at_client(self, now: float) -> None:
        backlog = self._door.backlog_bytes()
        if backlog != self._backlog:
            self._backlog, self._moved_at = backlog, now
        elif now - self._moved_at >= self._send_stall_s:
            who, for_s = self._call.who, self._send_stall_s
            log.warning("request %s: %s read nothing for %g s and is cut off", self._call.id, who, for_s)
            self._door.cut()

    def _look_at_engine(self, now: float) -> None:
        if self._exchange is None or not (self._call.stream or (self.head and self.head.is_stream)):
            self._heard_at = now
            return
        silent_s = now - self._heard_at
        if silent_s >= (DISCARD_S if self.is_done else self._stall_s):
            self.is_stalled = not self.is_done
            self._give_up()
        elif now - max(self._heard_at, self._kept_alive_at) >= self._keepalive_s and not self.is_done:
            self._kept_alive_at, self._comment_is_due = now, True
            self._news.set()
