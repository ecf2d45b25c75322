"""The verbs: which there are, where each is found, and the options that all of them share.

A verb's module is imported when the verb is used and never for the list of verbs. A new verb is a file with a click
command of that name in it, and a line in `VERBS`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from vllmd.ctl import interrupt
from vllmd.ctl.failure import Failure
from vllmd.ctl.invocation import Invocation
from vllmd.errors import ExitStatus

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VERBS = {
    "chat": ("vllmd.ctl.chat", "Ask the model and print its answer."),
    "status": ("vllmd.ctl.status", "Show what the daemon and its models are doing."),
    "wait": ("vllmd.ctl.wait", "Wait until a model is ready."),
    "models": ("vllmd.ctl.models", "List the models."),
    "pull": ("vllmd.ctl.pull", "Fetch a model from the hub."),
    "verify": ("vllmd.ctl.pull", "Compare a model on the disk with the hub's digests."),
    "rm": ("vllmd.ctl.pull", "Take a model off the disk."),
    "jobs": ("vllmd.ctl.jobs", "List what the daemon works on by itself."),
    "load": ("vllmd.ctl.load", "Put a model into memory."),
    "unload": ("vllmd.ctl.load", "Take a model out of memory."),
    "restart": ("vllmd.ctl.load", "Give a model a fresh engine."),
    "env": ("vllmd.ctl.env", "List, install, use and remove versions of vLLM."),
    "plan": ("vllmd.ctl.plan", "Show what a reload would change, or whether MODEL fits."),
    "reload": ("vllmd.ctl.plan", "Read the configuration anew."),
    "ps": ("vllmd.ctl.ps", "List the requests that are under way."),
    "cancel": ("vllmd.ctl.ps", "End a request."),
    "top": ("vllmd.ctl.top", "Watch models, requests and tokens live."),
    "events": ("vllmd.ctl.events", "Follow what happens to the models."),
    "incidents": ("vllmd.ctl.incidents", "Show why engines died or hung."),
    "logs": ("vllmd.ctl.logs", "Show what the daemon and its engines have logged."),
    "key": ("vllmd.ctl.keys", "Make, list and revoke API keys."),
    "completion": ("vllmd.ctl.completion", "Print the script that completes vllmctl in a shell."),
    "help": ("vllmd.ctl.help", "Show how vllmctl, or one of its commands, is used."),
}

ELSEWHERE = {
    "run": "chat",
    "ask": "chat",
    "prompt": "chat",
    "repl": "chat",
    "list": "models",
    "ls": "models",
    "start": "load",
    "stop": "unload",
    "install": "env install",
    "environments": "env list",
    "kill": "cancel",
    "download": "pull",
    "fetch": "pull",
    "remove": "rm",
    "delete": "rm",
    "log": "logs",
    "journal": "logs",
    "incident": "incidents",
    "crashes": "incidents",
    "info": "status",
    "version": "--version",
}
"""What other programs call what a verb, or an option, does here."""

DAEMON_S = ("start", "stop", "restart", "enable", "disable", "serve")
"""Words of systemctl's, which starts and stops the daemon."""

MEANINGS = {
    ExitStatus.OK: "done; also if the answer stopped at its longest length",
    ExitStatus.ERROR: "refused, the engine failed, or the answer broke off",
    ExitStatus.USAGE: "the command line is wrong, or there is no prompt",
    ExitStatus.NOT_RUNNING: "the daemon cannot be reached, or the model is not ready",
    ExitStatus.DENIED: "not allowed; `status`: the state cannot be told",
    ExitStatus.TIMEOUT: "`wait --timeout` ran out",
    ExitStatus.INTERRUPTED: "ended by Ctrl-C",
    ExitStatus.PIPE_CLOSED: "nobody reads the output any more",
}
"""The exit statuses in words, as `vllmctl --help` lists them."""

ENVIRONMENT = [
    ("VLLMD_HOST", "the daemon's address: unix:///path, /path, http://host:port, host:port"),
    ("VLLMD_API_KEY", "the key for a daemon that asks for one"),
    ("VLLMD_API_KEY_FILE", "a file that holds the key"),
    ("XDG_STATE_HOME", "where conversations with a name are kept, in vllmctl/NAME.json"),
    ("XDG_RUNTIME_DIR", "where the last conversation of each terminal is kept until logout"),
    ("NO_COLOR", "no colour, if not empty"),
    ("VLLMCTL_VERB_OPTION", "a default for an option, such as VLLMCTL_CHAT_TEMPERATURE"),
]
"""What vllmctl reads from its environment."""

COMPLETE_VARIABLE = "_VLLMCTL_COMPLETE"
"""By it, the script of `vllmctl completion` asks what may come next on the command line."""

Callback = Callable[[click.Context, click.Parameter, Any], None]


def _shared_options() -> list[click.Parameter]:
    """The options that are understood before and after the verb alike."""

    def told(change: Callable[[Invocation, Any], None]) -> Callback:
        def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
            invocation, name = context.find_object(Invocation), str(parameter.name)
            given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            if value and invocation and (given or name not in invocation.said):
                invocation.said.update({name} if given else ())
                change(invocation, value)

        return callback

    def option(*names: str, change: Callable[[Invocation, Any], None], **rest: Any) -> click.Option:
        return click.Option(names, callback=told(change), expose_value=False, is_eager=True, **rest)

    return [
        option("-H", "--host", metavar="ADDRESS", help="Where the daemon listens (VLLMD_HOST).", change=_set_host),
        option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.", change=_set_quiet),
        option("--no-color", is_flag=True, help="No colour on stderr (NO_COLOR).", change=_set_no_colour),
        option("--debug", is_flag=True, help="Show the HTTP exchange on stderr.", change=_set_debug),
    ]


def _set_host(invocation: Invocation, address: str) -> None:
    invocation.host = address


def _set_quiet(invocation: Invocation, quiet: bool) -> None:
    invocation.terminal.quiet = quiet


def _set_no_colour(invocation: Invocation, no_colour: bool) -> None:
    invocation.terminal.colour = not no_colour


def _set_debug(invocation: Invocation, debug: bool) -> None:
    invocation.terminal.debug = debug


class Verb(click.Command):
    """A command with the shared options; it returns its exit status."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = tuple(self.params)
        self.params += _shared_options()
        for each in self.params:
            if isinstance(each, click.Option):
                each.envvar = self._variable(each)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; from here on there may be something to put in order when Ctrl-C comes."""
        interrupt.raises()
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verb's own options apart from those that all have."""
        every = self.get_params(ctx)
        for title, params in (
            ("Options", self._own),
            ("Options of all commands", [each for each in every if each not in self._own]),
        ):
            records = [each.get_help_record(ctx) for each in params if isinstance(each, click.Option)]
            if records:
                with formatter.section(title):
                    formatter.write_dl([each for each in records if each])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples; they are to be copied, so that no line is broken."""
        from vllmd.ctl.examples import examples_of

        if lines := examples_of(str(self.name)):
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in lines))

    def _variable(self, option: click.Option) -> str:
        """The environment variable with an option's default, called as the option is: click would take the name that
        the option has in the code."""
        name = max(option.opts, key=len).lstrip("-").replace("-", "_")
        return f"VLLMCTL_{self.name}_{name}".upper()


class Verbs(click.Group):
    """The group of all verbs, imported one by one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, Verb)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise no_such_command(args[0])
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """The verbs, told from the list, and the options: click would import every verb for its help."""
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=help) for name, (_, help) in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl([(str(int(status)), meaning) for status, meaning in MEANINGS.items()])
        with formatter.section("Environment"):
            formatter.write_dl(ENVIRONMENT)


def no_such_command(word: str) -> Failure:
    """What to say to somebody who takes `word` for a verb."""
    from vllmd.settings import nearest

    hint = "see:  vllmctl --help"
    if " " in word.strip():
        return Failure("no command was given", 'to ask a model:  vllmctl chat "..."', ExitStatus.USAGE)
    if found := ELSEWHERE.get(word):
        hint = f"try:  vllmctl {found}"
    if word in DAEMON_S:
        hint += f"\nthe daemon itself is systemctl's:  systemctl {'start' if word == 'serve' else word} vllmd"
    suggestion = "" if found else nearest(word, VERBS)
    return Failure(f"no such command: {word}{suggestion}", hint, ExitStatus.USAGE)
