"""`vllmctl logs`: the journal where vllmd writes into one, else what the daemon itself has kept of its engine's lines.

The journal knows more: vllmd's own lines, and those of all days. It is read by journalctl, in this process's place, so
that all its options work. It is asked where vllmctl talks to the daemon that systemd runs, which its address shows.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import click

from vllmd.address import Address, default_socket
from vllmd.ctl.client import Client
from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import model_names
from vllmd.ctl.events import read_table
from vllmd.ctl.failure import LOOK
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.number import Number
from vllmd.ctl.reach import SYSTEM_SOCKET
from vllmd.ctl.since import since as read_since
from vllmd.ctl.terminal import Terminal
from vllmd.errors import DaemonUnreachable, ExitStatus
from vllmd.routes import LOGS
from vllmd.statuses import LogLine, log_line

UNIT = "vllmd.service"
FOLLOWED_LINES = 10
"""What journalctl, too, shows of the past where the future is asked for."""

SYSTEMCTL_TIMEOUT_S = 5.0


class Wanted(NamedTuple):
    """What is to be shown."""

    follow: bool
    lines: int | None
    since: str | None
    more: tuple[str, ...]


@click.command(cls=Verb, context_settings={"ignore_unknown_options": True})
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=Number(0, whole=True), metavar="N", help="The last N lines only.")
@click.option("--since", metavar="TIME", help="From then on: '19:00', '2026-11-23 19:00', '-10min', 'today'.")
@click.option(
    "-m", "--model", metavar="NAME", shell_complete=model_names, help="Only the lines of this model's engine."
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[JOURNALCTL OPTIONS]...")
@click.pass_obj
def logs(invocation: Invocation, /, model: str | None, **wanted: Any) -> ExitStatus:
    """Show what the daemon and its engines have logged.

    Where systemd runs vllmd, this is journalctl on its unit, and other options are passed on to it. Elsewhere, and with
    -m, it is what the daemon has kept of its engine's lines: of that model, else of the default one.
    """
    asked = Wanted(**wanted)
    scope = None if model else scope_of(invocation.address(), invocation.environ, os.getuid())
    if scope is not None and has_unit(scope):
        become(["journalctl", *scope, "-u", UNIT, "-o", "cat", *journal_options(asked)])
    if asked.more:
        raise click.UsageError(f"only journalctl knows {asked.more[0]}, and there is no journal of this vllmd")
    show(invocation.client(), invocation.terminal, model, asked)
    return ExitStatus.OK


# ── the journal ──


def scope_of(address: Address, environ: Mapping[str, str], uid: int) -> list[str] | None:
    """How systemctl and journalctl are told whose vllmd is at `address`; None if no systemd's is."""
    if address == SYSTEM_SOCKET:
        return []
    return ["--user"] if address == default_socket(environ, uid) else None


def has_unit(scope: list[str]) -> bool:
    """Whether systemd knows vllmd's unit, running or not: where it does, the journal has its lines."""
    argv = ["systemctl", *scope, "show", "--property=LoadState", "--value", UNIT]
    try:
        said = subprocess.run(argv, capture_output=True, timeout=SYSTEMCTL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.stdout.strip() == b"loaded"


def journal_options(asked: Wanted) -> list[str]:
    """The same in journalctl's words; what is not known here is passed on."""
    lines = [] if asked.lines is None else ["-n", str(asked.lines)]
    since = [] if asked.since is None else [f"--since={asked.since}"]
    return [*(["-f"] if asked.follow else []), *lines, *since, *asked.more]


def become(argv: list[str]) -> None:
    """Runs `argv` in this process's place; returns if there is no such program."""
    ignored = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
    try:
        os.execvp(argv[0], argv)
    except OSError:
        signal.signal(signal.SIGPIPE, ignored)


# ── what the daemon has kept ──


def show(client: Client, terminal: Terminal, model: str | None, asked: Wanted) -> None:
    """Shows the lines of a model's engine. Raises as `Client.ask` does."""
    begin = 0.0 if asked.since is None else read_since(asked.since, time.time())
    count = FOLLOWED_LINES if asked.lines is None and asked.since is None and asked.follow else asked.lines
    wanted = {"model": model, "lines": count, "follow": 1 if asked.follow else None}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    path = f"{LOGS}?{query}" if query else LOGS
    for line in follow(client, terminal, path) if asked.follow else kept(client, path):
        if line.at >= begin:
            terminal.line(line.line)


def kept(client: Client, path: str) -> Iterator[LogLine]:
    """The lines that there are."""
    listing = client.ask("GET", path)
    try:
        yield from [log_line(each) for each in listing["lines"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise DaemonUnreachable("the daemon's log cannot be read", LOOK) from error


def follow(client: Client, terminal: Terminal, path: str) -> Iterator[LogLine]:
    """Those, and the next ones as they come."""
    with client.request("GET", path, headers={"Accept": "text/event-stream"}) as exchange:
        for event in exchange.events():
            if event.event == "line":
                yield log_line(read_table(event))
            elif event.event == "missed":
                terminal.note(f"{read_table(event).get('missed')} lines were missed")
    raise DaemonUnreachable("the daemon has closed the connection", "is it running?  vllmctl status")
