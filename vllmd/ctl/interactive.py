"""`vllmctl chat` at a terminal, without a prompt: a conversation.

Ctrl-C stops the answer and keeps what has come of it. A second one, at the prompt, leaves, as Ctrl-D does. Answers go
to stdout, everything else to stderr.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllmd.ctl.ask import STOPPED, Manner, Question, ask
from vllmd.ctl.failure import wording
from vllmd.ctl.keyboard import Keyboard
from vllmd.ctl.options import RESERVED, json_or_text
from vllmd.ctl.prompt import Messages, assistant, user, with_system
from vllmd.ctl.terminal import Terminal
from vllmd.errors import ExitStatus, VllmdError

if TYPE_CHECKING:
    from vllmd.ctl.client import Client

HELP = '''\
/system TEXT      the system prompt from now on; without TEXT: none
/set NAME VALUE   a parameter, such as temperature 0.2; without VALUE: as the
                  model has it; without NAME: show what is set
/reset            forget what was said; the system prompt stays
/stats            figures after each answer, or no longer
/help             this list
/bye              leave, as Ctrl-D does
"""               begins and ends a text of several lines
Ctrl-C            stop the answer; again: leave'''

LEAVE = ("/bye", "/exit", "/quit")

Save = Callable[[Messages, dict[str, Any]], Messages]


class Dialogue:
    """A conversation at a terminal.

    Args:
        client: where the questions go.
        messages: what was said before.
        parameters: the requests' other fields; `/set` changes them.
        manner: how answers are shown; `/stats` changes it.
        save: is told what was said after each answer, and tells what is to be gone on with.
    """

    def __init__(
        self,
        client: "Client",
        terminal: Terminal,
        messages: Messages,
        parameters: dict[str, Any],
        manner: Manner,
        save: Save,
    ) -> None:
        self._client = client
        self._terminal = terminal
        self._messages = messages
        self._parameters = parameters
        self._manner = manner
        self._save = save
        self._is_leaving = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/set": self._set,
            "/reset": self._reset,
            "/stats": self._stats,
            "/help": self._help,
        }

    def run(self) -> ExitStatus:
        """Goes on until the user leaves."""
        # While nobody waits for it; and a Ctrl-C in an import may come back when Python ends (its run_eval_code_obj).
        import_module("vllmd.ctl.answer")
        keyboard = Keyboard()
        self._say("Ctrl-D leaves, /help tells what else can be done")
        while True:
            try:
                self._hear(keyboard.read())
            except EOFError:
                break
            except KeyboardInterrupt:
                if self._is_leaving:
                    break
                self._is_leaving = True
                self._say("\nCtrl-C again, or Ctrl-D, leaves")
        self._say("")
        return ExitStatus.OK

    def _hear(self, text: str) -> None:
        self._is_leaving = False
        command, _, rest = text.strip().partition(" ")
        if command in LEAVE:
            raise EOFError
        if command in self._commands:
            self._commands[command](rest.strip())
        elif command.startswith("/") and command[1:].isalpha():
            self._say(f"no such command: {command}; /help lists them")
        elif text.strip():
            self._ask(text)

    def _ask(self, text: str) -> None:
        messages = [*self._messages, user(text)]
        try:
            question = Question(messages, self._parameters)
            answer = ask(self._client, self._terminal, question, self._manner, keep=True, stoppable=True)
        except VllmdError as error:
            self._terminal.cut_answer()
            self._terminal.error(wording(error), error.hint)
            return
        self._is_leaving = answer.finish == STOPPED
        if answer.text or not self._is_leaving:
            self._messages = self._save([*messages, assistant(answer.text)], self._parameters)

    # ── commands ──

    def _system(self, text: str) -> None:
        self._messages = with_system(self._messages, text)
        self._say("the system prompt is set" if text else "there is no system prompt")

    def _set(self, text: str) -> None:
        name, _, value = (text if "=" not in text.partition(" ")[0] else text.replace("=", " ", 1)).partition(" ")
        if name in RESERVED:
            self._say(f"{name} is set by vllmctl itself")
        elif value.strip():
            self._parameters[name] = json_or_text(value.strip())
        elif name:
            self._parameters.pop(name, None)
        if not name or name in self._parameters:
            self._say("\n".join(f"{name} {value}" for name, value in self._parameters.items()) or "nothing is set")

    def _reset(self, _: str) -> None:
        self._messages = [message for message in self._messages if message["role"] == "system"]
        self._say("forgotten")

    def _stats(self, _: str) -> None:
        self._manner = self._manner._replace(stats=not self._manner.stats)
        self._say("figures after each answer" if self._manner.stats else "no figures any more")

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _say(self, text: str) -> None:
        self._terminal.remark(text)
