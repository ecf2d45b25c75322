"""One answer on its way to a door, over as many attempts as it takes.

The engine's bytes go their own way (`passage`). The task that serves the call sleeps meanwhile; it is woken for what
needs an await: to begin the stream, to wait for a client that reads too slowly, to end. Every other second somebody
looks for silence on either side (`watch`, `silence`).
"""

import asyncio
import logging

from vllmd.engine.client import EngineClient, Exchange
from vllmd.server.calls import Call
from vllmd.server.continuation import Seam, Transcript
from vllmd.server.doors import Door
from vllmd.server.last_words import NOTHING_SAID, last_words
from vllmd.server.passage import Passage, Stoppable
from vllmd.server.silence import Due, Patience, Silence

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"

FIRST = {"/v1/responses": b".delta"}
"""What tells the first event with a token from those before it, on routes that have such."""


class Stream:
    """The answer to one call.

    Args:
        call: the request.
        door: where the answer goes.
        patience: how much silence to bear.
        transcript: keeps what was said; None where nobody could go on with it.
        engine: whose answer it is.

    Attributes:
        is_done: it came to its normal end.
        is_stalled: it was given up because the engine was silent.
        counted: about how many tokens came in the attempts that are over.
        first_at: when the first token went out, in `time.monotonic`'s seconds; None before, and where it is no stream.
        size_bytes: about how much came in the attempts that are over.
        last_words: what the last attempt that is over said of itself.
    """

    __slots__ = (
        "_call",
        "_client",
        "_comment_is_due",
        "_door",
        "_has_passed_the_end",
        "_loop",
        "_passage",
        "_seen",
        "_seen_comments",
        "_silence",
        "_sleep",
        "_told",
        "counted",
        "engine",
        "first_at",
        "is_done",
        "is_stalled",
        "last_words",
        "size_bytes",
        "transcript",
    )

    def __init__(
        self,
        call: Call,
        door: Door,
        patience: Patience,
        transcript: Transcript | None,
        engine: Stoppable,
    ) -> None:
        self.transcript = transcript
        self.engine = engine
        self.is_done = self.is_stalled = False
        self.first_at: float | None = None
        self.last_words = NOTHING_SAID
        self._call = call
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._silence = Silence(patience, self._loop.time())
        self._sleep: asyncio.Future[None] | None = None
        self._comment_is_due = False
        self._has_passed_the_end = False
        self._client: EngineClient | None = None
        self._passage: Passage | None = None
        self._seen = self._seen_comments = self._told = self.counted = self.size_bytes = 0

    async def carry(self, client: EngineClient, exchange: Exchange, seam: Seam | None = None) -> Passage:
        """Takes what the engine sends until it ends; how that was, the passage says.

        Args:
            client: the engine's.
            exchange: the request that was just sent.
            seam: how the events must be changed, if this engine goes on where another one ended.

        Raises:
            ConnectionError: the client has left.
            VllmdError: the engine says what the door cannot make out.
        """
        first = FIRST.get(self._call.path, b"")
        passage = Passage(exchange, self._door, self.transcript, seam, self.engine, self._wake, first)
        self._client, self._passage, self.is_stalled = client, passage, False
        self._seen = self._seen_comments = self._told = 0
        self._comment_is_due = False
        self._silence.heard(self._loop.time())
        try:
            exchange.attach(passage)
            await self._attend(passage)
        finally:
            self.counted = self.tokens
            self._take_account(passage)
            self._passage = self._sleep = None
            self._has_passed_the_end = passage.is_done and passage.flows
            passage.close()
        self.is_done = passage.is_done
        return passage

    def _take_account(self, passage: Passage) -> None:
        """What is to be known of an attempt that is over."""
        self.first_at = self.first_at or passage.first_at
        self.size_bytes += passage.size_bytes
        self.last_words = last_words(passage.tail)

    async def _attend(self, passage: Passage) -> None:
        """Does what has to be awaited, and sleeps in between, until the attempt has come to its end."""
        while True:
            if passage.opens and not passage.flows:
                await self._begin(passage)
            elif passage.is_paused:
                await self._wait_for_client(passage)
            elif passage.has_ended:
                return
            elif self._comment_is_due:
                self._comment_is_due = False
                await self._door.comment("the engine is at work")
            else:
                self._sleep = self._loop.create_future()
                await self._sleep

    async def _begin(self, passage: Passage) -> None:
        if self._door.response is None:
            assert passage.head is not None, "events come after the head"
            await self._door.begin(passage.head.headers)
        passage.let_out()

    async def _wait_for_client(self, passage: Passage) -> None:
        self._silence.client_is_clogged(self._loop.time())
        await self._door.drain()
        passage.go_on()

    # ── what is told of it to who asks ──

    @property
    def tokens(self) -> int:
        """About how many tokens have come so far, over all attempts."""
        if self._passage is None:
            return self.counted
        before = self.counted if self.transcript is None else self.transcript.tokens
        return max(before + self._passage.tokens, self.counted)

    @property
    def replays(self) -> int:
        """How often the request was sent again because its engine died."""
        return self._door.replays

    @property
    def continuations(self) -> int:
        """How often another engine went on with the answer."""
        return self._door.continuations

    @property
    def has_all(self) -> bool:
        """Whether the client has got the end of the answer, or it is on its way. Known once no attempt is under way."""
        return self._door.is_ended or (self._door.ends_as_the_engine and self._has_passed_the_end)

    def finish(self) -> None:
        """The engine broke off after it had said why its answer ends: that is an ending, though not the usual one."""
        self._door.send(DONE)
        self.is_done = True

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    # ── now and then ──

    def tick(self, now: float) -> None:
        """Looks for silence: of the engine, or of a client that does not read."""
        passage = self._passage
        if passage and self._has_told(passage, now) and not passage.is_paused:
            return
        if self._door.is_clogged:
            self._silence.heard(now)  # the silence is the client's
            self._do(self._silence.of_client(now, self._door.backlog_bytes()))
        elif passage and (self._call.stream or passage.is_stream):
            self._do(self._silence.of_engine(now, passage.is_done))
        elif passage is None and self._door.is_open and not self._door.is_ended and not self._call.held:
            self._do(self._silence.of_pause(now))  # it is being found out whether the engine is lost

    def _has_told(self, passage: Passage, now: float) -> bool:
        """Notes what the engine has said since the last time; returns whether the client was told anything."""
        if passage.said != self._seen:
            self._seen = passage.said
            self._note_progress(passage, now)
        if passage.comments != self._seen_comments:  # the API server lives, though perhaps not its engine core
            self._seen_comments = passage.comments
            self._silence.heard(now)
        told, self._told = self._told, passage.told + self._door.writes
        if told == self._told:
            return False
        self._silence.told(now)
        return True

    def _note_progress(self, passage: Passage, now: float) -> None:
        self._silence.heard(now)
        if self._client is not None and not passage.is_paused:  # what a slow reader lets in is old
            self._client.proved_at = now
        passage.mind_the_bound()

    def _do(self, due: Due) -> None:
        if due is Due.COMMENT and self._door.is_open:
            self._door.remark("the engine is at work")
        elif due is Due.COMMENT:
            self._comment_is_due = True
            self._wake()
        elif due is Due.GIVE_UP and self._passage:
            self.is_stalled = not self._passage.is_done
            self._passage.give_up()
        elif due is Due.CUT_OFF:
            log.warning("request %s: %s reads nothing of its answer and is cut off", self._call.id, self._call.who)
            self._door.cut()
