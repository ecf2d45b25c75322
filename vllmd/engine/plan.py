"""What a generation has to know before it begins, and the directory that it lives in.

The directory is a generation's own (0700): it holds the socket and TMPDIR, because vLLM neither unlinks a socket nor
cleans up after itself. It goes when the last process has gone.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmd import address
from vllmd.engine import command, tree
from vllmd.engine.environment import Environment
from vllmd.engine.process import Command
from vllmd.engine.runtime import make_private
from vllmd.engine.startups import key_of
from vllmd.errors import InstallError
from vllmd.sections import EnvironmentSettings, Model, Paths

_ZMQ_NAME_BYTES = len("/tmp/") + 36
"""vLLM puts Unix sockets named by a UUID into TMPDIR; the path must fit as well."""


@dataclass(frozen=True)
class Plan:
    """What to run.

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

    @property
    def slug(self) -> str:
        """The model's name as part of a file name: short, and another one for every other model."""
        return f"{re.sub('[^A-Za-z0-9]+', '-', self.name)[:12].strip('-')}-{key_of(self.name)[:6]}"

    @property
    def state(self) -> Path:
        """What survives a restart."""
        return Path(self.paths.state)

    @property
    def key(self) -> str:
        """The same for starts that take about as long."""
        vllm = self.environment.path or self.environment.requirement
        return key_of(vllm, self.model.model, dict(self.model.args), dict(self.model.env))

    @property
    def digest(self) -> str:
        """The same for engines of which one can take the other's place: all that `command` makes a difference of."""
        vllm = self.environment.path or [self.environment.requirement, self.environment.python]
        sleep = [self.model.sleep_level] if self.model.sleep_level else []
        args, env = dict(self.model.args), dict(self.model.env)
        return key_of(vllm, self.name, self.model.model, args, env, self.paths.cache, *sleep)

    def directory(self, number: int) -> Path:
        """The directory of generation `number`."""
        return Path(self.paths.runtime) / f"{self.slug}.{number}"

    def socket(self, number: int) -> Path:
        """Where generation `number` listens once it is ready."""
        return self.directory(number) / "api.sock"

    def check(self) -> None:
        """Raises AddressError if the directories leave no room for the engine's socket paths."""
        address.check_unix_path(f"{self.directory(99999)}{'x' * _ZMQ_NAME_BYTES}")

    def existing_environment(self) -> Environment:
        """The environment that `environment.path` names. Raises InstallError if it is none."""
        environment = Environment(Path(self.environment.path).expanduser())
        if not environment.vllm.exists():
            missing = f"there is no vLLM in {environment.root}: {environment.vllm} is missing"
            raise InstallError(missing, "correct environment.path")
        return environment

    @property
    def surroundings(self) -> dict[str, str]:
        """The variables that say where models lie, and who asks for them."""
        return {**command.surroundings(self.environ, Path(self.paths.cache)), **self.model.env}

    def command(
        self, number: int, environment: Environment, snapshot: Path | None = None, *, can_sleep: bool = False
    ) -> Command:
        """What generation `number` runs, on the model at `snapshot`, or on what vLLM finds itself."""
        argv = command.serve(
            self.name,
            self.model,
            python=environment.python,
            vllm=environment.vllm,
            socket=self.socket(number),
            snapshot=snapshot,
            can_sleep=can_sleep,
        )
        variables = self.variables(number, environment.root, snapshot, can_sleep=can_sleep)
        return Command(argv, variables, self.directory(number))

    def variables(
        self, number: int, root: Path, snapshot: Path | None = None, *, can_sleep: bool = False
    ) -> dict[str, str]:
        """The environment variables of generation `number`, run in the environment at `root` on the model there."""
        return command.environ(
            self.environ,
            self.model,
            directory=self.directory(number),
            cache=Path(self.paths.cache),
            binaries=root / "bin",
            snapshot=snapshot,
            can_sleep=can_sleep,
        )

    def make_directory(self, number: int) -> None:
        """Makes the directory of generation `number`, empty but for `tmp`.

        Directories of other generations can only be left from a vllmd that was killed together with the engine's
        guard. Whoever still lives in one is known by its TMPDIR, and ended first.
        """
        directory = self.directory(number)
        make_private(directory.parent)
        for leftover in directory.parent.glob(f"{self.slug}.*"):
            tree.sweep(_tmpdir(leftover))
            shutil.rmtree(leftover, ignore_errors=True)
        (directory / "tmp").mkdir(mode=0o700, parents=True)
        directory.chmod(0o700)

    def remove_directory(self, number: int) -> None:
        """The last process of generation `number` has gone."""
        shutil.rmtree(self.directory(number), ignore_errors=True)


def _tmpdir(directory: Path) -> str:
    return f"TMPDIR={directory / 'tmp'}"
