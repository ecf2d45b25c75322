"""`vllmctl completion`: the script that a shell reads once, and the answers that it asks vllmctl for at each tab.

click does both. Only the script is printed here without click's look at the version of the bash that happens to be on
the path, and nothing that goes wrong at a tab is ever said.
"""

from contextlib import suppress

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from vllmd.ctl.commands import COMPLETE_VARIABLE, Verb
from vllmd.ctl.invocation import Invocation
from vllmd.errors import ExitStatus


class Fish(FishComplete):
    """click's, whose script would cut explanations and names at their first comma."""

    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


COMPLETERS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": Fish}
SHELLS = tuple(COMPLETERS)


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def completion(invocation: Invocation, shell: str) -> ExitStatus:
    """Print the script that completes vllmctl in a shell.

    For this session:  eval "$(vllmctl completion bash)"
    """
    invocation.terminal.line(script(shell).rstrip("\n"))
    return ExitStatus.OK


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    return ShellComplete.source(_completer(click.Command("vllmctl"), None, shell)).lstrip("\n")


def answer(cli: click.Command, invocation: Invocation, instruction: str) -> int:
    """Prints what the shell may complete.

    Args:
        cli: the whole command line.
        instruction: `bash_complete`, as the script sets it.
    """
    shell, _, verb = instruction.partition("_")
    if shell in SHELLS and verb == "complete":
        with suppress(Exception):
            if found := _completer(cli, invocation, shell).complete():
                invocation.terminal.line(found)
    return ExitStatus.OK


def _completer(cli: click.Command, invocation: Invocation | None, shell: str) -> ShellComplete:
    return COMPLETERS[shell](cli, {"obj": invocation}, "vllmctl", COMPLETE_VARIABLE)
