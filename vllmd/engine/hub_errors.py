"""What went wrong between vllmd and the hub, told apart, with what to do about it.

Runs where huggingface_hub is loaded. That raises errors of its own for what the hub says in X-Error-Code; what a
network or a disk does comes as it is.
"""

import errno
import re
from dataclasses import dataclass

from vllmd.errors import (
    Gated,
    HubUnreachable,
    NoSpace,
    NotOnHub,
    PullError,
    RateLimited,
    TokenRefused,
    VllmdError,
)

TOKEN = "HF_TOKEN in the model's `env`, or the credential vllmd.hub-token"
NETWORK = "check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT, or give the directory of a downloaded model"

LONGEST_S = 3600
"""So long a hub is left alone at most, whatever it asks for."""


@dataclass(frozen=True)
class Asked:
    """What the hub was asked for.

    Args:
        endpoint: the hub's address.
        repo, revision: of the model.
        has_token: whether it was shown a token.
    """

    endpoint: str
    repo: str
    revision: str
    has_token: bool


def explained(error: Exception, asked: Asked) -> VllmdError:
    """The error in vllmd's words."""
    from huggingface_hub import errors as hub

    if isinstance(error, VllmdError):
        return error
    if isinstance(error, hub.GatedRepoError):
        return _gated(asked)
    if isinstance(error, hub.RevisionNotFoundError):
        return NotOnHub(f"{asked.repo} has no revision {asked.revision!r}", "name a branch, a tag, or a commit of it")
    if isinstance(error, hub.OfflineModeIsEnabled):
        return HubUnreachable("asking the model hub is switched off", "do not set HF_HUB_OFFLINE")
    if isinstance(error, hub.HFValidationError):
        return NotOnHub(f"{asked.repo} is no name of a model on a hub", "names look like  Qwen/Qwen2-7B-Instruct")
    if isinstance(error, hub.RepositoryNotFoundError):
        return _not_found(asked)
    if isinstance(error, hub.HfHubHTTPError):
        return _said(error.response.status_code, error.response.headers.get("Retry-After", ""), asked)
    return _of_the_system(error, asked)


def _gated(asked: Asked) -> Gated:
    terms = f"accept the terms at {asked.endpoint}/{asked.repo}"
    hint = f"{terms} with the account of the token" if asked.has_token else f"{terms}, and set a token: {TOKEN}"
    return Gated(f"the model hub gives {asked.repo} only to those who accepted its terms", hint)


def _not_found(asked: Asked) -> NotOnHub:
    shown = "to the owner of this token" if asked.has_token else "without a token"
    hint = "check the name" + ("" if asked.has_token else f"; for a private model set a token: {TOKEN}")
    return NotOnHub(f"the model hub has no {asked.repo}, or does not show it {shown}", hint)


def _said(status: int, retry_after: str, asked: Asked) -> VllmdError:
    hub = f"the model hub at {asked.endpoint}"
    if status in (401, 403):
        refused = "does not accept the token" if asked.has_token else f"does not give {asked.repo} without a token"
        return TokenRefused(f"{hub} {refused}", f"tokens expire and are revoked; set a valid one: {TOKEN}")
    if status == 429:
        after_s = min(int(retry_after), LONGEST_S) if re.fullmatch("[0-9]{1,9}", retry_after) else 0
        when = f"in {after_s} s" if after_s else "later"
        more = "" if asked.has_token else "; with a token it allows more"
        return RateLimited(f"{hub} has had too many requests", f"try again {when}{more}", after_s)
    if status >= 500:
        return HubUnreachable(f"{hub} answers {status}", "that is the hub's, or a proxy's, to mend; try again later")
    return PullError(f"{hub} answers {status} for {asked.repo}", "see the daemon's log")


def _of_the_system(error: Exception, asked: Asked) -> VllmdError:
    import httpx2

    if isinstance(error, httpx2.TransportError):
        reason = str(error) or type(error).__name__
        return HubUnreachable(f"the model hub cannot be reached at {asked.endpoint}: {reason}", NETWORK)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the disk is full: {error.filename or 'where models lie'}", "see:  vllmctl models --local")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PullError(f"cannot write {error.filename}: {error.strerror}", "look at its owner and permissions")
    return PullError(f"{asked.repo} cannot be pulled: {error}", "see the daemon's log")
