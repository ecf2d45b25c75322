"""Connections to one engine: each carries one request at a time, and waits in a pool in between.

Bytes go from the socket's callback straight to whoever takes the answer, without a task or a queue between them: at
thousands of streams those would cost more than all the rest.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from vllmd.engine.body import Body, NotHttp
from vllmd.engine.http import Head, HeadReader, Request
from vllmd.errors import EngineError, EngineUnreachable, StreamBroken

JOIN_BYTES = 64 * 1024
"""A longer body is written apart from its head: to join them would copy it."""

GONE = "the engine closed the connection before it answered"
CUT = "the engine closed the connection in the middle of its answer"
NONSENSE = "the engine answered nonsense"
AGAIN = "it is started again; send the request again"


class Content(Protocol):
    """Who takes a body as it comes. What it raises ends the connection."""

    @property
    def glance(self) -> Callable[[bytes], bool]:
        """Sees each read that begins where a chunk may begin, and says whether it has taken it.

        It may, if it knows the read for one whole chunk; what it leaves comes to `payload`.
        """

    def payload(self, data: bytes) -> None:
        """Bytes of the body, out of their chunks; never none."""


def no_glance(data: bytes) -> bool:
    """The `glance` of who takes everything by `payload`."""
    return False


class Sink(Content, Protocol):
    """Who takes an answer as it comes. Called from the socket's callback: it cannot wait."""

    def begun(self, head: Head) -> None:
        """The head is there: once, before all else."""

    def ended(self, error: Exception | None) -> None:
        """Nothing more comes: once, after all else.

        Args:
            error: None if the answer is whole. Else EngineUnreachable if it had not begun, StreamBroken if it had, or
                what the sink itself raised.
        """


class Home(Protocol):
    """Where a connection lives."""

    def keep(self, connection: "Connection") -> None:
        """It is free."""

    def forget(self, connection: "Connection") -> None:
        """It is gone."""


class Carried(Content, Protocol):
    """What a connection knows of the exchange that it carries."""

    def begun(self, head: Head) -> None:
        """The head is there."""

    def over(self, connection: "Connection", error: Exception | None) -> None:
        """The connection is free again, or gone."""


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        pool: where it goes when it is free, and which forgets it when it is gone.
    """

    __slots__ = (
        "_body",
        "_carried",
        "_content",
        "_is_used",
        "_keeps",
        "_pool",
        "_reader",
        "_taker",
        "_transport",
        "is_stale",
    )

    _transport: asyncio.Transport

    def __init__(self, pool: Home) -> None:
        self._pool = pool
        self._is_used = False
        self.is_stale = False
        """It has carried others, and no byte of the present answer has come: the engine may have closed it before."""
        self._rest()

    def _rest(self) -> None:
        """It carries nothing."""
        self._carried: Carried | None = None
        self._content: Content | None = None
        self._reader: HeadReader | None = None
        self._body: Body | None = None
        self._taker: Content | None = None
        self._keeps = False

    @property
    def is_open(self) -> bool:
        """Whether nothing is known of its end."""
        return not self._transport.is_closing()

    def ask(self, request: Request, carried: Carried, content: Content) -> None:
        """Writes a request.

        Args:
            request: it.
            carried, content: who is told of the answer, and who takes its body.
        """
        self._carried, self._content = carried, content
        self._reader = HeadReader(request.method)
        self.is_stale, self._is_used = self._is_used, True
        if len(request.body) > JOIN_BYTES:
            self._transport.write(request.head)
            self._transport.write(request.body)
        else:
            self._transport.write(request.head + request.body)

    def turn_to(self, content: Content) -> None:
        """What comes of the body from now on is somebody else's."""
        self._content = content
        self._look_for_chunks()

    def pause(self) -> None:
        """Leaves in the kernel what comes: there it fills the engine's buffer, and the engine waits."""
        if self.is_open:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if self.is_open:
            self._transport.resume_reading()

    def fail(self, error: Exception | None = None) -> None:
        """Closes it now. Who is carried is told `error`, or that the connection ended too early."""
        self._finish(error or self._cut())

    # ── what the loop calls ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Takes a read. This is the hot path: once for each token of each stream."""
        taker = self._taker
        try:
            if taker is not None:
                glance = taker.glance  # on a line of its own CPython finds it at once, as no method is looked for
                if glance(data):
                    return
        except Exception as error:
            self._mishap(error)
        else:
            self._receive(data)

    def eof_received(self) -> None:
        """The engine has closed it; not to wait for `connection_lost` saves a turn of the loop."""
        self._finish(None if self._body and self._body.ends_with_connection else self._cut())

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, unless that is known already."""
        self.fail()

    # ── the answer ──

    def _receive(self, data: bytes) -> None:
        self.is_stale = False
        try:
            self._take(data)
        except NotHttp as error:
            message = f"{NONSENSE}: {error}"
            self.fail(StreamBroken(message) if self._body else EngineUnreachable(message))
        except Exception as error:
            self._mishap(error)

    def _take(self, data: bytes) -> None:
        body = self._body
        if body is None:
            data, body = self._begin(data)
        if body is None or self._content is None:
            return
        content = body.feed(data)
        if content:
            self._content.payload(content)
        self._look_at(body)

    def _begin(self, data: bytes) -> tuple[bytes, Body | None]:
        """Reads the head; returns what came behind it, and what that belongs to, as soon as it is whole."""
        if self._reader is None or self._carried is None:
            self._drop()  # nothing was asked
            return b"", None
        answer = self._reader.feed(data)
        if answer is None:
            return b"", None
        self._body, self._keeps, self._reader = answer.body, answer.keeps, None
        self._carried.begun(answer.head)
        return answer.rest, answer.body

    def _look_at(self, body: Body) -> None:
        """What bytes that were fed to the body have changed."""
        if body.fault:
            raise NotHttp(body.fault)
        if body.is_over:
            # An engine that answers before it has read the whole request, or says more than was asked, is out of step.
            self._keeps = self._keeps and not body.rest and not self._transport.get_write_buffer_size()
            self._finish(None)
        else:
            self._look_for_chunks()

    def _look_for_chunks(self) -> None:
        """Reads that are chunks may come now, or not."""
        self._taker = self._content if self._body and self._body.takes_chunks else None

    def _mishap(self, error: Exception) -> None:
        """Who takes the answer has failed. Raises that error where nobody is left to be told: then the loop logs it."""
        if self._carried is None:
            raise error
        self.fail(error)

    def _cut(self) -> EngineError:
        return StreamBroken(CUT) if self._body else EngineUnreachable(GONE, AGAIN)

    def _finish(self, error: Exception | None) -> None:
        carried, keeps = self._carried, self._keeps
        self._rest()
        if error is None and keeps and self.is_open:
            self._transport.resume_reading()  # which it may have been told not to do
            self._pool.keep(self)
        else:
            self._drop()
        if carried:
            carried.over(self, error)

    def _drop(self) -> None:
        self._pool.forget(self)
        self._transport.abort()
