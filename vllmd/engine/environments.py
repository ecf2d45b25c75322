"""The environments of one state directory: which there are, one more, one less."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vllmd.engine import records, whole
from vllmd.engine.distributions import pinned
from vllmd.engine.environment import Environment, Interpreter, ensure, environment_path, find_interpreter
from vllmd.engine.installer import find_uv
from vllmd.engine.records import Record
from vllmd.engine.run import Report
from vllmd.engine.shared import Shared
from vllmd.errors import EnvironmentNotFound, InstallError
from vllmd.sections import EnvironmentSettings
from vllmd.settings import nearest

INTERPRETER_S = 10.0
"""So long an interpreter is taken to be what it said it is."""


@dataclass(frozen=True)
class Installed:
    """An environment that is there, and what is known of it."""

    root: Path
    record: Record

    @property
    def id(self) -> str:
        """The name of its directory, by which people may call it."""
        return self.root.name

    @property
    def version(self) -> str:
        """vLLM's, as it was asked for."""
        return pinned(self.record.requirement)[1]

    def answers_to(self, word: str) -> bool:
        """Whether people may mean it by `word`: its id, requirement, version or distribution."""
        return word in (self.id, self.record.requirement, self.version, pinned(self.record.requirement)[0])


class Environments:
    """The directory that they lie in.

    Args:
        folder: it need not exist.
        find_installer: says where uv is.
    """

    def __init__(self, folder: Path, find_installer: Callable[[], str | None] = find_uv) -> None:
        self._folder = folder
        self._find_installer = find_installer
        self._interpreters: dict[str, Shared[Interpreter]] = {}

    def all(self) -> list[Installed]:
        """Those that are whole, by name."""
        found = ((root, records.read(root)) for root in sorted(self._folder.glob("*")) if Environment(root).is_there)
        return [Installed(root, record) for root, record in found if record and root.suffix not in whole.PASSING]

    def find(self, word: str) -> Installed:
        """The one that is meant by its id, its version or its requirement.

        Raises:
            EnvironmentNotFound: there is none, or several are meant.
        """
        every = self.all()
        meant = [each for each in every if each.id == word] or [each for each in every if each.answers_to(word)]
        if len(meant) > 1:
            raise EnvironmentNotFound(f"{word!r} are {len(meant)} environments", "say which: " + _names(meant))
        if not meant:
            raise EnvironmentNotFound(f"there is no environment {word!r}{_nearest(word, every)}", _installed(every))
        return meant[0]

    async def install(self, requirement: str, python: str, index: str, report: Report) -> Installed:
        """Finds or builds the environment for a requirement. Raises InstallError."""
        built = await ensure(requirement, self._folder, python, report, self._find_installer, index, "an administrator")
        record = records.read(built.root)
        assert record is not None, "its name tells as much"
        return Installed(built.root, record)

    async def root_of(self, settings: EnvironmentSettings) -> Path | None:
        """Where the environment lies that settings mean, whether or not it is there; None where they mean none.

        Raises:
            InstallError: there is no interpreter to tell it by.
        """
        if settings.path or not settings.requirement:
            return Path(settings.path) if settings.path else None
        return environment_path(settings.requirement, self._folder, await self._interpreter(settings.python))

    async def _interpreter(self, python: str) -> Interpreter:
        """The one behind a configured path: asked itself, but not by everybody who wants to see the list."""
        shared = self._interpreters.setdefault(python, Shared(partial(find_interpreter, python), INTERPRETER_S))
        return await shared.get()

    async def settings_of(self, installed: Installed, configured: EnvironmentSettings) -> EnvironmentSettings:
        """The settings that mean one that is there; of several ways to name its interpreter the configured one.

        Raises:
            InstallError: none leads to it.
        """
        real = str((installed.root / "bin/python").resolve())
        for python in (configured.python, "", installed.record.interpreter, real):
            settings = replace(configured, requirement=installed.record.requirement, python=python, path="")
            if await self.root_of(settings) == installed.root:
                return settings
        raise InstallError(f"{installed.id} was built in a way that this vllmd does not know", "install it anew")

    async def remove(self, installed: Installed, report: Report) -> None:
        """Removes one that nobody uses. Raises InstallError."""
        try:
            await whole.removed(installed.root, report)
        except OSError as error:
            raise InstallError(f"{installed.id} cannot be removed: {error}", "look at the permissions") from error

    async def sweep(self, report: Report) -> None:
        """Removes what a vllmd has left that was killed while it built or removed one."""
        await whole.sweep(self._folder, report)

    async def free_bytes(self) -> int:
        """How much room is left where they lie."""
        return await asyncio.to_thread(_free, self._folder)


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free


def _names(environments: list[Installed]) -> str:
    return ", ".join(each.id for each in environments)


def _nearest(word: str, environments: list[Installed]) -> str:
    return nearest(word, [name for each in environments for name in (each.id, each.version)])


def _installed(environments: list[Installed]) -> str:
    return f"installed are: {_names(environments) or 'none; see:  vllmctl env install --help'}"
