"""`vllmctl pull`, `verify` and `rm`: the models on the daemon's disk."""

import json
from typing import Any
from urllib.parse import quote

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import model_names
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.jobs import read, see_through
from vllmd.ctl.load import say
from vllmd.errors import ExitStatus
from vllmd.provisions import JobStatus, size
from vllmd.routes import LOCAL, PRUNE, PULL, VERIFY

name_argument = click.argument("name", shell_complete=model_names)
json_option = click.option("--json", "as_json", is_flag=True, help="The job as JSON, a line for each change.")
detach_option = click.option("--detach", is_flag=True, help="Only begin; do not wait for the end.")


@click.command(cls=Verb)
@name_argument
@click.option("--revision", metavar="REV", help="A branch, tag or commit; without it, the hub's default.")
@json_option
@detach_option
@click.pass_obj
def pull(invocation: Invocation, name: str, revision: str | None, as_json: bool, detach: bool) -> ExitStatus:
    """Fetch a model from the hub.

    NAME is a configured model, or a name on the hub such as Qwen/Qwen2-7B-Instruct. What is there already is not
    fetched again, and an interrupted pull goes on. The model stays at the commit that it has now until it is pulled
    again; engines that run keep theirs until they are restarted.
    """
    return order(invocation, PULL, {"model": name, "revision": revision}, as_json=as_json, detach=detach)


@click.command(cls=Verb)
@name_argument
@click.option("--revision", metavar="REV", help="The branch, tag or commit that was pulled.")
@click.option("--repair", is_flag=True, help="Fetch anew what is broken.")
@json_option
@detach_option
@click.pass_obj
def verify(
    invocation: Invocation, name: str, revision: str | None, repair: bool, as_json: bool, detach: bool
) -> ExitStatus:
    """Compare a model on the disk with the hub's digests.

    Says which files are broken, and ends with 1 if any are.
    """
    body = {"model": name, "revision": revision, "repair": repair}
    return order(invocation, VERIFY, body, as_json=as_json, detach=detach)


@click.command(cls=Verb)
@click.argument("name", required=False, shell_complete=model_names)
@click.option("--unused", is_flag=True, help="Instead of a NAME: what was pulled and has made way for a newer commit.")
@click.pass_obj
def rm(invocation: Invocation, name: str | None, unused: bool) -> ExitStatus:
    """Take a model off the disk.

    With NAME@REVISION only that one, or the commit that begins so. A model that is loaded is not removed. `--unused`
    leaves alone what an engine is made of, what a model is pinned to, and what another program has a name for.
    """
    if (name is None) is not unused:
        raise click.UsageError("give a NAME, or --unused", click.get_current_context())
    if name is None:
        answer = invocation.client().ask("POST", PRUNE, None)
        for each in answer["removed"]:
            say(invocation, f"{each}: removed")
        say(invocation, f"{size(int(answer['freed']))} freed")
        return ExitStatus.OK
    answer = invocation.client().ask("DELETE", f"{LOCAL}/{quote(name, safe='')}", None)
    say(invocation, f"{name}: removed, {size(int(answer['freed']))} freed")
    return ExitStatus.OK


def order(invocation: Invocation, path: str, body: dict[str, Any], *, as_json: bool, detach: bool) -> ExitStatus:
    """Has a job begun, and sees it through. Raises what the daemon says of it."""
    given = {key: value for key, value in body.items() if value is not None}
    with invocation.client().request("POST", path, given) as exchange:
        job = read(exchange.json()["job"])
    if detach:
        line = json.dumps(job.__dict__) if as_json else f"{job.kind} {job.subject}: job {job.id}; see:  vllmctl jobs"
        invocation.terminal.line(line)
        return ExitStatus.OK
    done = see_through(invocation, job, as_json=as_json)
    if not as_json:
        say(invocation, _outcome(done))
    return ExitStatus.OK


def _outcome(job: JobStatus) -> str:
    much = "" if job.total is None else f", {size(job.total)}"
    return f"{job.subject}: {'whole' if job.kind == 'verify' else 'here'}{much}"
