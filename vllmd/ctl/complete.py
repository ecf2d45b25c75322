"""What the shell can complete beside verbs and options: names that the daemon knows. In vain, it is silent."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

LIMIT_S = 0.2
"""Seconds that the daemon may take; with the start of vllmctl it is 0.3 at the tab key. To resolve a host's name may
take longer, and then nobody waits for it."""


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The models' names that begin so."""
    from vllmd.routes import MODELS

    return _ask(context, MODELS, lambda listing: listing["data"], incomplete)


def request_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The ids of requests under way that begin so."""
    from vllmd.routes import REQUESTS

    return _ask(context, REQUESTS, lambda listing: listing["requests"], incomplete)


def incident_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The ids of incidents that begin so, the newest first; `last` is the newest one's."""
    from vllmd.routes import INCIDENTS

    last = ["last"] if "last".startswith(incomplete) else []
    return [*last, *_ask(context, INCIDENTS, lambda listing: listing["incidents"], incomplete)]


def file_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """The shell knows files itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _ask(context: click.Context, path: str, entries: Callable[[Any], Any], incomplete: str) -> list[str]:
    from threading import Thread

    from vllmd.ctl.invocation import Invocation

    found: list[str] = []
    invocation = context.find_object(Invocation)
    if invocation is None:
        return found
    client = invocation.client()

    def ask() -> None:
        # Whatever is wrong: a person who presses the tab key wants names or nothing.
        with suppress(Exception):
            found.extend(str(each["id"]) for each in entries(client.ask("GET", path, LIMIT_S)))

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return [each for each in found if each.startswith(incomplete)]
