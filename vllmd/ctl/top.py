"""`vllmctl top`: models, requests and tokens per second, on a page that is renewed in place.

The rates on the page are those since it was drawn before, out of two counts. A single look has one count only, and
tells the daemon's averages.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click

from vllmd.ctl.client import Client
from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import wording
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.number import Number
from vllmd.ctl.ps import fetch, shortened
from vllmd.ctl.status import duration, used
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.statuses import ModelStatus, RequestStatus, Status

MODELS = ("MODEL", "STATE", "RUNNING", "HELD", "TOK/S", "USED")
REQUESTS = ("ID", "WHO", "MODEL", "STATE", "AGE", "TOKENS", "TOK/S")
NUMBERS = ("RUNNING", "HELD", "AGE", "TOKENS", "TOK/S")
LEAVE = frozenset("qQ\x04")


class Look(NamedTuple):
    """What one look at the daemon found.

    Args:
        at: when, in seconds of `time.monotonic`.
    """

    at: float
    status: Status
    requests: Sequence[RequestStatus]


@click.command(cls=Verb)
@click.option(
    "-d",
    "--delay",
    type=Number(0.1),
    default=1.0,
    metavar="SECONDS",
    help="Between two looks; 1 if not given.",
)
@click.pass_obj
def top(invocation: Invocation, delay: float) -> ExitStatus:
    """Watch models, requests and tokens live.

    Ends with q or Ctrl-C. Where stdout is no terminal, it is one look, in lines.
    """
    client, terminal = invocation.client(), invocation.terminal
    look_now = look(client)
    if not terminal.can_draw:
        terminal.line("\n".join(render(look_now, None)))
        return ExitStatus.OK
    with terminal.drawing() as canvas:
        before, lines = None, render(look_now, None)
        while True:
            canvas.draw(lines)
            if not LEAVE.isdisjoint(canvas.key(delay)):
                return ExitStatus.OK
            try:
                before, look_now = look_now, look(client)
                lines = render(look_now, before)
            except DaemonUnreachable as error:  # it may come back, and the page says so then
                lines = [wording(error), *error.hint.splitlines(), "", *render(look_now, before)]


def look(client: Client) -> Look:
    """Looks at the daemon once. Raises as `Client.ask` does."""
    return Look(time.monotonic(), client.status(), fetch(client))


# ── the page ──


def render(now: Look, before: Look | None) -> list[str]:
    """The page in lines.

    Args:
        before: the look before this one, so that rates can be told; None if there was none.
    """
    status, rates = now.status, rates_of(now, before)
    clock = time.time()
    title = f"vllmd {status.version}, up {duration(clock - status.since)}   {time.strftime('%H:%M:%S')}"
    models = [_model(each, _of_model(each, now, rates), clock) for each in status.models]
    short = shortened([each.id for each in now.requests])
    requests = [_request(each, short[each.id], rates.get(each.id)) for each in now.requests]
    below = ["", *table(REQUESTS, requests, NUMBERS)] if requests else []
    return [title, "", *table(MODELS, models, NUMBERS), *below]


def rates_of(now: Look, before: Look | None) -> Mapping[str, float]:
    """Tokens per second of each request that tells them, by its id."""
    if before is None:
        return {each.id: each.tokens_per_s for each in now.requests if each.tokens_per_s is not None}
    counted = {each.id: each.tokens or 0 for each in before.requests}
    passed_s = max(now.at - before.at, 1e-3)
    return {
        each.id: max(0, each.tokens - counted.get(each.id, 0)) / min(passed_s, max(each.age_s, 1e-3))
        for each in now.requests
        if each.tokens is not None and each.state == "running"
    }


def _of_model(model: ModelStatus, now: Look, rates: Mapping[str, float]) -> float | None:
    """Of all its requests; the daemon's average where not all of them may be seen."""
    seen = [each for each in now.requests if each.model == model.name]
    found = [rates[each.id] for each in seen if each.id in rates]
    if len(seen) < model.running + model.held:
        return model.tokens_per_s
    return sum(found) if found else None


def _model(model: ModelStatus, rate: float | None, clock: float) -> list[str]:
    counts = [str(model.running), str(model.held), _shown(rate)]
    return [model.name, model.sentence(clock), *counts, used(model, clock)]


def _request(request: RequestStatus, id: str, rate: float | None) -> list[str]:
    tokens = "-" if request.tokens is None else str(request.tokens)
    return [id, request.who, request.model, request.state, duration(request.age_s), tokens, _shown(rate)]


def _shown(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"
