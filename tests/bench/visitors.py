"""Clients that ask again and again, and die when they like: of what they see to the end, nothing may be missing."""

import asyncio
import itertools
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from asking import request

CHAT, PROMPT = "/v1/chat/completions", "/api/prompt"
LAST_CHUNK = b"\r\n0\r\n\r\n"

FEWEST_TOKENS = 10
MANNERS = ("read on", "die", "die", "reset", "pause", "read on", "read on", "say half", "read on", "come back")
"""What becomes of a client, all alike likely: most are in order; `come back` asks once more on the same connection."""

_TEXT = {CHAT: re.compile(rb'"content":"[^"\d]*(\d+)[^"]*"'), PROMPT: re.compile(rb"^data:[^\d{]*(\d+)[^\n]*$", re.M)}
_COMMENT = re.compile(rb"^:[^\n]*\n\n", re.M)
_END = {CHAT: b"\n\ndata: [DONE]\n\n", PROMPT: b"\n\nevent: done\n"}


@dataclass(frozen=True)
class Pace:
    """How answers come.

    Args:
        tokens_per_s: of each stream.
        longest_s: of an answer, in seconds.
    """

    tokens_per_s: float
    longest_s: float


@dataclass
class Book:
    """What all clients saw.

    Attributes:
        saw: answers by how they ended for their clients.
        wrong: answers that were not what was promised, each a sentence.
    """

    saw: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0


def flaw(path: str, raw: bytes, wanted: int) -> str:
    """What is wrong with an answer that came to its end; empty if it is whole, in order, and ends once."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return f"refused: {raw[:300]!r}"
    try:
        events = _COMMENT.sub(b"", _dechunked(body))
    except ValueError:
        return f"no chunks: {raw!r}"
    numbers = [int(found) for found in _TEXT[path].findall(events)]
    if len(numbers) != wanted:
        return f"{len(numbers)} tokens of {wanted}"
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        return "tokens out of order, or twice"
    if events.count(_END[path]) != 1 or not events.endswith(b"\n\n") or b'"error"' in events:
        return f"no good end: {events[-300:]!r}"
    return "" if path == PROMPT or events.endswith(_END[path]) else "something after the end"


def _dechunked(body: bytes) -> bytes:
    content, at = list[bytes](), 0
    while True:
        line_end = body.index(b"\r\n", at)
        length = int(body[at:line_end], 16)
        at = line_end + 2 + length + 2
        if not length:
            return b"".join(content)
        content.append(body[line_end + 2 : at - 2])


class Visitor(asyncio.Protocol):
    """One client on one connection, until it dies or has what it wants; then `on_gone` is called, once.

    Args:
        pace: how its answers come.
        chance: what decides on its life.
        book: where it writes what it saw.
    """

    def __init__(self, pace: Pace, chance: random.Random, book: Book, on_gone: Callable[[], None]) -> None:
        self._pace, self._chance, self._book, self._on_gone = pace, chance, book, on_gone
        self._came: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._has_died = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks."""
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        chance = self._chance
        self._came.clear()
        self._path = PROMPT if chance.random() < 0.25 else CHAT
        self._manner = chance.choice(MANNERS)
        lasts_s = chance.uniform(0, self._pace.longest_s)
        self._wanted = max(FEWEST_TOKENS, int(lasts_s * self._pace.tokens_per_s))
        said = f"rate={self._pace.tokens_per_s:g} sync=0"
        words = {"messages": [{"role": "user", "content": said}]} if self._path == CHAT else {"prompt": said}
        whole = request(self._path, {**words, "stream": True, "max_tokens": self._wanted})
        self._transport.write(whole[: len(whole) // 2] if self._manner == "say half" else whole)
        if self._manner in ("die", "reset", "pause", "say half"):
            self._after(chance.uniform(0, lasts_s), self._pause if self._manner == "pause" else self.die)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, act)

    def _pause(self) -> None:
        """Reads nothing for a while: many tokens wait for it meanwhile."""
        self._transport.pause_reading()
        self._after(self._chance.uniform(0, 3), self._transport.resume_reading)

    def die(self) -> None:
        """Goes away, whatever is under way; half of those over TCP without a farewell (socket(7), SO_LINGER)."""
        self._has_died = True
        opened = self._transport.get_extra_info("socket")
        if self._manner == "reset" and opened is not None and opened.family == socket.AF_INET:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Keeps what comes; an answer is looked at when it is whole."""
        self._came.append(data)
        if data.endswith(LAST_CHUNK) or (len(data) < len(LAST_CHUNK) and b"".join(self._came).endswith(LAST_CHUNK)):
            self._answered()

    def _answered(self) -> None:
        if self._timer:
            self._timer.cancel()
        complaint = flaw(self._path, b"".join(self._came), self._wanted)
        self._book.saw["whole"] += not complaint
        self._book.tokens += self._wanted
        if complaint:
            self._book.wrong.append(f"{self._path}: {complaint}")
        if self._manner == "come back" and not complaint:
            self._ask()
        else:
            self._has_died = True
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """It died, or vllmd has cut it off, which it never may."""
        if self._timer:
            self._timer.cancel()
        if not self._has_died:
            self._book.wrong.append(f"{self._path}: cut after {b''.join(self._came)[-300:]!r} ({error})")
        elif self._manner in ("die", "reset", "say half"):
            self._book.saw[self._manner] += 1
        self._on_gone()


class Crowd:
    """So many clients at once, for as long as they are let: whoever goes is followed by the next.

    Args:
        doors: where they come in, in turn: Unix sockets and TCP ports.
        pace: how their answers come.
    """

    def __init__(self, doors: list[Path | int], pace: Pace, chance: random.Random, book: Book) -> None:
        self._doors, self._pace, self._chance, self._book = doors, pace, chance, book
        self._there: set[Visitor] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True

    @property
    def size(self) -> int:
        """How many are there."""
        return len(self._there)

    def welcome(self) -> None:
        """Lets one more in."""
        task = asyncio.get_running_loop().create_task(self._enter(self._chance.choice(self._doors)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enter(self, door: Path | int) -> None:
        loop = asyncio.get_running_loop()
        visitor = Visitor(self._pace, self._chance, self._book, lambda: self._follow(visitor))
        self._there.add(visitor)
        if isinstance(door, Path):
            await loop.create_unix_connection(lambda: visitor, str(door))
        else:
            await loop.create_connection(lambda: visitor, "127.0.0.1", door)

    def _follow(self, visitor: Visitor) -> None:
        self._there.discard(visitor)
        if self._is_open:
            self.welcome()

    async def leave(self) -> None:
        """All go at once."""
        self._is_open = False
        await asyncio.gather(*self._tasks)
        for visitor in tuple(self._there):
            visitor.die()
