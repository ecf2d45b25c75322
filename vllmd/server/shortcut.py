"""The way of ordinary requests for inference: nearly everything that is asked, and without most of what that costs.

A connection begins here. As long as nothing but ordinary requests (`ordinary`) comes on it, they go straight to their
handlers: past aiohttp's parser, its queue, its router and two of its tasks, which take a quarter of a short
request's time, and a third of an open stream's memory. With the first other bytes the connection becomes aiohttp's, for
good (`clients.Client`). Handlers and checks are the same for both, and so are the answers.
"""

import asyncio
import logging
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.tcp_helpers import tcp_keepalive

from vllmd.errors import Unavailable
from vllmd.server.access import Identity, at_the_end_of
from vllmd.server.asked import Asked, Serve, Way, asked
from vllmd.server.census import turn_away
from vllmd.server.ordinary import Ordinary, glance
from vllmd.server.reply import Answer, Reply

log = logging.getLogger(__name__)

HOLD_S = 0.2
"""So long the rest of a body is waited for here: many clients write it apart from the head, and a network cuts it."""

BEHIND_BYTES = 64 * 1024
"""Of what a client sends before it has its answer; with more, it is not read from."""


class Inside(Protocol):
    """What connections know of the service behind them."""

    way: Way

    @property
    def idle_s(self) -> float:
        """How long a connection may be idle."""

    def refusal(self, who: Identity) -> Unavailable | None:
        """Why there is no room for one more connection of `who`."""

    def entered(self, connection: "Shortcut") -> None:
        """Somebody has come in."""

    def asked(self, connection: "Shortcut") -> None:
        """They ask something."""

    def left(self, connection: "Shortcut") -> None:
        """And has left."""

    def taken_over(self, connection: "Shortcut") -> asyncio.Protocol:
        """Somebody has said something that is not ordinary: returns who deals with them from now on."""


class Shortcut(BaseProtocol):
    """A connection on which only ordinary requests have come so far.

    Args:
        inside: the service.
        loop: the one that runs.
    """

    __slots__ = ("_clock", "_held", "_idle_since", "_is_leaving", "_rest", "_serving", "inside", "peer")

    peer: Identity
    """Who is at the other end; of TCP, the address."""

    ssl_context = peername = sockname = None  # aiohttp's requests ask for them, and nobody asks the requests

    def __init__(self, inside: Inside, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.inside = inside
        self._serving: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._held = b""
        """What has come and waits: for the rest of its body, or for the answer before it."""
        self._idle_since: float | None = loop.time()
        """Since when it is the client's turn: to ask, or to take its answer. None while a request is here."""
        self._clock: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None

    @property
    def way(self) -> Way:
        """Where its requests go."""
        return self.inside.way

    # ── what the loop calls ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets it in, or tells it why not."""
        self.peer = at_the_end_of(transport)
        if refusal := self.inside.refusal(self.peer):
            turn_away(cast(asyncio.Transport, transport), refusal)
            return
        super().connection_made(transport)
        tcp_keepalive(cast(asyncio.Transport, transport))
        self.inside.entered(self)
        self._clock = self._loop.call_later(self.inside.idle_s, self._look_at_clock)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over, and nobody waits for the answer any more."""
        if self.transport is not None:
            super().connection_lost(exc)
            self._stop_clocks()
            self.inside.left(self)
        if self._serving is not None:
            self._serving.cancel()

    def data_received(self, data: bytes) -> None:
        """Somebody says something; what those say who were turned away is nobody's concern."""
        if self.transport is None:
            return
        if self._serving is not None:
            self._hold(data)
        else:
            self._look_at(self._held + data if self._held else data)

    # ── what is said ──

    def _look_at(self, data: bytes) -> None:
        ordinary = glance(data)
        handler = self.inside.way.handlers.get(ordinary.path) if ordinary else None
        if ordinary is None or handler is None:
            self._hand_over(data)
            return
        self._idle_since = None
        if ordinary.lacks:
            self._held = data
            self._rest = self._rest or self._loop.call_later(HOLD_S, self._rest_is_late)
        else:
            self._held = b""
            self._stop_waiting_for_rest()
            self.inside.asked(self)
            serving = _begun(self._loop, self._serve(ordinary, handler))
            self._serving = None if serving.done() else serving

    def _hold(self, data: bytes) -> None:
        """Keeps what comes before the answer is out. A client that sends ever more is not read from."""
        self._held += data
        if len(self._held) > BEHIND_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def _rest_is_late(self) -> None:
        """aiohttp's reader has rules for bodies that come slowly."""
        self._rest = None
        self._hand_over(self._held)

    def _hand_over(self, data: bytes) -> None:
        """The connection is aiohttp's from now on, unless it is at its end anyway."""
        transport = self.transport
        assert transport is not None, "somebody is there who has said something"
        if self._is_leaving:
            transport.close()
            return
        self._stop_clocks()
        client = self.inside.taken_over(self)
        self.transport = None
        transport.set_protocol(client)
        client.connection_made(transport)
        if self.writing_paused:
            client.pause_writing()
        client.data_received(data)

    # ── what is answered ──

    async def _serve(self, ordinary: Ordinary, handler: Serve) -> None:
        request = asked(ordinary, self, self._loop)
        try:
            answer = await self.inside.way.guard(request, handler)
            self._idle_since = self._loop.time()
            await self._write(request, answer)
        except ConnectionError:
            return  # the client has left
        except Exception:
            log.exception("an answer could not be written")
            self._abort()
        finally:
            self._serving = None
        self._go_on()

    async def _write(self, request: Asked, answer: Answer) -> None:
        """Writes what is not written yet."""
        data = self.inside.way.finish.reply(request, answer) if isinstance(answer, Reply) else None
        if data is None:
            response = answer.response() if isinstance(answer, Reply) else answer
            await response.prepare(request)
            await response.write_eof()
            self._is_leaving = self._is_leaving or not response.keep_alive
        elif self.transport is not None:
            self.transport.write(data)
            if self.writing_paused:
                await request.writer.drain()

    def _go_on(self) -> None:
        """Takes the next request, if it has come already."""
        if self.transport is None:
            return
        if self._is_leaving:
            self.transport.close()
            return
        if self._held:
            held, self._held = self._held, b""
            self.transport.resume_reading()
            Context().run(self._look_at, held)  # whatever is logged from here on is not about the last request

    # ── its end ──

    def close(self) -> None:
        """Hangs up once nothing is under way, or about to come whole."""
        self._is_leaving = True
        if self._serving is None and self._rest is None and self.transport is not None:
            self.transport.close()

    async def shutdown(self, timeout_s: float) -> None:
        """Hangs up; an answer that is under way gets that long, and as long to break off."""
        self.close()
        if (serving := self._serving) is not None:
            await asyncio.wait([serving], timeout=timeout_s)
            serving.cancel()
            await asyncio.wait([serving], timeout=timeout_s)
        self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def patient_until(self) -> float:
        """When the client will have been idle for too long, in the loop's seconds."""
        since = self._loop.time() if self._idle_since is None else self._idle_since
        return since + self.inside.idle_s

    def _look_at_clock(self) -> None:
        """Hangs up on who has been idle for too long. One timer each, which looks again when that may be."""
        if self.patient_until > self._loop.time():
            self._clock = self._loop.call_at(self.patient_until, self._look_at_clock)
        else:
            self._abort()  # which closes as well, where nothing waits for a client that does not read

    def _stop_waiting_for_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _stop_clocks(self) -> None:
        self._stop_waiting_for_rest()
        if self._clock is not None:
            self._clock.cancel()


def _begun(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """A task that has begun already, where Python can do that: it spares a turn of the loop."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)
