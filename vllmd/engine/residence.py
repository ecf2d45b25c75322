"""What a stay in memory has to do with: whose engine it is, and what files and devices say of it."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vllmd.engine.fit import Question, Room
from vllmd.engine.fitting import Devices
from vllmd.engine.memory import Host
from vllmd.engine.plan import Plan
from vllmd.engine.shape import Unknown
from vllmd.engine.wants import Wants
from vllmd.lifecycle import Engine, Event


class Owner(Protocol):
    """Whose engine it is (supervisor.Supervisor)."""

    plan: Plan
    engine: Engine
    expected_until: float

    @property
    def name(self) -> str:
        """The model's."""

    def post(self, event: Event) -> None:
        """Something is wanted of it."""

    def holding(self, why: str) -> AbstractContextManager[None]:
        """No new request gets to the engine for as long as the block lasts."""


class Facts(Protocol):
    """What files and devices say (the module fitting)."""

    def device_of(self, plan: Plan, root: Path | None) -> str:
        """What the vLLM of an environment serves from: `GPU`, `CPU`, or empty."""

    async def question_of(self, plan: Plan, root: Path | None) -> Question:
        """What has to be known to say whether a model fits."""

    async def devices(self, kinds: Collection[str]) -> Devices:
        """The memory of all devices of these kinds, as it is now."""

    def room_of(self, plan: Plan, device: str, wants: Wants, there: Devices) -> Room | Unknown:
        """The memory of the devices that an engine will have, of those that there are."""

    def host(self) -> Host | None:
        """Main memory, as it is now."""
