"""What waits to be logged, bounded: where there is too much, ordinary lines make way, and errors last of all. Pure."""

from collections import deque

KEPT = 20_000
"""Entries that wait; while journald stands still they are all that is left of a burst."""


class Backlog:
    """Entries in their order.

    Args:
        kept: how many may wait.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._queues: dict[bool, deque[tuple[int, bytes]]] = {True: deque(), False: deque()}
        """Those that matter and those that do not, with their numbers."""
        self._number = 0
        self.dropped = 0
        """How many have made way since this was last set to 0."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def put(self, entry: bytes, matters: bool) -> None:
        """Adds one; if there are too many, the oldest that does not matter goes, else the oldest of all."""
        self._number += 1
        self._queues[matters].append((self._number, entry))
        if len(self) > self._kept:
            (self._queues[False] or self._queues[True]).popleft()
            self.dropped += 1

    def take(self) -> bytes | None:
        """The next one, which leaves; None if there is none."""
        waiting = [queue for queue in self._queues.values() if queue]
        return min(waiting, key=lambda queue: queue[0][0]).popleft()[1] if waiting else None
