"""What an engine prints: from the bytes in a pipe to whole lines."""

import asyncio
import codecs
import os
import re
from collections.abc import Callable, Iterator

CHUNK_BYTES = 16 * 1024
"""Read at once; between two reads the loop turns, so that a burst of lines starves nobody."""

LINE_CHARACTERS = 16 * 1024
"""A longer line is delivered in pieces of this size, so that memory is bounded."""


class Lines:
    """Bytes in, lines out: cut at LF and CR (progress bars), empty ones dropped, invalid UTF-8 replaced."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes; with no data, at the end, the one that was begun."""
        *lines, self._begun = re.split("[\r\n]", self._begun + self._decoder.decode(data, final=not data))
        if not data or len(self._begun) >= LINE_CHARACTERS:
            lines.append(self._begun)
            self._begun = ""
        for line in filter(None, lines):
            for start in range(0, len(line), LINE_CHARACTERS):
                yield line[start : start + LINE_CHARACTERS]


class Log:
    """The reading end of an engine's output, which calls `on_line` while the loop runs. Owns `fd`."""

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_line = on_line
        self._lines = Lines()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Deliver one chunk; returns whether there was one."""
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
        for line in self._lines.feed(data):
            self._on_line(line)
        return bool(data)

    async def drain(self) -> None:
        """Deliver what is in the pipe, once nobody is left to write to it."""
        while self._read():  # noqa: ASYNC110 (a turn for everybody else, no waiting)
            await asyncio.sleep(0)

    def close(self) -> None:
        """Deliver a last line that never got its end, and let go of the pipe."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        for line in self._lines.feed(b""):
            self._on_line(line)
