"""The way straight through for the ordinary events of one stream: what one token costs.

It is gone once for each token of each stream, mostly by a process that has just slept and has nothing of this stream in
its caches. Then it is not instructions that count but the places in memory that are touched: what is needed stands in
this one object.
"""

from collections.abc import Callable

from vllmd.engine.body import CRLF, FRAMES, HEADS
from vllmd.server.doors import CLOGGED_BYTES, Door
from vllmd.template import QUOTE, Template

FRAME_BYTES, TEXT_BYTES = 4, 5
"""What an ordinary event has beside what all of its stream have, about: the size of its chunk, and its text."""


class Straight:
    """Knows ordinary events at a glance, keeps their text and lets them out.

    Args:
        keep: what was said is added here; None where nobody wants it.

    Attributes:
        count: the ordinary events so far.
        leads_on: ordinary events are known, and may be let out.
    """

    __slots__ = (
        "_fixed",
        "_head",
        "_on_clogged",
        "_out",
        "_tail",
        "_waiting",
        "_wants_text",
        "count",
        "keep",
        "leads_on",
    )

    def __init__(self, keep: bytearray | None) -> None:
        self.count = self._fixed = 0
        self.keep = keep
        self.leads_on = False

    @property
    def size_bytes(self) -> int:
        """About how many bytes came straight through: adding them up would make each event a tenth dearer."""
        return self.count * (self._fixed + FRAME_BYTES + TEXT_BYTES)

    def lead(self, door: Door, template: Template | None, on_clogged: Callable[[], None]) -> None:
        """From now on what is made from `template` goes out by `door`.

        Args:
            on_clogged: called when the client does not take what is there.
        """
        self.leads_on = template is not None and (door.shows_thoughts or not template.is_thought)
        if template is None or not self.leads_on:
            return
        self._head, self._tail = template.head, template.tail + CRLF
        self._fixed = len(self._head) + len(self._tail)
        write = door.write_chunk
        self._out, self._wants_text = (door.ordinary, True) if write is None else (write, False)
        self._waiting, self._on_clogged = door.waiting_bytes, on_clogged

    def glance(self, data: bytes) -> bool:
        """Takes a read that is one whole chunk with one ordinary event; see `connection.Content`.

        `removeprefix` and `removesuffix` are the cheapest comparisons that bytes have. They cut off all or nothing:
        what is left has the length of a text only where all three were there. What is called is fetched on a line of
        its own, where CPython finds it at once: `self._out(data)` would look for a method first.
        """
        if (length := len(data)) >= FRAMES:
            return False
        line = HEADS[length]
        text = data.removeprefix(line).removeprefix(self._head).removesuffix(self._tail)
        if len(text) + len(line) + self._fixed != length or QUOTE in text:
            return False
        self.count += 1
        if self.keep is not None:
            self.keep += text
        out = self._out
        out(text if self._wants_text else data)
        waiting = self._waiting
        if waiting() > CLOGGED_BYTES:
            self._on_clogged()
        return True

    def take(self, text: bytes) -> None:
        """Counts an ordinary event that came another way, and keeps its text."""
        self.count += 1
        if self.keep is not None:
            self.keep += text

    def end(self) -> None:
        """Nothing comes any more. It lets go of who holds it, or both would have to wait for the garbage collector."""
        self.leads_on, self._on_clogged = False, _nobody


NOT_STRAIGHT = Straight(None)
"""That of an answer in one piece: nothing goes through it."""


def _nobody() -> None:
    """Nobody is to be told."""
