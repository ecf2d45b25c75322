"""Generating requests: the queue, the pace, the events, and everything that can befall a stream."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from .answers import HttpError, Job, answer, check, parse, prompt_tokens
from .dialects import DIALECTS, DONE, Dialect, compact
from .http import Body, Connection, Request
from .knobs import Controls, Flags
from .startup import flood
from .tree import Tree

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
CAUSES = {
    400: ("Grammar error: Invalid type: nonsense", "BadRequestError"),
    500: (DEAD, "InternalServerError"),
    503: ("The number of queued requests has reached its limit", "ServiceUnavailableError"),
}
BATCH = 64  # events of one stream before another has its turn, where nothing asks for more care


class Ending(Exception):
    """A stream ends otherwise than by its last token: `how` is a word of the FAULT knob."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.how, _, code = fault.partition(":")
        self.code = int(code or 500)
        self.cause, self.kind = CAUSES.get(self.code, CAUSES[500])

    def as_http(self) -> HttpError:
        return HttpError(self.code, self.cause, self.kind)


class Generator:
    """All generating requests of this process.

    Args:
        fatal: called, once, when a fault is to kill the process, with the value of FAULT_EXIT.
    """

    def __init__(self, flags: Flags, controls: Controls, tree: Tree, fatal: Callable[[str], None]) -> None:
        self._flags, self._controls, self._tree, self._fatal = flags, controls, tree, fatal
        self._slots = asyncio.Semaphore(flags.max_num_seqs)
        self._streams: set[Connection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled: set[Connection] = set()  # those whose ending is being written
        self._ending: Ending | None = None
        self._aborted: set[Connection] = set()
        self._awake, self._none_runs = asyncio.Event(), asyncio.Event()
        self._awake.set()
        self._none_runs.set()
        self._stands_still = self._mute = False
        self._hung = False
        self._number = 0
        self.refusal = ""
        self.frozen = self.has_no_weights = False
        self.memory_is_gone: Callable[[], bool] = lambda: False
        self.running = self.waiting = self.prompt_total = self.generation_total = 0

    async def serve(self, request: Request, connection: Connection) -> None:
        """Answers a generating request; raises HttpError instead where vLLM does."""
        if self.refusal:
            raise HttpError(500, self.refusal, "InternalServerError")
        body = parse(request.body, DIALECTS[request.path].needs)
        check(body, self._flags, self._controls.now)
        dialect = self._begin(request, body)
        self._streams.add(connection)
        self._idle.clear()
        how = "cancelled"
        try:
            how = await (self._stream if body.get("stream") else self._whole)(dialect, connection)
        finally:
            self._streams.discard(connection)
            self._settled.discard(connection)
            self._aborted.discard(connection)
            if not self._streams:
                self._idle.set()
            self._controls.note("end", number=dialect.job.number, how=how, tokens=dialect.job.sent)

    def end_all(self, fault: str) -> list[Connection]:
        """Ends all streams in one way; returns their connections, which close once that is written."""
        self._ending = Ending(fault)
        ended = list(self._streams)
        for connection in self._streams - self._settled:
            connection.task.cancel()
        return ended

    @property
    def paused(self) -> bool:
        """Whether no request begins."""
        return not self._awake.is_set()

    async def pause(self, mode: str) -> None:
        """Lets no request begin, and those that run come to their end (mode wait), end (abort) or stand still (keep);
        returns when none runs, or all stand still."""
        self._awake.clear()
        self._stands_still = mode == "keep"
        if mode == "abort":
            for connection in self._streams - self._settled:
                self._aborted.add(connection)
                connection.task.cancel()
        if mode != "keep":
            await self._none_runs.wait()

    def resume(self, *, mute: bool) -> None:
        """Goes on; without a single token if it is mute."""
        self._stands_still, self._mute = False, mute
        self._awake.set()

    async def core_runs(self) -> None:
        """Waits as long as EngineCore was stopped."""
        while self._tree.stopped():
            await self._silence(0.02, None)

    @property
    def ended(self) -> bool:
        """Whether all streams were ended."""
        return self._ending is not None

    async def all_done(self, timeout_s: float | None) -> bool:
        """Waits until no request is left; False if that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return not self._streams

    def _begin(self, request: Request, body: dict[str, Any]) -> Dialect:
        knobs = self._controls.now
        kind = DIALECTS[request.path]
        self._number += 1
        self._controls.note("request", number=self._number, path=request.path, headers=request.headers, body=body)
        flood(knobs.flood)
        if knobs.log_prompts:
            print(f"DEBUG 11-27 14:41:40 [logger.py:55] Request details: prompt: {json.dumps(body)}", flush=True)
        tokens, finish = answer(body, knobs)
        job = Job(
            number=self._number,
            id=kind.prefix + request.headers.get("x-request-id", os.urandom(8).hex()),
            model=body.get("model") or self._flags.names[0],
            body=body,
            prompt_tokens=prompt_tokens(body, knobs),
            tokens=tokens,
            finish=finish,
        )
        if knobs.fault.startswith("http:") and self._due(job):
            raise self._strike(knobs.fault).as_http()
        return kind(job)

    async def _stream(self, dialect: Dialect, connection: Connection) -> str:
        knobs = self._controls.now
        body = Body(connection, knobs.events_per_send, knobs.chop, dialect.job.number)
        connection.begin_stream()
        try:
            async for events in self._events(dialect, body):
                await body.write(events)
        except (Ending, asyncio.CancelledError) as cause:
            ending = self._ending_for(cause, connection)
            await self._spoil(ending, dialect, body)
            return ending.how
        body.end()
        return dialect.job.finish

    def _ending_for(self, cause: BaseException, connection: Connection) -> Ending:
        """How a stream that cannot go on ends; a client that has left gets no ending."""
        aborted = Ending("abort") if connection in self._aborted else None
        ending = cause if isinstance(cause, Ending) else self._ending or aborted
        if connection.gone or not ending:
            raise cause
        self._settled.add(connection)
        return ending

    async def _whole(self, dialect: Dialect, connection: Connection) -> str:
        how = dialect.job.finish
        try:
            async for _ in self._events(dialect, None):
                pass
        except (Ending, asyncio.CancelledError) as cause:
            ending = self._ending_for(cause, connection)
            how = ending.how
            if how.startswith("cut"):
                connection.transport.close()
                return how
            if how != "abort":
                raise ending.as_http() from None
        connection.respond(200, compact(dialect.whole(how)))
        return how

    async def _events(self, dialect: Dialect, body: Body | None) -> AsyncIterator[list[bytes]]:
        job = dialect.job
        if 0 < self._flags.max_num_queued_reqs <= self.running + self.waiting:
            raise Ending("error:503")
        async with self._turn():
            job.had_its_turn = True
            if self.memory_is_gone():
                raise Ending("error:500")
            if self.has_no_weights:
                job.tokens = ["!"] * len(job.tokens)
            await self._silence(self._controls.now.prefill_s, body)
            self.prompt_total += job.prompt_tokens
            await self._fate(job, body)
            yield dialect.opening()
            due = time.monotonic()
            while job.sent < len(job.tokens):
                rate = self._controls.now.tokens_per_s
                due = max(due, time.monotonic() - 1) + 1 / rate if rate else 0
                await self._silence(due - time.monotonic(), body)
                await self._fate(job, body)
                yield self._tokens(dialect)
            yield dialect.closing(job.finish)

    def _tokens(self, dialect: Dialect) -> list[bytes]:
        """The events of the next tokens."""
        job, knobs = dialect.job, self._controls.now
        careful = knobs.tokens_per_s or knobs.fault or knobs.chop or self._tree.core
        texts = job.tokens[job.sent : job.sent + (1 if careful else BATCH)]
        self.generation_total += len(texts)
        events = []
        for text in texts:
            job.sent += 1
            events.append(dialect.token(text, job.finish if job.sent == len(job.tokens) else ""))
        return events

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A request's place among the running ones."""
        self.waiting += 1
        try:
            await self._slot()
        finally:
            self.waiting -= 1
        self.running += 1
        self._none_runs.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._none_runs.set()
            self._slots.release()

    async def _slot(self) -> None:
        """Waits for a place, and as long as none may begin."""
        await self._slots.acquire()
        while self.paused:
            self._slots.release()
            await self._awake.wait()
            await self._slots.acquire()

    async def _silence(self, seconds: float, body: Body | None) -> None:
        """Waits, with keep-alive comments if there shall be any; at least lets the others have their turn."""
        interval_s = self._controls.now.keep_alive_s or self._flags.sse_keep_alive_interval
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.02) if interval_s else left)
            if body and interval_s and time.monotonic() - body.last_write >= interval_s:
                await body.keep_alive()
        await asyncio.sleep(0)

    async def _fate(self, job: Job, body: Body | None) -> None:
        """Lets a fault befall the stream if one is due: silence, or an Ending."""
        while self._stuck(job):
            await self._silence(0.02, body)
        fault = self._controls.now.fault
        if fault not in ("", "hang", "stall") and self._due(job):
            raise self._strike(fault)

    def _stuck(self, job: Job) -> bool:
        fault = self._controls.refresh().fault
        if self.frozen or self._stands_still or self._mute or self._tree.stopped():
            return True
        self._hung = fault == "hang" and (self._hung or self._due(job))
        return self._hung or (fault == "stall" and self._due(job))

    def _due(self, job: Job) -> bool:
        knobs = self._controls.now
        come = job.number >= knobs.fault_request and job.sent >= knobs.fault_after
        return come and self._controls.may_strike()

    def _strike(self, fault: str) -> Ending:
        if exit_ := self._controls.now.fault_exit:
            self._fatal(exit_)
        return Ending(fault)

    async def _spoil(self, ending: Ending, dialect: Dialect, body: Body) -> None:
        """Ends a stream in that way."""
        how = ending.how
        if how in ("cut", "cut-inside"):
            body.cut(dialect.token(" half of this") if how == "cut-inside" else b"")
            return
        if how == "abort" and not dialect.job.had_its_turn:
            await body.write([*dialect.opening(), *dialect.closing("abort")])
        elif how == "abort":
            await body.write([dialect.token("", "abort"), *dialect.closing("abort")])
        elif how == "malformed":
            await body.write([b'data: {"id":\n\n', DONE])
        elif how != "eof":
            await body.write(dialect.error(ending.cause, ending.kind, ending.code))
        body.end()
