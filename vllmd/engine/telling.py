"""An engine's lines on their way into vllmd's own log, as entries that say which engine they are of."""

import asyncio
import logging
from collections.abc import Iterable

from vllmd.about import about
from vllmd.engine.entries import LONGEST_WAIT_S, Entries, Entry

log = logging.getLogger("vllmd.engine.output")


class Telling:
    """Tells what one generation prints.

    Args:
        model: its name.
        generation: its number.
    """

    def __init__(self, model: str, generation: int) -> None:
        self._model = model
        self._about = about(model=model, generation=generation, stream="engine")
        self._entries = Entries()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def line(self, line: str) -> None:
        """It has printed a line."""
        self._log(self._entries.feed(line, self._loop.time()))
        if self._entries.waits and self._timer is None:
            self._timer = self._loop.call_later(LONGEST_WAIT_S, self._look)

    def end(self) -> None:
        """It has printed its last line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._log(self._entries.rest())

    def _look(self) -> None:
        self._timer = None
        self._log(self._entries.due(self._loop.time()))
        if self._entries.waits:
            self._timer = self._loop.call_later(LONGEST_WAIT_S, self._look)

    def _log(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            log.log(entry.level, "%s: %s", self._model, entry.text, extra=self._about)
