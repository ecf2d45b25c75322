"""From the lines that an engine prints to entries of a log: what belongs together is one, and what floods is thinned.

vLLM's loggers begin a line with the process and the level: `(EngineCore pid=7) ERROR 11-27 11:30:17 [core.py:304] …`.
The level becomes the entry's. A traceback, whose lines each begin so or not at all, is one entry, of all lines of one
process up to the exception. Of a progress bar the last state a second is kept. Of lines below an error there are at
most `ORDINARY` in `WINDOW_S`, and a sentence for the others, because journald stops to take a service's lines, errors
too, when there are more than 10000 in 30 s (journald.conf(5), RateLimitBurst). Pure: the time comes in as a number.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ORDINARY = 5000
WINDOW_S = 30.0
BAR_INTERVAL_S = 1.0
MOST_BARS = 64
"""More at once are no bars, but what clients have asked: there would be no end of them."""

LONGEST_WAIT_S = 0.5
"""How long a traceback may wait for its next line."""

LONGEST_TRACEBACK = 500
"""Lines; a longer one is cut in two."""

_HEAD = re.compile(
    r"(\([^()]*pid=\d+\) )?(?:(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d \d\d:\d\d:\d\d(?: \[[^\]]*\])? ?|:\s*))?"
)
_BEGINS = re.compile(r'Traceback \(most recent call last\)|Segfault encountered|^Fatal Python error|^\s+File "')
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_BAR = re.compile(r"^(.*?)\d+%(?:\||\s+Completed\s+\|)")


@dataclass(frozen=True)
class Entry:
    """One entry; `level` is one of `logging`'s."""

    level: int
    text: str


@dataclass
class _Traceback:
    """One that is still being printed, by one process at one level, or by something without either."""

    level: int
    lines: list[str]
    at: float
    has_ended: bool = False

    def takes(self, body: str) -> bool:
        """Whether a line is its next one."""
        if len(self.lines) >= LONGEST_TRACEBACK:
            return False
        if not self.has_ended:
            return True
        return bool(_BEGINS.search(body)) or body.startswith((*_CHAIN, " ", "\t"))

    def add(self, body: str, now: float) -> None:
        """Its next line; the first that is not indented names the exception."""
        self.lines.append(body)
        self.at = now
        self.has_ended = not (body.startswith((" ", "\t")) or _BEGINS.search(body))


@dataclass
class _Bar:
    """A progress bar."""

    told_at: float
    waiting: Entry | None = None


@dataclass
class Entries:
    """What has been printed, as far as it is not told yet."""

    _tracebacks: dict[str, _Traceback] = field(default_factory=dict)
    _bars: dict[str, _Bar] = field(default_factory=dict)
    """In the order in which they were last told."""
    _window_from: float = 0.0
    _ordinary: int = 0

    def feed(self, line: str, now: float) -> Iterator[Entry]:
        """The entries that are complete with `line`.

        Args:
            now: seconds, of any clock that only goes forward.
        """
        head = _HEAD.match(line)
        assert head is not None, "it matches the empty line too"
        source, body = (head[1] or "") + (head[2] or ""), line[head.end() :]
        level = logging.getLevelNamesMapping()[head[2] or "INFO"]
        if (open_one := self._tracebacks.get(source)) and open_one.takes(body):
            open_one.add(body, now)
            return
        if open_one:
            yield self._close(source)
        if _BEGINS.search(body):
            self._tracebacks[source] = _Traceback(max(level, logging.ERROR), [line], now)
        elif bar := _BAR.match(body):
            yield from self._progress(source + bar[1], Entry(level, line), now)
        else:
            yield from self._within_bounds(Entry(level, line), now)

    def due(self, now: float) -> Iterator[Entry]:
        """The entries that have waited long enough."""
        for source in [key for key, each in self._tracebacks.items() if now - each.at >= LONGEST_WAIT_S]:
            yield self._close(source)
        for bar in self._bars.values():
            if bar.waiting and now - bar.told_at >= BAR_INTERVAL_S:
                yield bar.waiting
                bar.waiting, bar.told_at = None, now
        if self._ordinary > ORDINARY and now - self._window_from >= WINDOW_S:
            yield from self._new_window(now)

    def rest(self) -> Iterator[Entry]:
        """All that waits, at the end."""
        for source in list(self._tracebacks):
            yield self._close(source)
        yield from (bar.waiting for bar in self._bars.values() if bar.waiting)
        yield from self._new_window(self._window_from)
        self._bars.clear()

    @property
    def waits(self) -> bool:
        """Whether `due` has something to say some time."""
        return bool(self._tracebacks) or self._ordinary > ORDINARY or any(bar.waiting for bar in self._bars.values())

    def _close(self, source: str) -> Entry:
        traceback = self._tracebacks.pop(source)
        return Entry(traceback.level, "\n".join(traceback.lines))

    def _progress(self, label: str, entry: Entry, now: float) -> Iterator[Entry]:
        bar = self._bars.get(label)
        if bar is not None and now - bar.told_at < BAR_INTERVAL_S:
            bar.waiting = entry
            return
        self._bars.pop(label, None)
        self._bars[label] = _Bar(now)  # behind those that were told before
        yield from self._within_bounds(entry, now)
        if len(self._bars) > MOST_BARS and (last := self._bars.pop(next(iter(self._bars))).waiting):
            yield from self._within_bounds(last, now)

    def _within_bounds(self, entry: Entry, now: float) -> Iterator[Entry]:
        if entry.level >= logging.ERROR:
            yield entry
            return
        if now - self._window_from >= WINDOW_S:
            yield from self._new_window(now)
        self._ordinary += 1
        if self._ordinary <= ORDINARY:
            yield entry

    def _new_window(self, now: float) -> Iterator[Entry]:
        if (left_out := self._ordinary - ORDINARY) > 0:
            yield Entry(logging.WARNING, f"{left_out} more lines in {WINDOW_S:g} s, none an error, are not logged")
        self._window_from, self._ordinary = now, 0
