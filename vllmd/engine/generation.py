"""One life of an engine: from its environment to the end of its last descendant.

A generation has a directory of its own (0700) with its socket and its TMPDIR, because vLLM neither unlinks a socket nor
cleans up after itself; the directory goes when the last process has gone.
"""

import asyncio
import fcntl
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllmd import address
from vllmd.config import EnvironmentSettings, Model, Paths
from vllmd.engine import command
from vllmd.engine.environment import Environment, ensure
from vllmd.engine.phases import Phase, Progress, read_line
from vllmd.engine.process import Command, Process, spawn
from vllmd.engine.verdict import explain
from vllmd.errors import AddressError, InstallError, VllmdError
from vllmd.lifecycle import Verdict

LAST_LINES = 400
"""Lines of the engine's output that are kept to explain its end."""

_ZMQ_NAME_BYTES = len("/tmp/") + 36
"""vLLM puts Unix sockets named by a UUID into TMPDIR; the path must fit as well."""


@dataclass(frozen=True)
class Plan:
    """Everything a generation needs to know.

    Args:
        name, model: the model's table.
        environment: which vLLM.
        paths: the daemon's directories, all of them filled in.
        environ: the daemon's environment variables.
    """

    name: str
    model: Model
    environment: EnvironmentSettings
    paths: Paths
    environ: Mapping[str, str]

    def directory(self, number: int) -> Path:
        """The directory of generation `number`."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.name)[:20].strip("-")
        return Path(self.paths.runtime) / f"{slug}.{number}"

    def check(self) -> None:
        """Raises AddressError if the directories leave no room for the engine's socket paths."""
        address.check_unix_path(f"{self.directory(99999)}{'x' * _ZMQ_NAME_BYTES}")


class Generation:
    """One life of an engine.

    Args:
        number: 1 for the first.
        plan: what to run.
        on_progress: called whenever the phase or its percentage changes.
        on_line: called with each line that the engine or the installer prints.
    """

    def __init__(
        self, number: int, plan: Plan, on_progress: Callable[[Progress], None], on_line: Callable[[str], None]
    ) -> None:
        self.number = number
        self.was_ready = False
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._plan = plan
        self._on_progress = on_progress
        self._on_line = on_line
        self._progress: Progress | None = None
        self._process: Process | None = None
        self._installing: asyncio.Task[Environment] | None = None
        self._asked_to_end = False

    @property
    def socket(self) -> Path:
        """Where the engine listens once it is ready."""
        return self._plan.directory(self.number) / "api.sock"

    @property
    def pid(self) -> int | None:
        """vLLM's own process (its API server), while there is one."""
        return self._process.leader if self._process else None

    async def run(self) -> Verdict:
        """Runs the engine; returns why it ended, and only when no process of it is alive any more."""
        try:
            environment = await self._environment()
            with _private_directory(self._plan.directory(self.number)) as directory:
                return await self._live(self._command(environment, directory))
        except asyncio.CancelledError:
            if self._asked_to_end and not _being_cancelled():
                return Verdict("stopped as asked", "the start was called off")
            raise
        except VllmdError as error:
            return Verdict("install failed", error.message, error.hint)
        except OSError as error:
            return Verdict("install failed", f"cannot prepare the start: {error}", "check the directories in [paths]")

    def terminate(self) -> None:
        """Asks the engine to end; an installation is called off."""
        self._asked_to_end = True
        if self._process:
            self._process.terminate()
        elif self._installing:
            self._installing.cancel()

    def kill(self) -> None:
        """Ends the engine and all its descendants now."""
        self.terminate()
        if self._process:
            self._process.kill()

    async def _environment(self) -> Environment:
        settings = self._plan.environment
        if settings.path:
            return _existing(Path(settings.path).expanduser())
        self._report(Progress(Phase.INSTALLING, None))
        environments = Path(self._plan.paths.state) / "environments"
        install = ensure(settings.requirement, environments, settings.python, self._take_line)
        self._installing = asyncio.ensure_future(install)
        try:
            return await self._installing
        finally:
            self._installing.cancel()
            self._installing = None

    def _command(self, environment: Environment, directory: Path) -> Command:
        plan = self._plan
        argv = command.serve(
            plan.name, plan.model, python=environment.python, vllm=environment.vllm, socket=self.socket
        )
        environ = command.environ(
            plan.environ,
            plan.model,
            directory=directory,
            cache=Path(plan.paths.cache),
            binaries=environment.root / "bin",
        )
        return Command(argv, environ, directory)

    async def _live(self, what: Command) -> Verdict:
        self._report(Progress(Phase.STARTING_UP, None))
        async with spawn(what, self._take_line) as process:
            self._process = process
            if self._asked_to_end:
                process.kill()
            end = await process.wait()
        self._process = None
        return explain(end, tuple(self.lines), was_ready=self.was_ready, asked=self._asked_to_end)

    def _take_line(self, line: str) -> None:
        self.lines.append(line)
        self._on_line(line)
        if not self.was_ready and self._installing is None:
            self._report(read_line(line, self._progress or Progress(Phase.STARTING_UP, None)))

    def _report(self, progress: Progress) -> None:
        if progress != self._progress:
            self._progress = progress
            self._on_progress(progress)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _existing(root: Path) -> Environment:
    environment = Environment(root)
    if not environment.vllm.exists():
        raise InstallError(f"there is no vLLM in {root}: {environment.vllm} is missing", "correct environment.path")
    return environment


@contextmanager
def _private_directory(path: Path) -> Iterator[Path]:
    """A fresh directory that only its owner can enter, with `tmp` in it; gone afterwards."""
    make_private(path.parent)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    (path / "tmp").mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def claimed(runtime: Path) -> Iterator[None]:
    """Keeps other vllmds out of the directory of the engines' sockets: they would remove those of living engines.

    Raises:
        AddressError: another one has it, or it cannot be used at all.
    """
    try:
        make_private(runtime)
        lock = (runtime / "lock").open("w")
    except OSError as error:
        raise AddressError(f"cannot use {runtime}: {error.strerror}", "see paths.runtime") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process, however that ends
        except BlockingIOError:
            message = f"another vllmd has its engines' sockets in {runtime}"
            raise AddressError(message, "stop it first, or give this one a paths.runtime of its own") from None
        yield


def make_private(path: Path) -> None:
    """Makes `path` (0700) with its parents; one that exists must belong to this user.

    Raises:
        AddressError: it belongs to somebody else, who could then take the engine's place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise AddressError(f"{path} belongs to another user", "choose another directory for paths.runtime")
