"""`vllmctl incidents`: why engines died or hung, in a table, and one of them as a whole."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import incident_ids, model_names
from vllmd.ctl.failure import Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.number import Number
from vllmd.ctl.ps import shortened
from vllmd.ctl.status import duration
from vllmd.ctl.table import table
from vllmd.ctl.terminal import Terminal
from vllmd.ctl.width import fit
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.incident import Incident, IncidentReport, ProcessFacts, read
from vllmd.routes import INCIDENTS

T = TypeVar("T")

HEADINGS = ("ID", "WHEN", "MODEL", "GENERATION", "CAUSE", "REASON")
LAST = "last"
INDENT = " " * 4

STATES = {"R": "running", "S": "sleeping", "D": "waiting for the disk", "T": "stopped", "Z": "dead"}
"""Those of proc(5), in words."""


@click.command(cls=Verb)
@click.argument("id", required=False, shell_complete=incident_ids)
@click.option("-m", "--model", metavar="NAME", shell_complete=model_names, help="Only those of this model.")
@click.option("-n", "--limit", type=Number(0, whole=True), metavar="N", help="The newest N only.")
@click.option("--json", "as_json", is_flag=True, help="The daemon's own JSON.")
@click.pass_obj
def incidents(
    invocation: Invocation, id: str | None, model: str | None, limit: int | None, as_json: bool
) -> ExitStatus:
    """Show why engines died or hung.

    With an ID, of which the beginning is enough, or `last`: all that is known of that one, its verdict first, then
    facts, then what the engine printed last. Without: a table of all, the newest first.
    """
    client, terminal = invocation.client(), invocation.terminal
    listing = client.ask("GET", _path(model, 1 if id == LAST else limit))
    found = read_list(listing)
    if id is None:
        lines = [json.dumps(listing)] if as_json else render_list(found, _columns(terminal))
    else:
        report = client.ask("GET", f"{INCIDENTS}/{quote(choose(id, found), safe='')}")
        lines = [json.dumps(report)] if as_json else render(_read(IncidentReport, report), time.time())
    for line in lines:
        terminal.line(line)
    return ExitStatus.OK


def _path(model: str | None, limit: int | None) -> str:
    wanted = {"model": model, "limit": limit}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    return f"{INCIDENTS}?{query}" if query else INCIDENTS


def _columns(terminal: Terminal) -> int | None:
    """How much of a line can be seen; None for all of it."""
    return terminal.stdout.columns() if terminal.stdout.is_tty else None


def read_list(listing: Any) -> list[Incident]:
    """What `GET /api/incidents` says. Raises DaemonUnreachable if it cannot be read."""
    entries = listing.get("incidents") if isinstance(listing, dict) else None
    return [_read(Incident, each) for each in (entries if isinstance(entries, list) else [None])]


def _read(kind: type[T], value: Any) -> T:
    try:
        return read(kind, value)
    except ValueError as error:
        hint = "compare:  vllmd --version; vllmctl --version"
        raise DaemonUnreachable("what the daemon says of incidents cannot be read", hint) from error


def choose(beginning: str, found: Sequence[Incident]) -> str:
    """The id that is meant by its beginning, or by `last`.

    Raises:
        Failure: none begins so, or several do.
    """
    ids = [each.id for each in found]
    if beginning == LAST and ids:
        return ids[0]
    matching = [beginning] if beginning in ids else [each for each in ids if beginning and each.startswith(beginning)]
    if not ids:
        raise Failure("no incident is known: no engine has died or hung", "see:  vllmctl status")
    if not matching:
        raise Failure(f"no incident begins with {beginning!r}", "see:  vllmctl incidents")
    if len(matching) > 1:
        raise Failure(f"{len(matching)} incidents begin with {beginning!r}", "\n".join(matching))
    return matching[0]


# ── for eyes ──


def render_list(found: Sequence[Incident], columns: int | None = None) -> list[str]:
    """The incidents in lines, under their headings.

    Args:
        columns: longer lines are cut off; None for never.
    """
    short = shortened([each.id for each in found])
    lines = table(HEADINGS, [_row(each, short[each.id]) for each in found], right=("GENERATION",))
    return lines if columns is None else [fit(line, columns) for line in lines]


def _row(incident: Incident, id: str) -> list[str]:
    return [id, _when(incident.at), incident.model, str(incident.generation), incident.cause, incident.reason]


def _when(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, OSError, ValueError):  # nobody's clock says that
        return "?"


def render(report: IncidentReport, now: float) -> list[str]:
    """One incident in lines: the verdict, the facts, the last words.

    Args:
        now: Unix seconds.
    """
    verdict = [f"{report.model}: {report.reason}", *([f"{INDENT}{report.hint}"] if report.hint else [])]
    facts = [f"{INDENT}{name:<14}{value}" for name, value in _facts(report, now) if value]
    stacks = [line for each in report.processes for line in _stack(each)]
    last = [f"the last {len(report.lines)} lines of its engine:", *report.lines] if report.lines else []
    return [line for part in (verdict, facts, stacks, last) if part for line in ("", *part)][1:]


def _facts(report: IncidentReport, now: float) -> Iterator[tuple[str, str]]:
    served = "had served" if report.was_ready else "had not served yet"
    yield "incident", report.id
    yield "when", f"{_when(report.at)} ({duration(now - report.at)} ago)"
    yield "engine", f"generation {report.generation}, lived {duration(report.lived_s)}, {served}"
    yield "cause", f"{report.cause}{'; trying again cannot help' if report.permanent else ''}"
    yield "versions", _versions(report)
    yield "configuration", report.config_digest
    for number, line in enumerate(report.gpus):
        yield ("" if number else "GPUs"), line
    for number, each in enumerate(report.processes):
        yield ("" if number else "processes"), _process(each)


def _versions(report: IncidentReport) -> str:
    known = report.versions
    named = {
        "vllmd": known.vllmd,
        "vLLM": known.vllm,
        "Python": known.python,
        "Linux": known.kernel,
        "GPU driver": known.driver,
    }
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _process(process: ProcessFacts) -> str:
    waits = f", waits in {process.waits_in}" if process.waits_in else ""
    state = STATES.get(process.state, process.state)
    return f"{process.name} ({process.pid}): {state}, {process.cpu_s:.1f} s of CPU, {process.rss_mib} MiB{waits}"


def _stack(process: ProcessFacts) -> Iterator[str]:
    if process.stack:
        yield f"{INDENT}{process.name} ({process.pid}):"
        yield from (f"{INDENT}{INDENT}{line}" for line in process.stack.splitlines())
