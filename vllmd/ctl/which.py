"""What the daemon says of itself, and which of its models a command means."""

from typing import Any

from vllmd.ctl.failure import Failure
from vllmd.errors import ModelNotFound
from vllmd.statuses import ModelStatus, Status


def read_status(table: Any) -> Status:
    """The daemon's status, also of another version as long as it can be understood.

    Raises:
        Failure: it cannot.
    """
    try:
        return Status.from_json(table)
    except (TypeError, ValueError, AttributeError) as error:
        raise Failure("the daemon's status cannot be read", "compare:  vllmd --version; vllmctl --version") from error


def find(status: Status, name: str | None) -> ModelStatus:
    """The model called `name`; without a name the default one, or the only one.

    Raises:
        ModelNotFound: there is none such; the hint lists those there are.
    """
    for model in status.models:
        if model.name == name or (name is None and (model.default or len(status.models) == 1)):
            return model
    message = "no default model here" if name is None else f"no model {name!r} here"
    raise ModelNotFound(message, f"known are: {', '.join(model.name for model in status.models) or 'none'}")
