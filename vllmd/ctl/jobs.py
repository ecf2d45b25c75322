"""`vllmctl jobs`: the daemon's long work, listed and called off; and how a command waits for a piece of it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from vllmd.ctl.client import Client
from vllmd.ctl.commands import Verb
from vllmd.ctl.failure import LOOK, Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.load import say
from vllmd.ctl.status import duration
from vllmd.ctl.table import table
from vllmd.errors import DaemonUnreachable, ExitStatus, exit_status_of
from vllmd.provisions import JobState, JobStatus, job_status
from vllmd.routes import EVENTS, JOBS
from vllmd.sse import Event

HEADINGS = ("ID", "JOB", "AGE", "STATE")

TICK_S = 1.0
"""Seconds of silence after which is asked."""


@click.command(cls=Verb)
@click.option("--cancel", metavar="ID", help="Call this one off.")
@click.option("--json", "as_json", is_flag=True, help="The daemon's own JSON.")
@click.pass_obj
def jobs(invocation: Invocation, cancel: str | None, as_json: bool) -> ExitStatus:
    """List what the daemon works on by itself.

    These are models that are pulled or verified, environments that are installed, and models that are moved between
    them; also the last ones that have ended. A job goes on when whoever asked for it has left.
    """
    client = invocation.client()
    if cancel is not None:
        job = read(client.ask("DELETE", path_of(cancel))["job"])
        say(invocation, f"{job.kind} {job.subject}: {job.state if job.is_over else 'called off'}")
        return ExitStatus.OK
    listing = client.ask("GET", JOBS)
    for line in [json.dumps(listing)] if as_json else render([read(each) for each in listing["jobs"]]):
        invocation.terminal.line(line)
    return ExitStatus.OK


def path_of(id: str) -> str:
    """Where a job is. Raises Failure if that is no job's id."""
    if not id.isascii() or not id.isdigit():
        raise Failure(f"{id!r} is no job's number", "see:  vllmctl jobs", ExitStatus.USAGE)
    return f"{JOBS}/{id}"


def read(table: Any) -> JobStatus:
    """What the daemon says of a job. Raises DaemonUnreachable if it cannot be read."""
    try:
        return job_status(table)
    except (TypeError, AttributeError) as error:
        raise DaemonUnreachable("what the daemon says of a job cannot be read", LOOK) from error


def render(found: list[JobStatus]) -> list[str]:
    """The jobs in lines, under their headings."""
    return table(HEADINGS, [_row(each) for each in found], right=("AGE",))


def _row(job: JobStatus) -> list[str]:
    ended_at = time.time() if job.ended_at is None else job.ended_at
    return [job.id, f"{job.kind} {job.subject}", duration(max(0.0, ended_at - job.started_at)), job.sentence()]


def see_through(invocation: Invocation, job: JobStatus, *, as_json: bool = False) -> JobStatus:
    """Shows how a job goes on, until it has ended well; leaving does not end it.

    Args:
        as_json: every change as an object on a line of its own, instead of a line of progress.

    Raises:
        Failure: it has failed, or was called off.
    """
    terminal, last = invocation.terminal, job
    try:
        for last in follow(invocation.client(), job):
            if as_json:
                terminal.line(json.dumps(last.__dict__))
            else:
                terminal.progress(f"{last.kind} {last.subject}: {last.sentence()}")
    except KeyboardInterrupt:
        terminal.note(f"the {job.kind} goes on; to end it:  vllmctl jobs --cancel {job.id}")
        raise
    if last.state != JobState.DONE:
        reason = last.reason or f"the {last.kind} of {last.subject} was {last.state}"
        raise Failure(reason, last.hint, exit_status_of(last.code, 0))
    return last


def follow(client: Client, job: JobStatus) -> Iterator[JobStatus]:
    """The job as it is now, and whenever there is news of it, up to its end."""
    yield job
    with client.request("GET", EVENTS, headers={"Accept": "text/event-stream"}) as exchange:
        for events in exchange.blocks(tick_s=TICK_S):
            # Events begin with the jobs that run; one that is over by then is told to who asks.
            news = [each for each in map(_job_in, events) if each and each.id == job.id]
            for last in news or [read(client.ask("GET", path_of(job.id))["job"])]:
                yield last
                if last.is_over:
                    return
    raise DaemonUnreachable("the daemon has closed the connection", "is it running?  vllmctl status")


def _job_in(event: Event) -> JobStatus | None:
    if event.event != "job" or not event.has_data:
        return None
    try:
        return read(json.loads(event.data))
    except ValueError as error:
        raise Failure(f"an event of the daemon cannot be read: {event.data[:80]}", LOOK) from error
