"""`vllmctl events`: what happens to the models, as it happens, one line for each change."""

import json
import time
from typing import Any

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK, Failure
from vllmd.ctl.invocation import Invocation
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.provisions import job_status
from vllmd.routes import EVENTS
from vllmd.sse import Event
from vllmd.statuses import model_status


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each event, on a line of its own.")
@click.pass_obj
def events(invocation: Invocation, as_json: bool) -> ExitStatus:
    """Follow what happens to the models.

    Begins with the present state of each, and goes on until Ctrl-C: changes of state and phase, answers that another
    engine goes on with, incidents, and the progress of jobs. If the daemon leaves, the exit status is 3.
    """
    with invocation.client().request("GET", EVENTS, headers={"Accept": "text/event-stream"}) as exchange:
        for event in exchange.events():
            if event.has_data:
                table = read_table(event)
                line = json.dumps({"event": event.event, **table}) if as_json else describe(event.event, table)
                invocation.terminal.line(line)
    raise DaemonUnreachable("the daemon has closed the connection", "is it running?  vllmctl status")


def read_table(event: Event) -> dict[str, Any]:
    """The JSON object that an event holds.

    Raises:
        Failure: it holds none.
    """
    try:
        return dict(json.loads(event.data))
    except (ValueError, TypeError) as error:
        raise Failure(f"an event of the daemon cannot be read: {event.data[:80]}", LOOK) from error


def describe(kind: str, table: dict[str, Any], now: float | None = None) -> str:
    """An event in a line; kinds that this version does not know come as they are.

    Args:
        now: Unix seconds; None for the present.
    """
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    try:
        return f"{at}  {_sentence(kind, table)}"
    except (TypeError, KeyError) as error:
        raise Failure(f"an event of the daemon cannot be read: {json.dumps(table)[:80]}", LOOK) from error


def _sentence(kind: str, table: dict[str, Any]) -> str:
    if kind == "model":
        status = model_status(table)
        process = f" (generation {status.generation}, pid {status.pid})" if status.pid else ""
        return f"{status.name}: {status.summary}{process}"
    if kind == "job":
        job = job_status(table)
        return f"{job.kind} {job.subject}: {job.sentence()}"
    if kind == "continued":
        return f"{table['model']}: generation {table['generation']} goes on with request {table['request']}"
    if kind == "incident":
        return f"{table['model']}: generation {table['generation']} ended: {table['cause']} (incident {table['id']})"
    if kind == "missed":
        return f"{table['missed']} events were missed"
    return f"{kind}: {json.dumps(table)}"
