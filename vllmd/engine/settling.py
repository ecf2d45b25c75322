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
        made_with = self.made_with(configured)
        settled = self.choices.kept.settled.get(self.machine.variant, "") if made_with else ""
        return replace(configured, requirement=settled or made_with)

    def made_with(self, configured: EnvironmentSettings) -> str:
        """The same, as this vllmd was made with it: what a machine gets that has settled on nothing."""
        if self.machine.variant is Variant.ROCM and not configured.index:
            return ""
        return requirement(self.machine.variant)

    def settled(self, config: Config) -> str:
        """What models run in for the only reason that it served here first; empty if this vllmd would install it."""
        default = self.default(config.environment)
        holds = _says_nothing(config) and self.of_all(config, self.choices.kept) == default
        return default.requirement if holds and default.requirement != self.made_with(config.environment) else ""

    def of_all(self, config: Config, chosen: Chosen) -> EnvironmentSettings:
        """What a model runs in that has neither a pin nor a choice of its own."""
        return settings(config.environment, "", chosen.every, self.default(config.environment))

    def settle(self, config: Config, served: EnvironmentSettings) -> bool:
        """Tokens came out of an environment: where it is what suits the machine, later vllmds go on with it.

        A token, not an installation: what never served is not worth going on with. The plans stay as they are.

        Args:
            config: what is in force.
            served: what the model runs in.

        Returns:
            Whether that was news, and is written.

        Raises:
            OSError: it cannot be written.
        """
        is_settled = self.machine.variant in self.choices.kept.settled
        is_default = bool(served.requirement) and served == self.default(config.environment)
        if is_settled or not _says_nothing(config) or not is_default:
            return False
        self.choices.keep(self.choices.kept.settle(self.machine.variant, served.requirement))
        return True


def settling_here(config: Config, environ: Mapping[str, str]) -> Settling:
    """What holds on this machine, by what administrators have chosen on it."""
    return Settling(Choices(Path(config.paths.state) / "environments.json"), suited(look()), environ)


def _says_nothing(config: Config) -> bool:
    return not (config.environment.requirement or config.environment.path)
