"""Who may come in at all: by TCP, whoever has a key, if there are keys. The Unix socket has the file's rights."""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vllmd import routes
from vllmd.errors import Unauthenticated
from vllmd.server.access import IDENTITY, IS_STRANGER, Identity, of_key, peer_of
from vllmd.server.accounts import Accounts
from vllmd.server.keyring import Keyring

OPEN = frozenset({routes.HEALTH, routes.READY})
"""What anybody may ask: it says whether the service is there, and nothing else."""

_HINT = "send it as  Authorization: Bearer KEY"


def only_with_a_key(keyring: Keyring | None, accounts: Accounts, open_to_all: frozenset[str] = OPEN) -> Middleware:
    """The middleware that finds out who asks.

    Args:
        keyring: the keys; None where TCP asks for none, which is then this machine's alone.
        accounts: one is opened for whoever is let in.
        open_to_all: the paths that anybody may ask for.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        who, is_open = peer_of(request), request.path in open_to_all
        if keyring is not None and who.uid is None:
            try:
                who = _with_key(request, keyring)
            except Unauthenticated:
                if not is_open:
                    raise
                request[IS_STRANGER] = True
        if not is_open:
            accounts.of(who)
        request[IDENTITY] = who
        return await handler(request)

    return admit


def _with_key(request: web.Request, keyring: Keyring) -> Identity:
    text = presented(request)
    if not text:
        raise Unauthenticated("this service asks for a key", _HINT)
    if (key := keyring.find(text)) is None:
        raise Unauthenticated("the key is none of this service's, or no longer", _HINT)
    return of_key(key)


def presented(request: web.Request) -> str:
    """The key that a request shows: as OpenAI's clients do it (RFC 6750, 2.1), or Anthropic's; empty for none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("X-Api-Key", "").strip()
