"""One call, and as many attempts as it takes: with this engine, or with the next when it dies.

As long as nothing of an answer is out, the request is simply sent again. Later, a chat goes on where it was broken off:
`continuation` says how, and whether that is honest. Whether an engine died is waited for (`loss`).
"""

import asyncio
import logging
import time
from collections.abc import Sequence

from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.http import Head
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineRefused, EngineUnreachable, StreamBroken, VllmdError
from vllmd.sections import Config
from vllmd.server import chat, endings
from vllmd.server.calls import Call
from vllmd.server.continuation import Resumption, Transcript
from vllmd.server.doors import Door
from vllmd.server.endings import Fault
from vllmd.server.loss import Loss
from vllmd.server.passage import Passage
from vllmd.server.queue import Queue
from vllmd.server.stream import Stream
from vllmd.statuses import Continued

log = logging.getLogger(__name__)

DYING = (500, 502)
"""What a dying vLLM answers, and an answer that it aborted. Its 503 means a full queue."""

COUNTING_S = 5.0
"""Seconds that a new engine gets to count the tokens of what was said; it is fresh, and has little else to do."""

_UNFINISHED = "the engine ended its answer without finishing it"


class Attempts:
    """The attempts at one call.

    Args:
        call, door, stream: the request, where its answer goes, and what carries it there.
        supervisor: of the call's model.
        queue: where it waits for an engine.
        feed: changes when an engine's state does.
        config: how often to try, how much silence to bear.
    """

    __slots__ = ("_call", "_door", "_feed", "_left", "_loss", "_queue", "_stall_s", "_stream", "_supervisor")

    _loss: Loss

    def __init__(
        self,
        call: Call,
        door: Door,
        stream: Stream,
        supervisor: Supervisor,
        queue: Queue,
        feed: Feed,
        config: Config,
    ) -> None:
        self._call = call
        self._door = door
        self._stream = stream
        self._supervisor = supervisor
        self._queue = queue
        self._feed = feed
        self._left = config.replay.limit
        self._stall_s = config.relay.stall_s

    async def answer(self) -> Fault | None:
        """Tries until there is an answer; returns the engine's refusal if it is one.

        Raises:
            VllmdError: there is none, and will be none.
            ConnectionError: the client has left.
        """
        while True:
            async with self._queue.turn(self._call, self._supervisor, self._door.comment) as client:
                self._loss = Loss(self._supervisor, self._feed, client)
                try:
                    return await self._attempt(client)
                except EngineRefused:
                    pass  # it was not sent, and so is not sent again
                except (EngineUnreachable, StreamBroken) as error:
                    if self._has_finished():
                        return None
                    await self._look_whether_to_go_on(error)
                    self._left -= 1
                # Its place is kept until the engine is known to be gone: nobody else shall be sent to a dying one.
                await self._loss.is_certain()

    async def _attempt(self, client: EngineClient) -> Fault | None:
        """Sends the request once.

        Raises:
            EngineUnreachable: nothing of an answer is out.
            StreamBroken: part of an answer is out.
        """
        call, transcript = self._call, self._stream.transcript
        call.sent_at, body, seam = time.monotonic(), call.body, None
        if self._door.has_answer and transcript is not None:
            resumption = await self._resume(client, transcript)
            body, seam = resumption.body, resumption.seam
        async with client.send("POST", call.path, body=body, headers=call.headers) as exchange:
            if seam:
                self._tell_of_continuation()
            passage = await self._stream.carry(client, exchange, seam)
        refusal = await self._outcome(passage)
        if refusal and refusal.status in DYING and await self._loss.is_certain():
            raise EngineUnreachable(f"the engine ended: {refusal.message}")
        return refusal

    async def _outcome(self, passage: Passage) -> Fault | None:
        """What an attempt came to, once it has ended: None for an answer, or the engine's refusal."""
        if passage.nonsense:
            raise passage.nonsense
        if passage.is_done:
            return None
        if passage.fault and not self._door.has_answer:
            return passage.fault
        if passage.fault:
            raise _cut(passage.fault.message)
        if self._stream.is_stalled:
            raise _cut(f"the engine was silent for {self._stall_s:g} s")
        if passage.error or passage.head is None or passage.is_stream:
            raise self._broken(passage.error)
        return await self._whole(passage.head, bytes(passage.body))

    def _broken(self, error: Exception | None) -> VllmdError:
        """What the end of a connection means: before the first event it is as if there had been no answer."""
        if error is not None and not isinstance(error, VllmdError):
            raise error
        message = error.message if error else _UNFINISHED
        return _cut(message) if self._door.has_answer else EngineUnreachable(message, error.hint if error else "")

    async def _whole(self, head: Head, body: bytes) -> Fault | None:
        """Passes an answer in one piece on, or returns the error that it is."""
        if head.status >= 400:
            return endings.refusal(head.status, body)
        if fault := endings.aborted(body, self._supervisor.is_stopping):
            return fault
        if self._door.response is not None:
            raise StreamBroken("the engine answered in one piece where a stream was asked for")
        self._stream.counted = self._stream.last_words.tokens_out or chat.generated_tokens(body)
        await self._door.whole(head.status, head.headers, body)
        return None

    # ── another engine ──

    def _has_finished(self) -> bool:
        """Whether the answer had said why it ends before it broke off: only its usage and `[DONE]` can be missing."""
        if self._stream.transcript is None or not self._stream.transcript.is_finished:
            return False
        self._stream.finish()
        return True

    async def _look_whether_to_go_on(self, error: VllmdError) -> None:
        """Raises `error` if another attempt cannot mend it."""
        transcript = self._stream.transcript
        if transcript is not None:
            transcript.mind_the_bound()  # which is looked at but now and then
        if not self._door.has_answer:
            if isinstance(error, StreamBroken) or not self._left:
                raise error
            self._door.replays += 1
        elif transcript is None or not self._left:
            raise error
        elif transcript.obstacle:
            raise _not_continued(error, transcript) from error
        elif not await self._loss.is_certain():
            raise error

    async def _resume(self, client: EngineClient, transcript: Transcript) -> Resumption:
        """How the new engine goes on with what was said. Raises StreamBroken if it cannot, honestly."""
        tokens = transcript.judge(await _ask_all(client, transcript.questions()))
        if transcript.obstacle:
            raise _not_continued(_cut("the engine died in the middle of its answer"), transcript)
        return transcript.resume(tokens)

    def _tell_of_continuation(self) -> None:
        self._door.continuations += 1
        generation = self._supervisor.engine.generation
        log.info("request %s: generation %d goes on with the answer", self._call.id, generation)
        self._feed.publish(Continued(self._call.model, self._call.id, generation))


async def _ask_all(client: EngineClient, questions: Sequence[bytes]) -> list[bytes]:
    """What the engine's `/tokenize` says to each question; nothing if it does not say it all."""
    headers, answers = {"Content-Type": "application/json"}, []
    try:
        async with asyncio.timeout(COUNTING_S):
            for body in questions:
                async with client.send("POST", "/tokenize", body=body, headers=headers) as exchange:
                    answers.append(await exchange.read())
    except EngineRefused:
        raise
    except (EngineUnreachable, TimeoutError):
        return []
    return answers


def _cut(message: str) -> StreamBroken:
    return StreamBroken(message, "what came so far is incomplete; ask again")


def _not_continued(error: VllmdError, transcript: Transcript) -> StreamBroken:
    """The error, with the reason why no other engine could go on."""
    return StreamBroken(f"{error.message}; it could not be continued: {transcript.obstacle}", error.hint)
