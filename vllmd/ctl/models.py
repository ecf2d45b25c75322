"""`vllmctl models`: those that `-m` takes, and what lies on the disk."""

import json
import time
from typing import Any

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK
from vllmd.ctl.fits import gib
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.status import used
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.provisions import LocalModel, local_model, size
from vllmd.routes import LOCAL, MODELS, STATUS
from vllmd.statuses import Status

SERVED = ("MODEL", "STATE", "LOAD", "USED", "MEMORY")
STORED = ("MODEL", "COMMIT", "SIZE", "WHOLE", "USED BY")

SHOWN_CHARACTERS = 12
"""Of a commit."""


@click.command(cls=Verb)
@click.option("--local", "is_local", is_flag=True, help="What the daemon's disk holds of the hub's models.")
@click.option("--json", "as_json", is_flag=True, help="The list as OpenAI's API has it; of --local, the daemon's own.")
@click.pass_obj
def models(invocation: Invocation, is_local: bool, as_json: bool) -> ExitStatus:
    """List the models.

    Every configured model is listed, whether it is in memory or not: what it does, when it is loaded (at the start of
    vllmd, on demand, by hand), when its last request ended, and what it takes of each device now.
    """
    path = LOCAL if is_local else MODELS if as_json else STATUS
    listing = invocation.client().ask("GET", path)
    try:
        lines = [json.dumps(listing)] if as_json else (_stored if is_local else _served)(listing)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DaemonUnreachable("the list of models cannot be read", LOOK) from error
    for line in lines:
        invocation.terminal.line(line)
    return ExitStatus.OK


def _served(listing: Any) -> list[str]:
    now = time.time()
    rows = [
        [each.name, each.sentence(now), each.load, used(each, now), gib(each.claim_bytes) if each.claim_bytes else "-"]
        for each in Status.from_json(listing).models
    ]
    return table(SERVED, rows, right=("MEMORY",))


def _stored(listing: Any) -> list[str]:
    return table(STORED, [_row(local_model(each)) for each in listing["models"]], right=("SIZE",))


def _row(model: LocalModel) -> list[str]:
    names = [f"{model.repo}@{each}" for each in model.revisions] or [model.repo]
    whole = {True: "yes", False: "no", None: "-"}[model.complete]
    if model.complete is False and model.total:
        whole = f"{100 * model.size // model.total} %"
    return [", ".join(names), model.commit[:SHOWN_CHARACTERS], size(model.size), whole, ", ".join(model.used_by) or "-"]
