"""Isolated virtual environments, one for each version of vLLM: found, or built beside and renamed into place.

A directory of the final name is whole by construction: it was built under another name, `vllm --version` ran in it, it
was flushed to the disk, and only then was it renamed. Whoever builds holds a lock, and so does the installer that it
started: should the builder be killed, the next one waits until that orphan has ended before it sweeps up.
"""

import asyncio
import hashlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine import records
from vllmd.engine.diagnosis import diagnosis, last_words
from vllmd.engine.distributions import overrides, pinned, repair_of, write_alias
from vllmd.engine.inspection import Inspection
from vllmd.engine.installer import (
    Step,
    explained,
    find_uv,
    installer_environ,
    no_index,
    pip_settings,
    steps,
    with_index,
)
from vllmd.engine.records import Record
from vllmd.engine.redaction import redacted, secrets_in
from vllmd.engine.run import Report, gently, output, run
from vllmd.engine.variants import NO_ROCM, NO_ROCM_HINT
from vllmd.engine.whole import SCRATCH, built_beside, locked
from vllmd.errors import InstallError, NotInstallable


@dataclass(frozen=True)
class Interpreter:
    """A Python to build environments with: its real path, and its version as in "3.11"."""

    path: Path
    version: str


@dataclass(frozen=True)
class Environment:
    """A virtual environment with vLLM in it, at `root`. Run it as `python vllm serve …`."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin/python"

    @property
    def vllm(self) -> Path:
        return self.root / "bin/vllm"

    @property
    def is_there(self) -> bool:
        """Whether it was built, and the interpreter that it was built with still exists."""
        return os.access(self.python, os.X_OK)


def environment_path(requirement: str, environments: Path, interpreter: Interpreter) -> Path:
    """Where the environment for `requirement` lies: a readable name, and a hash of all that decides its content."""
    content = f"{requirement}\n{interpreter}\n{repair_of(requirement)}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    readable = "-".join([*pinned(requirement), f"py{interpreter.version}"])
    return environments / f"{readable}-{digest}"


async def ensure(
    requirement: str,
    environments: Path,
    python: str,
    report: Report,
    find_installer: Callable[[], str | None] = find_uv,
    index: str = "",
    asker: str = "another process",
    alive: Callable[[], None] = lambda: None,
) -> Environment:
    """Find the environment for `requirement`, or build it. A cancelled build leaves nothing behind that runs.

    Args:
        requirement: one version of vLLM, as in "vllm==0.33.0"; empty where none that can be had suits the machine.
        environments: the directory of all environments.
        python: the interpreter to build with; empty for the one that this Python itself is made from.
        report: called with each line of progress; at least every 10 s while anything moves.
        find_installer: says where uv is; None makes pip do the work.
        index: an index of wheels beside those of pip's settings.
        asker: who wants it, for those who wait meanwhile because they want the same.
        alive: called once a second while another's installation of it is waited for.

    Raises:
        InstallError: it could not be built; says why, and what to do.
    """
    if not requirement:
        raise NotInstallable(NO_ROCM, NO_ROCM_HINT)
    interpreter = await find_interpreter(python)
    needed = repair_of(requirement).python
    if needed and needed != interpreter.version:
        message = f"{requirement} needs Python {needed}, and {interpreter.path} is Python {interpreter.version}"
        raise NotInstallable(message, f"set `python` to the path of a Python {needed}")
    environment = Environment(environment_path(requirement, environments, interpreter))
    if environment.is_there:
        return environment
    try:
        async with locked(environment.root, report, f"the installation that {asker} has begun", alive) as lock:
            if not environment.is_there:
                async with built_beside(environment.root) as building:
                    uv, place = find_installer(), Environment(building)
                    await _Build(requirement, interpreter, place, uv, report, lock, index).run()
    except OSError as error:
        hint = f"look at the permissions of {environments} and the space where it lies"
        raise InstallError(f"{requirement} could not be installed: {error}", hint) from error
    return environment


async def find_interpreter(python: str) -> Interpreter:
    """The real interpreter behind `python`: behind a shim, a symbolic link, a virtual environment.

    Raises:
        InstallError: it is none.
    """
    if not python:
        base = getattr(sys, "_base_executable", sys.executable)
        return Interpreter(_real(base), f"{sys.version_info[0]}.{sys.version_info[1]}")
    program = "import sys; print(sys._base_executable); print('%d.%d' % sys.version_info[:2])"
    status, lines = await output([python, "-I", "-c", program])
    if status != 0 or len(lines) < 2:
        message = f"{python} is no Python that works" + (f": {last_words(lines)}" if lines else "")
        raise InstallError(message, "set `python` to the path of an interpreter, or leave it empty")
    return Interpreter(_real(lines[-2]), lines[-1])


def _real(path: str) -> Path:
    return Path(path).resolve()


async def installer_settings(interpreter: Interpreter) -> dict[str, str]:
    """pip's options as the administrator has set them, told by the interpreter's pip, else by that of this Python."""
    for python in (str(interpreter.path), sys.executable):
        status, lines = await output([python, "-m", "pip", "config", "list"])
        if status == 0:
            return pip_settings(lines, os.environ)
    return pip_settings([], os.environ)


@dataclass(frozen=True)
class _Build:
    """One build of one environment, at a path that is not yet its own."""

    requirement: str
    interpreter: Interpreter
    environment: Environment
    uv: str | None
    report: Report
    lock: int
    index: str

    async def run(self) -> None:
        async with _scratch(self.environment.root) as scratch:
            await self.install(scratch)
            write_alias(self.requirement, self.site_packages)
            look = Inspection(self.environment.python, self.environment.vllm, scratch, self.report, (self.lock,))
            version, flags = await look.version(), await look.flags()
        root, interpreter = self.environment.root, str(self.interpreter.path)
        size = await asyncio.to_thread(records.disk_use, root)
        records.write(root, Record(self.requirement, interpreter, version, flags, size, time.time()))
        flush = Step("flushing to the disk", ("sync", "--file-system", str(self.environment.root)))
        await self.step(flush, os.environ)

    @property
    def site_packages(self) -> Path:
        return self.environment.root / f"lib/python{self.interpreter.version}/site-packages"

    async def install(self, scratch: Path) -> None:
        settings = with_index(await installer_settings(self.interpreter), self.index)
        repair = repair_of(self.requirement)
        environ = installer_environ(os.environ, settings, repair)
        if self.uv and await self.crosses_filesystems(self.uv):
            environ.setdefault("UV_LINK_MODE", "copy")
        replaced = scratch / "overrides.txt"
        replaced.write_text(overrides(repair))
        for step in steps(
            self.uv,
            self.requirement,
            self.interpreter.path,
            self.environment.root,
            no_index(settings),
            replaced if repair.without else None,
            repair.without,
        ):
            await self.step(step, environ)

    async def step(self, step: Step, environ: Mapping[str, str]) -> None:
        self.report(step.title)
        lines: deque[str] = deque(maxlen=500)
        secrets = secrets_in(environ)

        def said(line: str) -> None:
            line = redacted(line, secrets)
            lines.append(line)
            for text in explained(line):
                self.report(text)

        status = await run(gently(step.argv), environ, said, [self.lock], alive=self.report)
        if status != 0:
            raise diagnosis(self.requirement, pinned(self.requirement)[0], list(lines), status)

    async def crosses_filesystems(self, uv: str) -> bool:
        """Whether uv's cache lies elsewhere, so that it must copy: told to, it does not warn of it."""
        status, lines = await output([uv, "cache", "dir"])
        cache = Path(lines[-1]) if status == 0 and lines else Path("/")
        nearest = next(path for path in (cache, *cache.parents) if path.exists())
        return nearest.stat().st_dev != self.environment.root.parent.stat().st_dev


@asynccontextmanager
async def _scratch(root: Path) -> AsyncIterator[Path]:
    """A directory for what is needed only while `root` is built; it lies beside, where leftovers are swept."""
    scratch = root.with_suffix(SCRATCH)
    await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
