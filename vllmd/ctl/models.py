"""`vllmctl models`: the names that `-m` takes, and what lies on the disk."""

import json
from typing import Any

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.provisions import LocalModel, local_model, size
from vllmd.routes import LOCAL, MODELS

HEADINGS = ("MODEL", "COMMIT", "SIZE", "WHOLE", "USED BY")

SHOWN_CHARACTERS = 12
"""Of a commit."""


@click.command(cls=Verb)
@click.option("--local", "is_local", is_flag=True, help="What the daemon's disk holds of the hub's models.")
@click.option("--json", "as_json", is_flag=True, help="The list as OpenAI's API has it; of --local, the daemon's own.")
@click.pass_obj
def models(invocation: Invocation, is_local: bool, as_json: bool) -> ExitStatus:
    """List the models.

    Every configured model is listed, one name a line, whether it is in memory or not.
    """
    listing = invocation.client().ask("GET", LOCAL if is_local else MODELS)
    try:
        lines = [json.dumps(listing)] if as_json else (_stored if is_local else _names)(listing)
    except (TypeError, KeyError, AttributeError) as error:
        raise DaemonUnreachable("the list of models cannot be read", LOOK) from error
    for line in lines:
        invocation.terminal.line(line)
    return ExitStatus.OK


def _names(listing: Any) -> list[str]:
    return [str(each["id"]) for each in listing["data"]]


def _stored(listing: Any) -> list[str]:
    return table(HEADINGS, [_row(local_model(each)) for each in listing["models"]], right=("SIZE",))


def _row(model: LocalModel) -> list[str]:
    names = [f"{model.repo}@{each}" for each in model.revisions] or [model.repo]
    whole = {True: "yes", False: "no", None: "-"}[model.complete]
    if model.complete is False and model.total:
        whole = f"{100 * model.size // model.total} %"
    return [", ".join(names), model.commit[:SHOWN_CHARACTERS], size(model.size), whole, ", ".join(model.used_by) or "-"]
