"""Which environment each model runs in: the configuration's word, an administrator's choice, or what suits the machine.

A choice is made beside the configuration (`vllmctl env use`) and kept in the state. It stands against what the file
said at that time: once the file names another requirement, interpreter or path, that is the newer word, and holds.

Where neither says anything, the machine's build counts, in the version with which it first served here (`settled`): a
later vllmd that was made with a newer one goes on with what is installed. Each build has a version of its own: a GPU
that comes brings its own, and one whose driver was late for once finds everything as it was.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vllmd.sections import EnvironmentSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """An environment that was chosen.

    Args:
        requirement, python: by which it is found, or built again.
        over: what the configuration said then (`said`).
    """

    requirement: str
    python: str
    over: str


@dataclass(frozen=True)
class Chosen:
    """All choices.

    Args:
        every: for all models that have none of their own.
        models: model → its own.
        settled: build (a value of `Variant`) → the requirement that first served where nobody had chosen.
    """

    every: Choice | None = None
    models: Mapping[str, Choice] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)

    def of(self, model: str) -> Choice | None:
        """The choice that is meant for a model."""
        return self.models.get(model, self.every)

    def but(self, model: str | None, choice: Choice) -> "Chosen":
        """These, with another one for `model`; None means all models, also those that had one of their own.

        A choice for all is also the newer word about what was settled.
        """
        return Chosen(choice) if model is None else replace(self, models={**self.models, model: choice})

    def settle(self, variant: str, requirement: str) -> "Chosen":
        """These, and what a build of vLLM is on this machine from now on."""
        return replace(self, settled={**self.settled, variant: requirement})


def said(configured: EnvironmentSettings) -> str:
    """What the configuration says of the environment, as one text."""
    return json.dumps([configured.requirement, configured.python, configured.path])


def settings(
    configured: EnvironmentSettings, pin: str, choice: Choice | None, suits: EnvironmentSettings
) -> EnvironmentSettings:
    """What a model runs in.

    Args:
        configured: the file's `[environment]`.
        pin: the model's own requirement in the file; empty where it has none.
        choice: what was chosen for it.
        suits: what suits the machine; for a file that says nothing.
    """
    if pin:
        return replace(configured, requirement=pin, path="")
    if choice and choice.over == said(configured):
        return replace(configured, requirement=choice.requirement, python=choice.python, path="")
    if configured.path or configured.requirement:
        return configured
    return replace(configured, requirement=suits.requirement)


class Choices:
    """The choices in a file of the state.

    Args:
        path: a JSON file; one that cannot be read counts as empty, with a line in the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.kept = _read(path)
        self._trials: dict[str, Choice] = {}

    @property
    def now(self) -> Chosen:
        """What is kept, and what is on trial."""
        return replace(self.kept, models={**self.kept.models, **self._trials})

    def begin_trial(self, model: str, choice: Choice) -> None:
        """A model tries another environment: it holds as long as this vllmd lives, and for this model alone."""
        self._trials[model] = choice

    def end_trial(self, model: str) -> None:
        """What is kept holds again."""
        self._trials.pop(model, None)

    def keep(self, chosen: Chosen) -> None:
        """Keeps other choices; the file is replaced as a whole, and is on the disk when this returns.

        Raises:
            OSError: it cannot be written; what was kept holds.
        """
        fresh = self._path.with_suffix(".new")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with fresh.open("w") as file:
            json.dump(asdict(chosen), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self.kept = chosen


def _read(path: Path) -> Chosen:
    try:
        table = json.loads(path.read_text())
        models = {str(name): _choice(each) for name, each in table["models"].items()}
        settled = {str(variant): str(each) for variant, each in table.get("settled", {}).items()}
        return Chosen(_choice(table["every"]) if table["every"] else None, models, settled)
    except FileNotFoundError:
        return Chosen()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s: the environments that were chosen cannot be read, and do not hold: %s", path, error)
        return Chosen()


def _choice(table: Mapping[str, Any]) -> Choice:
    return Choice(str(table["requirement"]), str(table["python"]), str(table["over"]))
