"""One engine process as asyncio sees it: started behind a guard, its lines delivered, its whole tree gone at the end.

vllmd does not start the engine: it starts a guard that does (guard.py), and holds the other end of its lifeline
(tether.py). Cutting that is the whole of `kill`; and since the kernel closes it when vllmd dies, an engine cannot
outlive vllmd, unless systemd holds the lifeline too and gives it to the next vllmd, which adopts the engine (kept.py).

Only when somebody kills the guard itself do its descendants get away. For that case every engine carries a token in its
environment, and `wait` never returns before a sweep has found no process with it (tree.py).

vllmd itself is no subreaper. As one it would inherit those orphans and have to reap them with a wait for any child,
which takes exit statuses away from all others who wait for a child of their own (asyncio, subprocess). To find the
orphans the token is enough, and init reaps them.
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine import tree
from vllmd.engine.output import Log
from vllmd.engine.tether import Tether, start_guard
from vllmd.engine.verdict import Exit
from vllmd.errors import EngineError


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


class Process:
    """A running engine; made by `spawn` or `adopt`.

    Args:
        tether: what holds it; the process's own from now on.
        on_line: called in the loop with each line that it prints.

    Attributes:
        leader: the engine's own process (vLLM's API server), once it is known.
    """

    def __init__(self, tether: Tether, on_line: Callable[[str], None], leader: int | None = None) -> None:
        self.tether = tether
        self.leader = leader
        self._ended = asyncio.create_task(self._run(Log(tether.log, on_line)))

    @property
    def pid(self) -> int:
        """The guard's process number."""
        return self.tether.guard

    async def wait(self) -> Exit:
        """How it ended; returns only when no process of it is alive and every line has been delivered."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Ask the engine to stop: SIGTERM to the leader, through the guard. Nothing happens if it has ended."""
        if not self._ended.done():
            self.tether.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the engine and all its descendants now. Nothing happens if they have ended, or were let go of."""
        if not self._ended.done() and not self._ended.cancelling():
            self.tether.cut()

    def let_go(self) -> None:
        """Leave the engine as it is to whoever else holds its lifeline; `wait` ends in CancelledError."""
        self._ended.cancel()

    async def started(self, program: str) -> None:
        """Wait until the guard has started the engine; raises EngineError if it could not."""
        report = await asyncio.get_running_loop().sock_recv(self.tether.lifeline, 4096)
        verb, _, rest = report.decode(errors="replace").partition("\n")[0].partition(" ")
        if verb != "started":
            raise _cannot_start(program, rest or "its guard ended at once")
        self.leader = int(rest)

    async def _run(self, log: Log) -> Exit:
        """The engine's life from here on: the guard's end, that of whoever got away from it, and the last lines."""
        try:
            with closing(log):
                await _readable(self.tether.pidfd)
                status = self.tether.status()
                await asyncio.to_thread(tree.sweep, self.tether.mark)
                await log.drain()
        finally:
            self.tether.let_go()
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
    try:
        tether = start_guard(command.argv, command.env, command.cwd, secrets.token_hex(16))
    except (OSError, ValueError) as error:
        raise _cannot_start(command.argv[0], str(error)) from error
    async with _ending(Process(tether, on_line)) as process:
        await process.started(command.argv[0])
        yield process


@asynccontextmanager
async def adopt(tether: Tether, leader: int, on_line: Callable[[str], None]) -> AsyncIterator[Process]:
    """Go on with an engine that an earlier vllmd has started; as with `spawn`, it ends with the context."""
    async with _ending(Process(tether, on_line, leader)) as process:
        yield process


@asynccontextmanager
async def _ending(process: Process) -> AsyncIterator[Process]:
    """At the end the process has ended, unless it was let go of."""
    try:
        yield process
    finally:
        process.kill()
        await _see_through(process._ended)


def _cannot_start(program: str, reason: str) -> EngineError:
    hint = "check that this program exists and may be executed, and so may the interpreter that its first line names"
    return EngineError(f"cannot start {program}: {reason}", hint)


async def _readable(fd: int) -> None:
    """Wait until `fd` can be read; for a pidfd that is the process's exit (pidfd_open(2))."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


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
    if not task.cancelled():
        task.result()


def _exit(status: int) -> Exit:
    """From the guard's exit status (negative: the signal that ended the guard itself)."""
    number = -status if status < 0 else status - 128
    return Exit(None, number) if number in signal.valid_signals() else Exit(status, None)
