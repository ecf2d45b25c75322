"""Isolated virtual environments, one for each version of vLLM: found, or built beside and renamed into place.

A directory of the final name is whole by construction: it was built under another name, `vllm --version` ran in it, it
was flushed to the disk, and only then was it renamed. Whoever builds holds a lock, and so does the installer that it
started: should the builder be killed, the next one waits until that orphan has ended before it sweeps up.
"""

import asyncio
import hashlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine.distributions import overrides, pinned, repair_of, write_alias
from vllmd.engine.installer import (
    Step,
    diagnosis,
    explained,
    find_uv,
    inherited,
    installer_environ,
    last_words,
    no_index,
    pip_settings,
    steps,
)
from vllmd.engine.run import Report, output, run
from vllmd.engine.whole import built_beside, locked
from vllmd.errors import InstallError

CHECK_TIMEOUT_S = 300.0


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
) -> Environment:
    """Find the environment for `requirement`, or build it. A cancelled build leaves nothing behind that runs.

    Args:
        requirement: one version of vLLM, as in "vllm==0.33.0".
        environments: the directory of all environments.
        python: the interpreter to build with; empty for the one that this Python itself is made from.
        report: called with each line of progress; at least every 10 s while anything moves.
        find_installer: says where uv is; None makes pip do the work.

    Raises:
        InstallError: it could not be built; says why, and what to do.
    """
    interpreter = await find_interpreter(python)
    needed = repair_of(requirement).python
    if needed and needed != interpreter.version:
        message = f"{requirement} needs Python {needed}, and {interpreter.path} is Python {interpreter.version}"
        raise InstallError(message, f"set `python` to the path of a Python {needed}")
    environment = Environment(environment_path(requirement, environments, interpreter))
    if environment.is_there:
        return environment
    try:
        async with locked(environment.root, report) as lock:
            if not environment.is_there:
                async with built_beside(environment.root) as building:
                    build = _Build(requirement, interpreter, Environment(building), find_installer(), report, lock)
                    await build.run()
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

    async def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="vllmd-install-") as scratch:
            await self.install(Path(scratch))
            write_alias(self.requirement, self.site_packages)
            await self.check(scratch)
        flush = Step("flushing to the disk", ("sync", "--file-system", str(self.environment.root)))
        await self.step(flush, os.environ)

    @property
    def site_packages(self) -> Path:
        return self.environment.root / f"lib/python{self.interpreter.version}/site-packages"

    async def install(self, scratch: Path) -> None:
        settings = await installer_settings(self.interpreter)
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

        def said(line: str) -> None:
            lines.append(line)
            for text in explained(line):
                self.report(text)

        status = await run(step.argv, environ, said, [self.lock], alive=self.report)
        if status != 0:
            raise diagnosis(self.requirement, pinned(self.requirement)[0], list(lines), status)

    async def check(self, scratch: str) -> None:
        """Run `vllm --version`, which imports most of vLLM: a broken environment shows here and not at a start."""
        self.report("checking: vllm --version")
        argv = [str(self.environment.python), str(self.environment.vllm), "--version"]
        private = {"TMPDIR": scratch, "VLLM_CACHE_ROOT": scratch, "VLLM_CONFIG_ROOT": scratch}
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        environ = {**inherited(os.environ), **private, **quiet}
        lines: list[str] = []
        hint = "this version of vLLM may not fit this machine's driver or processor: try another one"
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                status = await run(argv, environ, lines.append, [self.lock], alive=self.report)
        except TimeoutError:
            raise InstallError(f"vllm --version gave no answer in {CHECK_TIMEOUT_S:.0f} s", hint) from None
        if status != 0:
            words = last_words(lines) or "it said nothing"
            raise InstallError(f"vllm --version failed with exit status {status}: {words}", hint)
        self.report(f"vllm {lines[-1] if lines else '(no version told)'} answers")

    async def crosses_filesystems(self, uv: str) -> bool:
        """Whether uv's cache lies elsewhere, so that it must copy: told to, it does not warn of it."""
        status, lines = await output([uv, "cache", "dir"])
        cache = Path(lines[-1]) if status == 0 and lines else Path("/")
        nearest = next(path for path in (cache, *cache.parents) if path.exists())
        return nearest.stat().st_dev != self.environment.root.parent.stat().st_dev
