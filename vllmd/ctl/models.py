"""`vllmctl models`: the names that `-m` takes."""

import json

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK
from vllmd.ctl.invocation import Invocation
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.routes import MODELS


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="The list as OpenAI's API has it.")
@click.pass_obj
def models(invocation: Invocation, as_json: bool) -> ExitStatus:
    """List the models.

    Every configured model is listed, one name a line, whether it is in memory or not.
    """
    listing = invocation.client().ask("GET", MODELS)
    try:
        lines = [json.dumps(listing)] if as_json else [str(each["id"]) for each in listing["data"]]
    except (TypeError, KeyError) as error:
        raise DaemonUnreachable("the list of models cannot be read", LOOK) from error
    for line in lines:
        invocation.terminal.line(line)
    return ExitStatus.OK
