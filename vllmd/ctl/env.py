"""`vllmctl env`: the versions of vLLM that are installed beside each other, and which of them models run in."""

import json
import time
from typing import Any
from urllib.parse import quote

import click

from vllmd.ctl.client import Client
from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.jobs import read, see_through
from vllmd.ctl.load import say
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.provisions import EnvironmentStatus, JobStatus, environment_status, size
from vllmd.routes import ENVIRONMENTS

HEADINGS = ("", "ID", "VERSION", "SIZE", "INSTALLED", "MODELS")
NAMELESS, NAMED = ("list", "install"), ("use", "remove")


@click.command(cls=Verb)
@click.argument("action", type=click.Choice((*NAMELESS, *NAMED)))
@click.argument("name", metavar="[ID]", required=False)
@click.option("--version", metavar="V", help="install: the version of vLLM; without it, the one vllmd was made with.")
@click.option(
    "--variant",
    type=click.Choice(("cuda", "cpu", "rocm")),
    help="install: what it is built for; without it, what suits the machine.",
)
@click.option("--model", metavar="NAME", help="use: for this model alone.")
@click.option("--no-block", is_flag=True, help="install, use: only ask for it; do not wait for the outcome.")
@click.option("--json", "as_json", is_flag=True, help="list: the daemon's own JSON.")
@click.pass_obj
def env(
    invocation: Invocation,
    action: str,
    name: str | None,
    version: str | None,
    variant: str | None,
    model: str | None,
    no_block: bool,
    as_json: bool,
) -> ExitStatus:
    """List, install, use and remove versions of vLLM.

    The ID of an environment is its name in the list; its version will do where only one has it. `install` builds one
    beside those that run. `use` moves models to it, one after the other and with their requests held, and back by
    itself if no token comes. `remove` takes one away that nothing runs in.
    """
    if (name is None) is not (action in NAMELESS):
        raise click.UsageError(f"`{action}` takes {'no ' if name else 'an '}ID", click.get_current_context())
    if action == "list":
        _list(invocation, as_json)
    elif action == "install":
        _install(invocation, version, variant, no_block)
    elif action == "use":
        _use(invocation, name or "", model, no_block)
    else:
        gone = _ask(invocation.client(), "DELETE", _path(name or ""), None, "id")
        say(invocation, f"{gone['id']}: removed")
    return ExitStatus.OK


def _install(invocation: Invocation, version: str | None, variant: str | None, no_block: bool) -> None:
    body = {"version": version, "variant": variant}
    answer = _ask(invocation.client(), "POST", ENVIRONMENTS, body, "job", "requirement", "reason")
    invocation.terminal.note(f"{answer['requirement']}: {answer['reason']}")
    _see_to(invocation, read(answer["job"]), f"{answer['requirement']}: installed", no_block)


def _use(invocation: Invocation, name: str, model: str | None, no_block: bool) -> None:
    answer = _ask(invocation.client(), "POST", f"{_path(name)}/use", {"model": model}, "job")
    _see_to(invocation, read(answer["job"]), f"{name}: used from now on", no_block)


def _path(name: str) -> str:
    return f"{ENVIRONMENTS}/{quote(name, safe='')}"


def _list(invocation: Invocation, as_json: bool) -> None:
    answer = _ask(invocation.client(), "GET", ENVIRONMENTS, None, "environments", "machine", "free")
    if as_json:
        invocation.terminal.line(json.dumps(answer))
        return
    for line in render([environment_status(each) for each in answer["environments"]]):
        invocation.terminal.line(line)
    machine = answer["machine"]
    suits = machine["requirement"] or f"{machine['variant']}, which needs environment.index in the configuration"
    invocation.terminal.note(f"{size(answer['free'])} free; for this machine: {suits}: {machine['reason']}")
    if machine.get("settled"):
        version = suits.partition("==")[2]
        served = f"{machine['settled']} served here first, and stays until another one is used"
        invocation.terminal.note(f"{served}:  vllmctl env install  and  vllmctl env use {version}")


def render(environments: list[EnvironmentStatus]) -> list[str]:
    """The environments in lines, the current one with a star."""
    return table(HEADINGS, [_row(each) for each in environments], right=("SIZE",))


def _row(each: EnvironmentStatus) -> list[str]:
    installed = "" if each.installed_at is None else time.strftime("%Y-%m-%d", time.localtime(each.installed_at))
    taken = "-" if each.bytes is None else size(each.bytes)
    return ["*" if each.current else "", each.id, each.version, taken, installed or "-", ", ".join(each.models) or "-"]


def _see_to(invocation: Invocation, job: JobStatus, done: str, no_block: bool) -> None:
    """Waits for the end of a job, and says what became of it."""
    if no_block:
        say(invocation, f"{job.kind} {job.subject}: asked for; follow it with:  vllmctl jobs")
        return
    see_through(invocation, job)
    say(invocation, done)


def _ask(client: Client, method: str, path: str, body: object, *keys: str) -> Any:
    """Sends a request that may take a while: an interpreter is looked for, files are removed.

    Args:
        keys: what the answer must have.

    Raises:
        DaemonUnreachable: it has not.
    """
    with client.request(method, path, body) as exchange:
        answer = exchange.json()
    if not isinstance(answer, dict) or not answer.keys() >= set(keys):
        raise DaemonUnreachable(f"the answer of {path} cannot be read", LOOK)
    return answer
