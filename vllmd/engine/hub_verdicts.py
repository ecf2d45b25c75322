"""What an error of a pull is to a start that needed the model."""

from vllmd.engine.causes import Cause
from vllmd.errors import Damaged, Gated, HubUnreachable, NoSpace, NotOnHub, PullError, RateLimited, TokenRefused
from vllmd.lifecycle import Verdict

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


def verdict_on(error: PullError) -> Verdict:
    """Why a start has ended that needed the model. A hub that is away is not the model's fault, and comes back."""
    after_s = error.retry_after_s if isinstance(error, RateLimited) else 0.0
    is_away = isinstance(error, HubUnreachable | RateLimited)
    return Verdict(
        cause_of(error),
        error.message,
        error.hint,
        permanent=isinstance(error, HOPELESS),
        retry_after_s=after_s if is_away else None,
    )


def cause_of(error: PullError) -> str:
    """The cause by which the end of a start is known, as where vLLM itself has met with the same."""
    return CAUSES.get(type(error), "pull failed")
