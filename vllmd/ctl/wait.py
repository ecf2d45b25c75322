"""`vllmctl wait`: block until a model is ready, for units and scripts.

It may be started before the daemon: one that cannot be reached yet is tried again, with pauses, since nothing announces
a socket. From then on nothing is asked twice: `/api/events` begins with the present state and tells every change.
"""

import json
import time
from collections.abc import Iterator

import click

from vllmd.ctl.client import ANSWER_TIMEOUT_S, Client, Exchange
from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import model_names
from vllmd.ctl.failure import LOOK, Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.number import Number
from vllmd.ctl.which import find
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.routes import EVENTS
from vllmd.sse import Event
from vllmd.statuses import ModelStatus, model_status

PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 1.0
"""Seconds between two tries to reach a daemon that is not there; they double."""

TICK_S = 1.0
"""Seconds after which a state is told anew, since what is left of it has changed."""

News = ModelStatus | DaemonUnreachable


@click.command(cls=Verb)
@click.argument("model", required=False, shell_complete=model_names)
@click.option(
    "--timeout",
    "timeout_s",
    type=Number(0.001),
    metavar="SECONDS",
    help="Give up after so long; without it, never.",
)
@click.pass_obj
def wait(invocation: Invocation, model: str | None, timeout_s: float | None) -> ExitStatus:
    """Wait until a model is ready.

    Also waits for a daemon that is not there yet. One that is out of memory until a request brings it in counts as
    ready; one on its way in or out is waited for. Ends with 1 if the model has failed. Without MODEL: the default one.
    """
    last = "nothing was heard of it"
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for news in watch(invocation.client(), model, deadline):
        if isinstance(news, ModelStatus) and news.is_available and not news.is_passing:
            return ExitStatus.OK
        if isinstance(news, ModelStatus) and news.state == "failed":
            raise Failure(f"{news.name} {news.sentence()}", news.hint or LOOK)
        last = describe(news)
        invocation.terminal.progress(f"waiting for {last}")
    raise Failure(f"not ready after {timeout_s:g} s: {last}", LOOK, ExitStatus.TIMEOUT)


def describe(news: News) -> str:
    """News in a few words."""
    return f"{news.name}: {news.sentence()}" if isinstance(news, ModelStatus) else f"vllmd: {news.message}"


def watch(client: Client, model: str | None, deadline: float | None) -> Iterator[News]:
    """The model's states, and the vain tries to learn of them, until the deadline.

    Args:
        model: its name; None for the default one.
        deadline: in seconds of `time.monotonic`; None for never.

    Raises:
        VllmdError: trying again would not help: no such model, not allowed.
    """
    pause_s = PAUSE_MIN_S
    while _left_s(deadline) > 0:
        try:
            name = find(client.status(min(ANSWER_TIMEOUT_S, _left_s(deadline))), model).name
            for status in follow(client, name, deadline):
                pause_s = PAUSE_MIN_S
                yield status
        except DaemonUnreachable as error:
            yield error
        time.sleep(min(pause_s, max(0.0, _left_s(deadline))))
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


def follow(
    client: Client, name: str, deadline: float | None = None, until: Exchange | None = None
) -> Iterator[ModelStatus]:
    """One connection's worth of states: the present one, every change, and the same one anew each second.

    Ends when the connection does, and when changes were missed: a new connection begins with the present state.

    Args:
        deadline: in seconds of `time.monotonic`; None for never.
        until: ends them, too, as soon as this one is answered.
    """
    last = None
    with client.request("GET", EVENTS, headers={"Accept": "text/event-stream"}, deadline=deadline) as exchange:
        for events in exchange.blocks(until, TICK_S):
            for event in events:
                if event.event == "missed":
                    return
                if (status := _read(event)) and status.name == name:
                    last = status
                    yield last
            if last and not events:
                yield last


def _read(event: Event) -> ModelStatus | None:
    """The state that an event tells of, if it tells of one."""
    if event.event != "model" or not event.has_data:
        return None
    try:
        return model_status(json.loads(event.data))
    except (ValueError, TypeError, AttributeError) as error:
        raise Failure(f"an event of the daemon cannot be read: {event.data[:80]}", LOOK) from error


def _left_s(deadline: float | None) -> float:
    return float("inf") if deadline is None else deadline - time.monotonic()
