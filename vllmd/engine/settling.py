"""From the configuration, the choices and the machine to what each model runs in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllmd.engine.choices import Choices, Chosen, settings
from vllmd.engine.plan import Plan
from vllmd.engine.variants import Suited, Variant, look, requirement, suited
from vllmd.sections import Config, EnvironmentSettings


@dataclass(frozen=True)
class Settling:
    """What each model is to run in.

    Args:
        choices: the administrators'.
        machine: which build suits it.
        environ: the daemon's environment variables.
    """

    choices: Choices
    machine: Suited
    environ: Mapping[str, str]

    def plans(self, config: Config) -> list[Plan]:
        """What a configuration wants to be run. Raises AddressError: there is no room for the engines' sockets."""
        of_each = self.settings(config, self.choices.now)
        plans = [Plan(name, model, of_each[name], config.paths, self.environ) for name, model in config.models.items()]
        for plan in plans:
            plan.check()
        return plans

    def settings(self, config: Config, chosen: Chosen) -> dict[str, EnvironmentSettings]:
        """Model → what it runs in, if those were the choices."""
        suits = self.default(config.environment)
        return {
            name: settings(config.environment, model.environment, chosen.of(name), suits)
            for name, model in config.models.items()
        }

    def default(self, configured: EnvironmentSettings) -> EnvironmentSettings:
        """What suits the machine; without a requirement where that is nowhere to be had (`variants.NO_ROCM`)."""
        if self.machine.variant is Variant.ROCM and not configured.index:
            return replace(configured, requirement="")
        return replace(configured, requirement=requirement(self.machine.variant))

    def of_all(self, config: Config, chosen: Chosen) -> EnvironmentSettings:
        """What a model runs in that has neither a pin nor a choice of its own."""
        return settings(config.environment, "", chosen.every, self.default(config.environment))


def settling_here(config: Config, environ: Mapping[str, str]) -> Settling:
    """What holds on this machine, by what administrators have chosen on it."""
    return Settling(Choices(Path(config.paths.state) / "environments.json"), suited(look()), environ)
