"""`vllmctl status`: what the daemon and its models are doing, for eyes, for scripts, and as an exit status."""

import json
import time

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import Failure, exit_status
from vllmd.ctl.fits import gib
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.which import read_status
from vllmd.errors import DaemonUnreachable, ExitStatus, VllmdError
from vllmd.routes import STATUS
from vllmd.statuses import ModelStatus, Status

LOADS = {"demand": "on demand", "manual": "by hand"}
"""When a model comes into memory, where that is not when vllmd starts."""


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="The daemon's own JSON.")
@click.pass_obj
def status(invocation: Invocation, as_json: bool) -> ExitStatus:
    """Show what the daemon and its models are doing.

    The exit status is 0 if the default model is ready, or a request brings it into memory and nothing is wrong with it;
    3 if it is neither, 4 if that cannot be told.
    """
    try:
        table = invocation.client().ask("GET", STATUS)
        found = read_status(table)
    except DaemonUnreachable:
        raise
    except VllmdError as error:
        if exit_status(error) is ExitStatus.USAGE:
            raise
        raise Failure(error.message, error.hint, ExitStatus.DENIED) from error
    lines = [json.dumps(table)] if as_json else render(found, time.time())
    invocation.terminal.line("\n".join(lines))
    is_available = found.state == "ready" or any(each.default and each.is_available for each in found.models)
    return ExitStatus.OK if is_available else ExitStatus.NOT_RUNNING


def render(found: Status, now: float) -> list[str]:
    """The status in lines.

    Args:
        now: Unix seconds.
    """
    lines = [line for model in found.models for line in _model(model, now)]
    places = ", ".join(found.addresses) or "no address"
    return [*lines, f"vllmd {found.version}, up {duration(now - found.since)}, at {places}"]


def _model(model: ModelStatus, now: float) -> list[str]:
    rows = {
        "model": model.model,
        "since": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(model.since))} ({duration(now - model.since)})",
        "engine": _engine(model),
        "memory": f"{gib(model.claim_bytes)} of each device" if model.claim_bytes else "",
        "loaded": LOADS.get(model.load, ""),
        "requests": _requests(model),
        "last used": "" if model.used_at is None else used(model, now),
        "last failure": model.reason,
        "": model.hint,
    }
    title = f"{model.name}: {model.sentence(now)}{'  (default)' if model.default else ''}"
    return [title, *(f"    {name:<14}{value}" for name, value in rows.items() if value)]


def _requests(model: ModelStatus) -> str:
    rate = "" if model.tokens_per_s is None else f", {model.tokens_per_s:.1f} tok/s"
    return f"{model.running} running, {model.held} held{rate}"


def _engine(model: ModelStatus) -> str:
    process = f"pid {model.pid}, " if model.pid else ""
    return f"{process}generation {model.generation}, restarts {model.restarts}" if model.generation else ""


def used(model: ModelStatus, now: float) -> str:
    """When a model was last of use: `now`, `3 min ago`, or `-` if nobody knows.

    Args:
        now: Unix seconds.
    """
    if model.running:
        return "now"
    return "-" if model.used_at is None else f"{duration(now - model.used_at, units=1)} ago"


def duration(seconds: float, units: int = 2) -> str:
    """A length of time in its largest units: `3 d 4 h`, `41 s`."""
    left, words = max(0, int(seconds)), list[str]()
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or words or size == 1:
            words.append(f"{count} {name}")
    return " ".join(words[:units])
