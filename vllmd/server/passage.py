"""What the engine sends in one attempt at an answer, on its way to a door: pushed by its bytes, not pulled by a task.

An ordinary event is known at a glance (`template`) and written to the client where it arrives: no await, no task, no
timer. Everything else is cut into whole events, so that a comment or an error never lands inside one, and examined
(`endings`). The first events are held back until the door has something to open for: vLLM reports many errors inside
the stream, and as long as nothing is out a request can still get a true status, or be sent again to the next engine.
"""

import time
from collections.abc import Callable
from typing import Protocol

from vllmd.engine.client import Exchange
from vllmd.engine.connection import no_glance
from vllmd.engine.http import Head
from vllmd.errors import VllmdError
from vllmd.server import endings
from vllmd.server.continuation import Seam, Transcript
from vllmd.server.doors import Door
from vllmd.server.endings import Fault
from vllmd.server.last_words import TAIL_BYTES
from vllmd.server.straight import NOT_STRAIGHT, Straight
from vllmd.sse import Splitter, events_in
from vllmd.template import Learner

EARLY_BYTES = 64 * 1024
"""Of an answer that is held back until the door has something to show; then it opens for that alone."""


class Stoppable(Protocol):
    """What is asked of an engine."""

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to end: what it still answers may be cut short."""


class Passage:
    """The sink for the answer of one engine.

    Args:
        exchange: the request that was sent.
        door: where the answer goes.
        transcript: keeps what was said; None where nobody could go on with it.
        seam: how the events must be changed, if this engine goes on where another one ended.
        engine: whose answer it is.
        wake: called when there is something that needs an await.
        first: what the first event with a token has in it, where others come before.

    Attributes:
        head: of the engine's answer; None as long as there is none. is_stream: it is answered with events.
        body: the answer, if it is no stream.
        said, comments: how many events or parts of them have come, and how many of the engine's comments.
        opens: the door has something to open for; flows: it is open, and events go straight through.
        is_paused: the engine is not read from, because the client does not take what is there.
        has_ended: nothing more comes; error: why, if the answer is not whole.
        is_done: the stream came to its normal end.
        fault: the error that the engine reported inside its stream.
        nonsense: what the door could not make out.
        first_at: when the first token went out, in `time.monotonic`'s seconds; None before, and where it is no stream.
        glance: the way straight through for ordinary events, once these are known.
    """

    __slots__ = (
        "_door",
        "_early",
        "_engine",
        "_exchange",
        "_first",
        "_last",
        "_learner",
        "_other_bytes",
        "_others",
        "_seam",
        "_splitter",
        "_straight",
        "_transcript",
        "_wake",
        "body",
        "comments",
        "error",
        "fault",
        "first_at",
        "flows",
        "glance",
        "has_ended",
        "head",
        "is_done",
        "is_paused",
        "is_stream",
        "nonsense",
        "opens",
    )

    glance: Callable[[bytes], bool]
    _splitter: Splitter
    _learner: Learner

    def __init__(
        self,
        exchange: Exchange,
        door: Door,
        transcript: Transcript | None,
        seam: Seam | None,
        engine: Stoppable,
        wake: Callable[[], None],
        first: bytes = b"",
    ) -> None:
        self._exchange = exchange
        self._door = door
        self._transcript = transcript
        self._seam = seam
        self._engine = engine
        self._wake = wake
        self._straight = NOT_STRAIGHT
        self._early = b""
        self._first = first
        self.first_at: float | None = None
        self._last: tuple[bytes, ...] = ()
        self._others = self._other_bytes = self.comments = 0
        self.head: Head | None = None
        self.body: bytearray | bytes = b""
        self.fault: Fault | None = None
        self.nonsense: VllmdError | None = None
        self.error: Exception | None = None
        self.is_stream = self.opens = self.flows = self.is_paused = self.is_done = self.has_ended = False
        self.glance = no_glance

    @property
    def said(self) -> int:
        """Counts what shows that the engine makes tokens."""
        return self._straight.count + self._others

    @property
    def told(self) -> int:
        """Counts what the client has been told straight through; the door counts the rest."""
        return self._straight.count

    @property
    def tokens(self) -> int:
        """About how many tokens have come: the pieces of text, where they are known as such, else all events."""
        return self._straight.count if self._straight.keep is not None else self.said

    @property
    def size_bytes(self) -> int:
        """About how much of the answer has come, in bytes."""
        return self._straight.size_bytes + self._other_bytes

    @property
    def tail(self) -> bytearray | bytes:
        """The end of the answer, where it says why it ended and what it took."""
        return b"".join(self._last) if self.is_stream else self.body[-TAIL_BYTES:]

    # ── the engine's side: called as bytes come ──

    def begun(self, head: Head) -> None:
        """The engine answers."""
        self.head, self.is_stream = head, head.is_stream
        if self.is_stream:
            wanted = self._transcript is not None and not self._transcript.obstacle
            self._straight = Straight(self._transcript.text if self._transcript and wanted else None)
            self._splitter, self._learner = Splitter(), Learner()
        else:
            self.body = bytearray()

    def payload(self, data: bytes) -> None:
        """Bytes of the answer, cut anywhere."""
        self._other_bytes += len(data)
        if not self.is_stream:
            self.body += data
        elif not self.is_done and not self.fault:
            if data.startswith(b":"):
                self.comments += 1  # the API server lives; that its engine core does, only tokens can show
            else:
                self._others += 1
            self._take_soundly(self._splitter.feed(data))
            goes_on = self.flows and not self.is_done and not self.fault
            is_between = goes_on and not self._splitter.rest and self._seam is None
            self.glance = self._straight.glance if is_between and self._straight.leads_on else no_glance

    def ended(self, error: Exception | None) -> None:
        """The engine's connection has said its last."""
        self.error, self.has_ended = error, True
        self._wake()

    def _take_soundly(self, block: bytes) -> None:
        try:
            self._take(block)
        except VllmdError as error:
            self.nonsense = error
            self._exchange.abort()

    def _take(self, block: bytes) -> None:
        """Whole events that have to be looked at."""
        reading = endings.read(block, self._engine.is_stopping)
        if self.flows:
            self._pass(reading.kept)
        else:
            self._hold_back(reading)
        self.fault = self.fault or reading.fault
        self.is_done = reading.done
        self._settle()

    def _settle(self) -> None:
        """A fault ends the answer, whatever else came with it."""
        if self.fault:
            self.is_done = False
            self._exchange.abort()

    def _hold_back(self, reading: endings.Reading) -> None:
        self._early += reading.kept
        is_much = len(self._early) > EARLY_BYTES
        if not self.opens and (self._door.opens_with(reading.kept) or reading.done or is_much):
            self.opens = not reading.fault
            self._wake()

    def _pass(self, block: bytes) -> None:
        """Lets whole events out."""
        studies = self._learner.is_curious or self._straight.keep is not None
        events = events_in(block) if self._seam or studies else []
        if self._seam:
            events = self._mend(self._seam, events)
            block = b"".join(events)
        is_ordinary = False
        for event in events:
            is_ordinary = self._study(event)
        if block:
            self._note(block, is_ordinary)
            self._door.send(block)
            if self._door.is_clogged:
                self._wait_for_client()

    def _note(self, block: bytes, ends_ordinarily: bool) -> None:
        """Keeps the ends of the last three blocks: why an answer ends, its usage and `[DONE]` may come one by one.
        An ordinary event says none of it."""
        if not ends_ordinarily:
            self._last = (*self._last[-2:], block[-TAIL_BYTES:])
        if self.first_at is None and self._first in block:
            self.first_at = time.monotonic()

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

    def _study(self, event: bytes) -> bool:
        """Keeps what an event says, and learns what ordinary ones look like; returns whether it is one."""
        known, text = self._learner.template, self._learner.text_of(event)
        if (template := self._learner.template) is not known:
            self._straight.lead(self._door, template, self._wait_for_client)
            self._last = ()  # nor does what comes before them
        if self._straight.keep is not None and self._transcript is not None:
            if text is None or (template and template.is_thought):
                self._transcript.take(event)
                self._heed_obstacle(self._transcript)
            else:
                self._straight.take(text)
        return text is not None

    def _heed_obstacle(self, transcript: Transcript) -> None:
        """What nobody can go on with is not kept."""
        if transcript.obstacle:
            self._straight.keep = None

    def _wait_for_client(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self._exchange.pause()
            self._wake()

    # ── the side of the task that serves the call ──

    def let_out(self) -> None:
        """The door is open: what was held back goes out, and from now on everything straight through."""
        early, self._early, self.flows = self._early, b"", True
        self._pass(early)
        self._settle()

    def go_on(self) -> None:
        """The client has taken enough; the engine is read from again."""
        self.is_paused = False
        self._exchange.resume()

    def give_up(self) -> None:
        """Ends the engine's work on it."""
        self._exchange.abort()

    def mind_the_bound(self) -> None:
        """Keeps no more than may be kept."""
        if self._straight.keep is not None and self._transcript is not None:
            self._transcript.mind_the_bound()
            self._heed_obstacle(self._transcript)

    def close(self) -> None:
        """Nothing comes any more."""
        if not self.is_stream:
            return
        self.glance = no_glance
        self._straight.end()
        if self._transcript is not None:
            self._transcript.tokens += self._straight.count
