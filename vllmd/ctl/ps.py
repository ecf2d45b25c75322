"""`vllmctl ps` and `vllmctl cancel`: the requests that are under way, and ending one."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click

from vllmd.ctl.client import Client
from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import request_ids
from vllmd.ctl.failure import Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.load import say
from vllmd.ctl.status import duration
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.routes import REQUESTS
from vllmd.statuses import RequestStatus, request_status

HEADINGS = ("ID", "WHO", "MODEL", "STATE", "AGE", "TOKENS")

SHOWN_CHARACTERS = 8
"""Of an id, at least; more where several begin alike."""


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="The daemon's own JSON.")
@click.pass_obj
def ps(invocation: Invocation, as_json: bool) -> ExitStatus:
    """List the requests that are under way.

    Administrators see all of them, everybody else their own. Of the ids, so much is shown as `vllmctl cancel` needs.
    """
    listing = invocation.client().ask("GET", REQUESTS)
    found = read_requests(listing)
    for line in [json.dumps(listing)] if as_json else render(found):
        invocation.terminal.line(line)
    return ExitStatus.OK


@click.command(cls=Verb)
@click.argument("id", shell_complete=request_ids)
@click.pass_obj
def cancel(invocation: Invocation, id: str) -> ExitStatus:
    """End a request.

    The beginning of its ID is enough, as long as no other begins alike. Its client is told that it was cancelled.
    """
    client = invocation.client()
    name = choose(id, fetch(client))
    client.ask("DELETE", f"{REQUESTS}/{quote(name, safe='')}")
    say(invocation, f"{name}: cancelled")
    return ExitStatus.OK


def fetch(client: Client) -> list[RequestStatus]:
    """The requests under way, as far as the user may see them. Raises as `Client.ask` does."""
    return read_requests(client.ask("GET", REQUESTS))


def read_requests(listing: Any) -> list[RequestStatus]:
    """What `GET /api/requests` says.

    Raises:
        DaemonUnreachable: it cannot be read.
    """
    try:
        return [request_status(each) for each in listing["requests"]]
    except (TypeError, KeyError, AttributeError) as error:
        hint = "compare:  vllmd --version; vllmctl --version"
        raise DaemonUnreachable("the list of requests cannot be read", hint) from error


def choose(beginning: str, found: Sequence[RequestStatus]) -> str:
    """The id that is meant by its beginning.

    Raises:
        Failure: none begins so, or several do.
    """
    ids = list(dict.fromkeys(each.id for each in found))
    matching = [beginning] if beginning in ids else [each for each in ids if beginning and each.startswith(beginning)]
    if not matching:
        raise Failure(f"no request under way begins with {beginning!r}", "see:  vllmctl ps")
    if len(matching) > 1:
        raise Failure(f"{len(matching)} requests begin with {beginning!r}", "\n".join(matching))
    return matching[0]


def render(found: Sequence[RequestStatus]) -> list[str]:
    """The requests in lines, under their headings."""
    short = shortened([each.id for each in found])
    return table(HEADINGS, [_row(each, short[each.id]) for each in found], right=("AGE", "TOKENS"))


def _row(request: RequestStatus, id: str) -> list[str]:
    tokens = "-" if request.tokens is None else str(request.tokens)
    return [id, request.who, request.model, request.state, duration(request.age_s), tokens]


def shortened(ids: Sequence[str]) -> dict[str, str]:
    """Each id and its beginning, which is as long as it must be to tell it from the others."""
    distinct = set(ids)
    return {each: _beginning(each, distinct - {each}) for each in distinct}


def _beginning(id: str, others: set[str]) -> str:
    length = SHOWN_CHARACTERS
    while length < len(id) and any(other.startswith(id[:length]) for other in others):
        length += 1
    return id[:length]
