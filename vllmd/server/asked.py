"""An ordinary request as its handler sees it: aiohttp's own class, made without aiohttp's parser."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage, StreamWriter
from yarl import URL

from vllmd.server.finish import Finish
from vllmd.server.middleware import Guard
from vllmd.server.ordinary import Ordinary
from vllmd.server.reply import Answer

Serve = Callable[[web.BaseRequest], Awaitable[Answer]]


@dataclass(frozen=True)
class Way:
    """Where ordinary requests go, and what surrounds them there.

    Args:
        handlers: by path; for other paths there is no shortcut.
        guard: makes the checks, and an answer of every failure.
        finish: puts on answers what they bear.
    """

    handlers: Mapping[str, Serve]
    guard: Guard
    finish: Finish


SHORTCUT = web.AppKey("shortcut", Way)
"""An application's."""


class _Known(Protocol):
    """A connection that knows which way it goes (`shortcut.Shortcut`)."""

    @property
    def way(self) -> Way:
        """It."""


class Asked(web.BaseRequest):
    """An ordinary request, as its handler sees it."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Finishes an answer before its head leaves, as the application's signal does for others."""
        cast(_Known, self.protocol).way.finish.response(self, response)


class Whole:
    """A body that is there. The part of aiohttp's reader that is asked for, and no more."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def is_eof(self) -> bool:
        """Nothing more comes."""
        return True

    def read_nowait(self) -> bytes:
        """All of it."""
        return self._body


def asked(ordinary: Ordinary, connection: BaseProtocol, loop: asyncio.AbstractEventLoop) -> Asked:
    """The request that came on a connection."""
    path, headers, body, _ = ordinary
    message = RawRequestMessage("POST", path, HttpVersion11, headers, (), False, None, False, False, _url(path))
    content, protocol = cast(StreamReader, Whole(body)), cast(web.RequestHandler, connection)
    nobody = cast("asyncio.Task[None]", None)  # whom aiohttp would cancel
    return Asked(message, content, protocol, StreamWriter(connection, loop), nobody, loop)


@lru_cache(maxsize=64)
def _url(path: str) -> URL:
    return URL.build(path=path, encoded=True)
