"""`vllmctl chat`: one question, one answer, as it is generated; or a conversation."""

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vllmd.ctl.ask import Manner, Question, ask
from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import file_names, model_names
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.number import Number
from vllmd.ctl.options import TEXT, files, parameters, text_or_file
from vllmd.ctl.prompt import Messages, assistant, compose, decode, named, typed, user, wants_reading, with_system
from vllmd.ctl.terminal import Terminal
from vllmd.errors import ExitStatus

if TYPE_CHECKING:
    from vllmd.ctl.session import Session


class Input(NamedTuple):
    """What the user's message is made of; a file without a text is stdin, and so is a lone `-`."""

    files: list[tuple[str, str | None]]
    words: tuple[str, ...]
    no_stdin: bool


@click.command(cls=Verb)
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("-t", "--temperature", type=Number(0, 2), help="0 to 2; the higher, the more varied.")
@click.option("--top-p", type=Number(0, 1), help="0 to 1; only the likeliest tokens of this share.")
@click.option("-n", "--max-tokens", type=Number(1, whole=True), help="The longest answer, in tokens.")
@click.option("--seed", type=Number(whole=True), help="The same seed, the same answer, as far as the engine can.")
@click.option("--stop", type=TEXT, multiple=True, help="Text that ends the answer; may be given again.")
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    callback=parameters,
    metavar="NAME=VALUE",
    help="Any other parameter; VALUE is JSON, else text. May be given again.",
)
@click.option(
    "-m",
    "--model",
    type=TEXT,
    metavar="NAME",
    shell_complete=model_names,
    help="Which model; without it, the default one.",
)
@click.option("-s", "--system", callback=text_or_file, metavar="TEXT|@FILE", help="The system prompt.")
@click.option(
    "-f",
    "--file",
    "attached",
    multiple=True,
    callback=files,
    metavar="PATH",
    shell_complete=file_names,
    help="A text before the prompt, under its name; - is stdin. May be given again.",
)
@click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with what was last said on this terminal.")
@click.option(
    "--session", type=TEXT, metavar="NAME", help="Go on with the conversation of that name; the first time, begin it."
)
@click.option("-R", "--hide-reasoning", is_flag=True, help="Do not show the model's reasoning.")
@click.option("--stats", is_flag=True, help="Tokens and times on stderr, after the answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all that is known of the answer.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("--no-stdin", is_flag=True, help="Leave stdin alone (inside a loop that reads from it).")
@click.option("--no-wait", is_flag=True, help="Fail at once if the model is not ready.")
@click.pass_obj
def chat(
    invocation: Invocation,
    /,
    words: tuple[str, ...],
    attached: list[tuple[str, str | None]],
    no_stdin: bool,
    system: str | None,
    goes_on: bool,
    session: str | None,
    **options: Any,
) -> ExitStatus:
    """Ask the model and print its answer.

    What comes in on stdin stands before PROMPT: a document first, the question last. An option that is not given is not
    sent, so that the model's own defaults hold. Without any prompt, at a terminal, it is a conversation.
    """
    manner = Manner(**{name: options.pop(name) for name in Manner._fields})
    text = read_text(invocation.terminal, Input(attached, words, no_stdin))
    return Chat(invocation, session, goes_on).run(system, text, request_fields(**options), manner)


def request_fields(params: dict[str, Any], stop: tuple[str, ...], **sampling: Any) -> dict[str, Any]:
    """The fields of the request that were given: what is not given is not sent."""
    given = {name: value for name, value in sampling.items() if value is not None}
    return {**given, **({"stop": list(stop)} if stop else {}), **params}


def read_text(terminal: Terminal, given: Input) -> str | None:
    """The user's message: files, then stdin if there is any, then the words; None at a terminal where there is nothing.

    Raises:
        click.UsageError: there is nothing, and nobody to ask.
        RequestError: a part is not UTF-8.
    """
    if given.words == ("-",):
        given = Input([*given.files, ("-", None)], (), given.no_stdin)
    parts = [_stdin(terminal) if text is None else named(path, text) for path, text in given.files]
    is_read = any(text is None for _, text in given.files)
    if not (is_read or given.no_stdin) and wants_reading(terminal.stdin_mode()):
        parts.append(_stdin(terminal))
    text = compose(*parts, typed(" ".join(given.words), "the prompt"))
    if not text and (parts or given.words or given.no_stdin or not terminal.is_interactive):
        raise click.UsageError("no prompt: give one as argument or on stdin")
    return text or None


def _stdin(terminal: Terminal) -> str:
    return decode(terminal.read_stdin(), "stdin")


class Chat:
    """One run of `vllmctl chat`, and the session that it belongs to.

    Args:
        name: the session's; None for this terminal's.
        goes_on: whether to go on with what was last said on this terminal.
    """

    def __init__(self, invocation: Invocation, name: str | None, goes_on: bool) -> None:
        self._invocation = invocation
        self._name = name
        self._goes_on = goes_on
        self._known: Messages | None = None
        """What stands in the session, as far as we know; None if we begin anew."""

    def run(self, system: str | None, text: str | None, fields: dict[str, Any], manner: Manner) -> ExitStatus:
        """Asks the question, or all that a person at the terminal asks.

        Args:
            text: the question; None for a conversation.
            fields: of the requests.
        """
        before, model = self._before()
        fields = {**({"model": model} if model else {}), **fields}
        client, terminal = self._invocation.client(), self._invocation.terminal
        if text is None:
            from vllmd.ctl.interactive import Dialogue

            before = with_system(before, system)
            return Dialogue(client, terminal, before, fields, manner, self._save).run()
        messages = [*with_system(before, system), user(text)]
        keep = self._name is not None or terminal.device is not None
        answer = ask(client, terminal, Question(messages, fields), manner, keep=keep)
        if keep:
            self._save([*messages, assistant(answer.text)], fields)
        return ExitStatus.OK

    def _before(self) -> tuple[Messages, str | None]:
        """What was said before in the session, and the model's name if one was given."""
        if self._name is None and not self._goes_on:
            return [], None
        from vllmd.ctl.session import nothing_to_continue

        session = self._session()
        found = session.load() if session else None
        if session and found is None and session.name:
            self._invocation.terminal.note(f"a new session: {session.path}")
        elif found is None:
            raise nothing_to_continue(session)
        messages, model = found or ([], None)
        self._known = messages
        return messages, model

    def _save(self, messages: Messages, fields: dict[str, Any]) -> Messages:
        """Keeps what was said, if that is to be; returns it, with what others have said in the session meanwhile."""
        if session := self._session():
            messages = self._known = session.save(messages, fields.get("model"), self._known)
        return messages

    def _session(self) -> "Session | None":
        # Imported only here: most questions belong to no conversation, and a session is saved when the answer is out.
        from vllmd.ctl.session import named_session, terminal_session

        environ = self._invocation.environ
        if self._name is None:
            return terminal_session(self._invocation.terminal, environ)
        return named_session(self._name, environ)
