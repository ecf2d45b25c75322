"""One run of vllmctl: the group of verbs, and what errors become: a message on stderr and an exit status.

click's own `main` is not used: it would make a 1 of Ctrl-C and of a reader that has left.
"""

import click

from vllmd import __version__
from vllmd.ctl.commands import COMPLETE_VARIABLE, Verbs
from vllmd.ctl.failure import exit_status, wording
from vllmd.ctl.invocation import Invocation
from vllmd.errors import ExitStatus, VllmdError


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VLLMCTL"})
@click.version_option(__version__, message="vllmctl %(version)s")
def vllmctl() -> None:
    """Talk to vllmd, the daemon that serves models with vLLM."""


def run(arguments: list[str], invocation: Invocation) -> int:
    """Runs one command line.

    Returns:
        The exit status, after errors were shown.

    Raises:
        BrokenPipeError: nobody reads stdout any more.
        KeyboardInterrupt: Ctrl-C.
    """
    if instruction := invocation.environ.get(COMPLETE_VARIABLE):
        return _complete(invocation, instruction)
    try:
        with vllmctl.make_context("vllmctl", arguments, obj=invocation) as context:
            status = int(vllmctl.invoke(context) or ExitStatus.OK)
            invocation.terminal.settle()
            return status
    except VllmdError as error:
        invocation.terminal.error(wording(error), error.hint)
        return exit_status(error)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitStatus.USAGE
    except click.ClickException as error:
        invocation.terminal.error(*_usage(error))
        return ExitStatus.USAGE
    except BrokenPipeError:
        raise
    except OSError as error:  # the help and the version are written by click itself
        invocation.terminal.stdout.abandon()
        invocation.terminal.error(f"input or output failed: {error.strerror}")
        return ExitStatus.ERROR


def _complete(invocation: Invocation, instruction: str) -> int:
    """A shell asks what may come next on the command line."""
    from vllmd.ctl.completion import answer

    invocation.terminal.quiet = True
    return answer(vllmctl, invocation, instruction)


def _usage(error: click.ClickException) -> tuple[str, str]:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "vllmctl"
    return _complaint(error), f"see:  {path} --help"


def _complaint(error: click.ClickException) -> str:
    """What is wrong, and with which option."""
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param:
        names = error.param.opts if isinstance(error.param, click.Option) else [error.param.human_readable_name]
        return f"{max(names, key=len)}: {error.message.rstrip('.')}"
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]
