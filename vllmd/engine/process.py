"""One engine process as asyncio sees it: started behind a guard, its lines delivered, its whole tree gone at the end.

vllmd does not start the engine: it starts a guard that does (guard.py), and holds the other end of its lifeline.
Closing that is the whole of `kill`; and since the kernel closes it when vllmd dies, an engine cannot outlive vllmd.

Only when somebody kills the guard itself do its descendants get away. For that case every engine carries a token in its
environment, and `wait` never returns before a sweep has found no process with it (tree.py).

vllmd itself is no subreaper. As one it would inherit those orphans and have to reap them with a wait for any child,
which takes exit statuses away from all others who wait for a child of their own (asyncio, subprocess). To find the
orphans the token is enough, and init reaps them.
"""

import asyncio
import codecs
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine import tree
from vllmd.engine.verdict import Exit
from vllmd.errors import EngineError

GUARD = Path(__file__).with_name("guard.py")
TOKEN = "VLLMD_ENGINE"
KEEP_ENVIRON = {"SPT_NOENV": "1"}
"""vLLM renames its processes with setproctitle, which would overwrite /proc/pid/environ, and so the token."""

CHUNK_BYTES = 16 * 1024
"""Read at once; between two reads the loop turns, so that a burst of lines starves nobody."""

LINE_CHARACTERS = 16 * 1024
"""A longer line is delivered in pieces of this size, so that memory is bounded."""


@dataclass(frozen=True)
class Command:
    """What to run.

    Args:
        argv: the program and its arguments; without a slash the program is looked up in the PATH of `env`.
        env: the whole environment.
        cwd: where to run it; None for vllmd's own.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None


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


class Process:
    """A started engine; made by `spawn`.

    Attributes:
        pid: the guard's process number.
        leader: the engine's own (vLLM's API server), once it is known.
    """

    def __init__(self, command: Command, on_line: Callable[[str], None]) -> None:
        token = secrets.token_hex(16)
        self._command = command
        self._guard, pidfd, self._lifeline, log = _start_guard(command, token)
        self.pid = self._guard.pid
        self.leader: int | None = None
        self._ended = asyncio.create_task(self._run(pidfd, Log(log, on_line), f"{TOKEN}={token}"))

    async def wait(self) -> Exit:
        """How it ended; returns only when no process of it is alive and every line has been delivered."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Ask the engine to stop: SIGTERM to the leader, through the guard. Nothing happens if it has ended."""
        self._guard.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the engine and all its descendants now. Nothing happens if they have ended."""
        with suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_RDWR)
        self._guard.send_signal(signal.SIGCONT)  # one that somebody has stopped would not notice

    async def _started(self) -> None:
        """Wait until the guard has started the engine; raises EngineError if it could not."""
        report = await asyncio.get_running_loop().sock_recv(self._lifeline, 4096)
        verb, _, rest = report.decode(errors="replace").partition(" ")
        if verb != "started":
            raise _cannot_start(self._command, rest or "its guard ended at once")
        self.leader = int(rest)

    async def _run(self, pidfd: int, log: Log, mark: str) -> Exit:
        """The engine's life from here on: the guard's end, that of whoever got away from it, and the last lines."""
        with closing(self._lifeline), closing(log):
            await _readable(pidfd)
            status = self._guard.wait()
            await asyncio.to_thread(tree.sweep, mark)
            await log.drain()
        return _exit(status)


@asynccontextmanager
async def spawn(command: Command, on_line: Callable[[str], None]) -> AsyncIterator[Process]:
    """Start an engine. Leaving the context, in whatever way, kills its whole tree and waits until it is gone.

    Args:
        command: what to run.
        on_line: called in the loop with each non-empty line that it prints, without its end; it must not raise.

    Raises:
        EngineError: it could not be started.
    """
    process = Process(command, on_line)
    try:
        await process._started()
        yield process
    finally:
        process.kill()
        await _see_through(process._ended)


def _start_guard(command: Command, token: str) -> tuple[subprocess.Popen[bytes], int, socket.socket, int]:
    """Start a guard; returns it, its pidfd, our end of its lifeline, and the log's reading end. Raises EngineError."""
    lifeline, its_lifeline = socket.socketpair()
    log, its_log = os.pipe()
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), "--", *command.argv],
            stdin=its_lifeline.fileno(),
            stdout=its_log,
            stderr=its_log,
            env={**KEEP_ENVIRON, **command.env, TOKEN: token},
            cwd=command.cwd,
            start_new_session=True,  # from its first moment on no Ctrl-C of vllmd's terminal reaches it
        )
        lifeline.setblocking(False)
        return guard, os.pidfd_open(guard.pid), lifeline, log
    except (OSError, ValueError) as error:
        lifeline.close()
        os.close(log)
        raise _cannot_start(command, str(error)) from error
    finally:
        its_lifeline.close()
        os.close(its_log)


def _cannot_start(command: Command, reason: str) -> EngineError:
    hint = "check that this program exists and may be executed, and so may the interpreter that its first line names"
    return EngineError(f"cannot start {command.argv[0]}: {reason}", hint)


async def _readable(fd: int) -> None:
    """Wait until `fd` can be read; for a pidfd that is the process's exit (pidfd_open(2)). Closes it."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _see_through(task: asyncio.Task[Exit]) -> None:
    """Wait for `task` even when cancelled meanwhile: the cancellation comes after it."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    task.result()


def _exit(status: int) -> Exit:
    """From the guard's exit status (negative: the signal that ended the guard itself)."""
    number = -status if status < 0 else status - 128
    return Exit(None, number) if number in signal.valid_signals() else Exit(status, None)
