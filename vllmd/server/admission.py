"""Who may come in at all: by TCP, whoever has a key, if there are keys. The Unix socket has the file's rights."""

from aiohttp import web

from vllmd import routes
from vllmd.errors import Unauthenticated
from vllmd.server.access import IDENTITY, IS_STRANGER, Identity, identify, of_key
from vllmd.server.accounts import Accounts
from vllmd.server.keyring import Keyring
from vllmd.server.middleware import Check

OPEN = frozenset({routes.HEALTH, routes.READY, routes.PAGE, routes.PAGE_FILES + "{file}"})
"""The routes that anybody may ask: they say whether the service is there, and are the page that will ask for a key."""

_HINT = "send it as  Authorization: Bearer KEY"


def only_with_a_key(keyring: Keyring | None, accounts: Accounts, open_to_all: frozenset[str] = OPEN) -> Check:
    """Finds out who asks.

    Args:
        keyring: the keys; None where TCP asks for none, which is then this machine's alone.
        accounts: one is opened for whoever is let in.
        open_to_all: the routes that anybody may ask for.
    """

    def admit(request: web.BaseRequest) -> None:
        who = identify(request)
        if keyring is not None and who.uid is None:
            try:
                who = request[IDENTITY] = _with_key(request, keyring)
            except Unauthenticated:
                if not _is_one_of(open_to_all, request):
                    raise
                request[IS_STRANGER] = True
                return
        accounts.of(who)

    return admit


def _is_one_of(wanted: frozenset[str], request: web.BaseRequest) -> bool:
    """By the route that serves it, however the path is spelled; what takes the shortcut is none."""
    resource = request.match_info.route.resource if isinstance(request, web.Request) else None
    return resource is not None and resource.canonical in wanted


def _with_key(request: web.BaseRequest, keyring: Keyring) -> Identity:
    text = presented(request)
    if not text:
        raise Unauthenticated("this service asks for a key", _HINT)
    if (key := keyring.find(text)) is None:
        raise Unauthenticated("the key is none of this service's, or no longer", _HINT)
    return of_key(key)


def presented(request: web.BaseRequest) -> str:
    """The key that a request shows: as OpenAI's clients do it (RFC 6750, 2.1), or Anthropic's; empty for none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("X-Api-Key", "").strip()
