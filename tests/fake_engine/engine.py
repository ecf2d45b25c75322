"""The life of the process: it binds, starts, listens, answers, and ends in one of many ways."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

from . import routes, sleeping, startup, tree
from .answers import HttpError
from .claim import Claim
from .dialects import compact
from .generation import DEAD, Generator
from .http import Connection, Request
from .knobs import Controls, Flags


def serve(flags: Flags, controls: Controls) -> int:
    """Runs the engine until it ends; returns the exit status. An address in use ends it as it does vLLM."""
    knobs = controls.now
    signal.alarm(knobs.life_s)
    controls.note("start", argv=sys.argv[1:])
    below = tree.grow(knobs.life_s) if knobs.tree else tree.Tree()
    if knobs.stray:
        tree.let_stray(knobs.life_s)
    try:
        with bind(flags) as bound:
            return asyncio.run(Engine(flags, controls, below, bound).run())
    finally:
        below.fell()


def bind(flags: Flags) -> socket.socket:
    """The socket, bound and not yet listening; a Unix socket's file is never removed."""
    if flags.uds:
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(flags.uds)
    else:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((flags.host, flags.port))
    return bound


class Engine:
    """One run of it."""

    def __init__(self, flags: Flags, controls: Controls, below: tree.Tree, bound: socket.socket) -> None:
        self._flags, self._controls, self._tree, self._socket = flags, controls, below, bound
        self._server: asyncio.Server | None = None
        self._stuck = False
        self._last: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Returns the exit status."""
        loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int] = loop.create_future()
        self._generator = Generator(self._flags, self._controls, self._tree, self._fatal)
        self._claim = Claim(self._flags, self._controls.now, self._tree.worker or os.getpid())
        self._sleeper = sleeping.Sleeper(self._flags, self._controls, self._generator, self._claim, self._crash)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        if self._tree.core:
            self._pidfd = os.pidfd_open(self._tree.core)
            loop.add_reader(self._pidfd, self._core_died)
        await self._start()
        self._server = await loop.create_server(self._connection, sock=self._socket, backlog=2048)
        startup.say(startup.READY)
        self._controls.note("ready")
        status = await self._status
        self._controls.note("exit", status=status)
        return status

    # ── start ──

    async def _start(self) -> None:
        knobs = self._controls.now
        if knobs.garbage:
            startup.write(1, startup.GARBAGE)
        facts = {"api": os.getpid(), "core": self._tree.core, "worker": self._tree.worker}
        lines = startup.log_lines(knobs, **facts, model=self._flags.model, address=self._flags.address)
        cut = int(len(lines) * knobs.start_at)
        await self._tell(lines[:cut], knobs.ready_after_s * knobs.start_at)
        if knobs.start_end != "ready" and self._controls.may_strike():
            await self._fail_to_start(knobs.start_end, knobs.start_last)
        await self._tell(lines[cut:], knobs.ready_after_s * (1 - knobs.start_at))
        self._take_memory()
        startup.flood(knobs.flood)

    async def _tell(self, lines: list[str], seconds: float) -> None:
        """Writes the lines, spread over so many seconds."""
        for line in lines:
            startup.say(line)
            if startup.TAKES_MEMORY in line:
                self._take_memory()
            await self._pass_time(seconds / len(lines))
        if not lines:
            await self._pass_time(seconds)

    def _take_memory(self) -> None:
        if obstacle := self._claim.take():
            startup.say(startup.CORE_ERROR, core=self._tree.core, error=obstacle)
            startup.say(startup.CORE_FAILED)
            self._die("1")

    async def _pass_time(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while clock() < end or self._stuck:
            if self._controls.now.start_busy:
                startup.burn(0.01)
            await asyncio.sleep(max(0.0, min(0.02, end - clock()) if not self._stuck else 0.02))

    async def _fail_to_start(self, end: str, last: str) -> None:
        startup.say(startup.last_words(last))
        how, _, number = end.partition(":")
        if how == "never":
            await self._pass_time(float("inf"))
        self._die(number if how == "exit" else signal.Signals(int(number)).name)

    # ── answers ──

    def _connection(self) -> Connection:
        quiet = self._flags.disable_uvicorn_access_log
        return Connection(self._answer, (lambda line: None) if quiet else startup.say)

    async def _answer(self, request: Request, connection: Connection) -> None:
        self._controls.refresh()
        try:
            if request.path == "/metrics" and self._controls.now.metrics == "hang":
                self._controls.note("scrape")
                await asyncio.Event().wait()
            elif routes.generates(request):
                await self._generator.serve(request, connection)
            elif request.path in sleeping.METHODS:
                connection.respond(*await self._sleeper.answer(request))
            else:
                connection.respond(*routes.answer(request, self._flags, self._controls.now, self._generator))
        except HttpError as error:
            connection.respond(error.status, compact(error.body))
        finally:
            if self._generator.ended:
                connection.transport.close()

    # ── ends ──

    def _signalled(self, number: signal.Signals) -> None:
        self._controls.note("signal", name=signal.Signals(number).name)
        knobs = self._controls.refresh()
        if self._server is None:
            self._signalled_in_start(number, knobs.start_term)
        elif knobs.term == "hang" or self._tree.stopped():
            self._generator.frozen = True
            self._server.close()
        elif knobs.term == "drain" or (knobs.term == "abort" and self._flags.shutdown_timeout):
            self._finish(self._drain())
        elif knobs.term == "abort":
            self._finish(self._stop("abort"))

    def _signalled_in_start(self, number: int, manner: str) -> None:
        if manner == "die":
            self._tree.fell()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stuck = manner == "hang"

    def _finish(self, last: Coroutine[Any, Any, None]) -> None:
        """Begins the end of the process, unless it has begun."""
        if self._last:
            last.close()
        else:
            self._last = asyncio.create_task(last)

    async def _drain(self) -> None:
        """--shutdown-timeout: streams may end; health stays 200, new requests get 500."""
        self._generator.refusal = "cannot schedule new futures after shutdown"
        done = await self._generator.all_done(self._flags.shutdown_timeout or None)
        await self._stop("abort" if done else "error:500")

    async def _stop(self, fault: str, status: int = 0) -> None:
        assert self._server
        self._server.close()
        await self._end_streams(fault)
        startup.say(startup.SHUTDOWN, core=self._tree.core)
        await asyncio.sleep(self._controls.now.term_delay_s)
        self._status.set_result(status)

    async def _end_streams(self, fault: str) -> None:
        ended = [connection.closed.wait() for connection in self._generator.end_all(fault)]
        if ended:
            await asyncio.wait(map(asyncio.ensure_future, ended), timeout=2)

    def _core_died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.waitpid(self._tree.core, 0)
        if self._server is None:
            startup.say(startup.CORE_FAILED)
            self._die("1")
        self._crash()

    def _crash(self) -> None:
        self._finish(self._mourn())

    async def _mourn(self) -> None:
        """What vLLM does when its EngineCore is gone: errors for all, and a clean exit a moment later."""
        self._generator.refusal = DEAD
        await self._end_streams("error:500")
        delay = self._controls.now.death_s
        if delay >= 0:
            await asyncio.sleep(delay)
            await self._stop("error:500")

    def _fatal(self, end: str) -> None:
        fault = self._controls.now.fault
        self._finish(self._perish(fault, end))

    async def _perish(self, fault: str, end: str) -> None:
        await self._end_streams(fault)
        self._die(end)

    def _die(self, end: str) -> NoReturn:
        """Ends the process at once, by a status or by a signal's name; a signal leaves its children behind."""
        self._controls.note("exit", status=end)
        if end.isdigit():
            self._tree.fell()
            os._exit(int(end))
        number = signal.Signals[end]
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(255)
