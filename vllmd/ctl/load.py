"""`vllmctl load`, `unload` and `restart`: what is in memory. (The daemon itself is systemctl's to start and stop.)"""

from contextlib import suppress
from urllib.parse import quote

import click

from vllmd.ctl.client import Client, Exchange
from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import model_names
from vllmd.ctl.failure import Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.terminal import Terminal
from vllmd.ctl.wait import follow
from vllmd.ctl.which import find
from vllmd.errors import ExitStatus, VllmdError
from vllmd.statuses import model_status

OUTCOMES = {"load": "ready", "restart": "ready", "unload": "stopped"}
"""The state in which each verb leaves the model."""

model_argument = click.argument("model", required=False, shell_complete=model_names)
no_block_option = click.option("--no-block", is_flag=True, help="Only ask for it; do not wait for the outcome.")


@click.command(cls=Verb)
@model_argument
@no_block_option
@click.pass_obj
def load(invocation: Invocation, model: str | None, no_block: bool) -> ExitStatus:
    """Put a model into memory.

    Waits until it is ready or has failed, and says which. Without MODEL: the default one.
    """
    return change("load", invocation, model, no_block)


@click.command(cls=Verb)
@model_argument
@no_block_option
@click.pass_obj
def unload(invocation: Invocation, model: str | None, no_block: bool) -> ExitStatus:
    """Take a model out of memory.

    Waits until its engine is gone. Without MODEL: the default one.
    """
    return change("unload", invocation, model, no_block)


@click.command(cls=Verb)
@model_argument
@no_block_option
@click.pass_obj
def restart(invocation: Invocation, model: str | None, no_block: bool) -> ExitStatus:
    """Give a model a fresh engine.

    Waits until it is ready or has failed, and says which. Without MODEL: the default one.
    """
    return change("restart", invocation, model, no_block)


def change(verb: str, invocation: Invocation, model: str | None, no_block: bool) -> ExitStatus:
    """Asks the daemon to load, unload or restart a model, and says what became of it.

    Raises:
        VllmdError: it was refused, or the model is not in the state that was asked for.
    """
    client, terminal = invocation.client(), invocation.terminal
    name = model or find(client.status(), None).name
    path = f"/api/models/{quote(name, safe='')}/{verb}"
    if no_block:
        client.ask("POST", path)
        say(invocation, f"{name}: {verb} asked for; follow it with:  vllmctl status")
        return ExitStatus.OK
    terminal.progress(f"{verb} {name} ...")
    with client.request("POST", f"{path}?wait=1") as order:
        if terminal.shows_progress:
            show_progress(client, terminal, name, order)
        outcome = model_status(order.json())
    if outcome.state != OUTCOMES[verb]:
        raise Failure(f"{name}: {outcome.sentence()}", outcome.hint)
    say(invocation, f"{name}: {outcome.sentence()}")
    return ExitStatus.OK


def show_progress(client: Client, terminal: Terminal, name: str, order: Exchange) -> None:
    """Shows how the model is doing until the order is answered. The order alone decides what is told in the end."""
    with suppress(VllmdError):
        for status in follow(client, name, until=order):
            terminal.progress(f"{name}: {status.sentence()}")


def say(invocation: Invocation, text: str) -> None:
    """Tells the outcome on stdout, unless the user wants to hear of errors only."""
    if not invocation.terminal.quiet:
        invocation.terminal.line(text)
