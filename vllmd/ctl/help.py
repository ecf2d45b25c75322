"""`vllmctl help`: the same as `--help`, for whoever has learnt it so elsewhere."""

import click

from vllmd.ctl.commands import VERBS, Verb, no_such_command
from vllmd.ctl.invocation import Invocation
from vllmd.errors import ExitStatus


def verbs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The verbs that begin so."""
    return [each for each in VERBS if each.startswith(incomplete)]


@click.command(cls=Verb)
@click.argument("command", required=False, shell_complete=verbs)
@click.pass_context
def help(context: click.Context, command: str | None) -> ExitStatus:
    """Show how vllmctl, or one of its commands, is used."""
    above = context.find_root()
    assert isinstance(above.command, click.Group), "it is a verb of vllmctl"
    wanted = above.command if command is None else above.command.get_command(above, command)
    if wanted is None:
        raise no_such_command(str(command))
    text = above.get_help() if command is None else click.Context(wanted, info_name=command, parent=above).get_help()
    context.ensure_object(Invocation).terminal.line(text)
    return ExitStatus.OK
