"""What an error of a pull is to a start that needed the model."""

from vllmd.engine.causes import Cause
from vllmd.errors import Damaged, Gated, HubUnreachable, NoSpace, NotOnHub, PullError, RateLimited, TokenRefused

HOPELESS = (Gated, NotOnHub, NoSpace)
"""What another try does not change."""

CAUSES: dict[type[PullError], Cause] = {
    Gated: Cause.GATED,
    TokenRefused: Cause.TOKEN_REFUSED,
    NotOnHub: Cause.MODEL_NOT_FOUND,
    HubUnreachable: Cause.HUB_UNREACHABLE,
    RateLimited: Cause.HUB_UNREACHABLE,
    NoSpace: Cause.NO_SPACE,
    Damaged: Cause.CORRUPT_WEIGHTS,
}


def cause_of(error: PullError) -> str:
    """The cause by which the end of a start is known, as where vLLM itself has met with the same."""
    return CAUSES.get(type(error), "pull failed")
