"""`vllmctl plan` and `reload`: what has changed in the configuration file, and putting it in force. And, by
`vllmctl plan MODEL`, whether a model fits."""

import json
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import click

from vllmd import provisions, routes, statuses
from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK
from vllmd.ctl.fits import render
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.load import model_argument, say
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.settings import Applies
from vllmd.statuses import Change

RESTART = "systemctl restart vllmd"

json_option = click.option("--json", "as_json", is_flag=True, help="The daemon's own JSON.")
length_option = click.option(
    "--max-model-len",
    "length",
    metavar="N",
    type=click.IntRange(1, 999_999_999),
    help="Of MODEL: as if this were its longest sequence, in tokens.",
)


@click.command(cls=Verb)
@model_argument
@length_option
@json_option
@click.pass_obj
def plan(invocation: Invocation, model: str | None, length: int | None, as_json: bool) -> ExitStatus:
    """Show what a reload would change, or whether MODEL fits.

    Without MODEL: what a reload of the configuration would change. A file with mistakes is an error, which lists them;
    the exit status is 2 then. With MODEL: the memory that its engine needs for weights and KV cache, what there is, and
    what would fit; the exit status is 1 if it does not. Nothing is changed either way.
    """
    if model is not None:
        return _fit(invocation, model, length, as_json)
    if length is not None:
        raise click.UsageError("--max-model-len goes with a MODEL")
    return _tell(invocation, "GET", routes.PLAN, as_json)


def _fit(invocation: Invocation, model: str, length: int | None, as_json: bool) -> ExitStatus:
    query = f"?max_model_len={length}" if length else ""
    answer = invocation.client().ask("GET", f"/api/models/{quote(model, safe='')}/fit{query}")
    try:
        fit = provisions.fit(answer)
        shown = [json.dumps(answer)] if as_json else list(render(fit))
    except (TypeError, AttributeError, ValueError) as error:
        raise DaemonUnreachable("the sum cannot be read", LOOK) from error
    for line in shown:
        say(invocation, line)
    return ExitStatus.ERROR if fit.verdict == "no" else ExitStatus.OK


@click.command(cls=Verb)
@json_option
@click.pass_obj
def reload(invocation: Invocation, as_json: bool) -> ExitStatus:
    """Read the configuration anew.

    What can be changed at once is. Models whose engines have to be started differently get new ones, when their running
    requests have ended; this is not waited for (see `vllmctl status`, `vllmctl wait`). What takes a new vllmd is named:
    systemctl restart vllmd keeps the engines. A file with mistakes changes nothing; they are listed, and the exit
    status is 2.
    """
    return _tell(invocation, "POST", routes.RELOAD, as_json)


def _tell(invocation: Invocation, method: str, path: str, as_json: bool) -> ExitStatus:
    answer = invocation.client().ask(method, path)
    try:
        changes = [statuses.change(each) for each in answer["changes"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise DaemonUnreachable("the changes cannot be read", LOOK) from error
    if as_json:
        invocation.terminal.line(json.dumps(answer))
    else:
        for line in lines(changes):
            say(invocation, line)
    return ExitStatus.OK


def lines(changes: Sequence[Change]) -> Iterator[str]:
    """The changes as they are shown: under each heading those that apply together."""
    if not changes:
        yield "nothing has changed"
    engines = sorted({", ".join(each.models) for each in changes if each.applies == Applies.ENGINE})
    groups = {"at once": [each for each in changes if each.applies not in (Applies.ENGINE, Applies.DAEMON)]}
    for models in engines:
        groups[f"with a new engine: {models}"] = [
            each for each in changes if each.applies == Applies.ENGINE and ", ".join(each.models) == models
        ]
    groups[f"only after:  {RESTART}   (which keeps the engines)"] = [
        each for each in changes if each.applies == Applies.DAEMON
    ]
    for heading, found in groups.items():
        if found:
            yield heading
            yield from (f"    {each.key}: {each.before or 'nothing'} → {each.after or 'nothing'}" for each in found)
