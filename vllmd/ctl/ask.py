"""One question to the model, and its answer as the user wants it: as it comes, at once, or as JSON.

The request leaves before the rest is imported: what reads the answer is loaded while the model thinks.
"""

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmd.ctl.prompt import Messages
from vllmd.ctl.terminal import Terminal
from vllmd.routes import CHAT_COMPLETIONS, WAIT_HEADER

if TYPE_CHECKING:
    from vllmd.ctl.answer import Answer
    from vllmd.ctl.client import Client

STOPPED = "stopped"
"""The finish of an answer that the user has ended."""


class Manner(NamedTuple):
    """How an answer is waited for and shown."""

    as_json: bool = False
    stats: bool = False
    no_stream: bool = False
    hide_reasoning: bool = False
    no_wait: bool = False


class Question(NamedTuple):
    """What is asked: the conversation that the model continues, and all else that the request says."""

    messages: Messages
    parameters: dict[str, Any]

    def body(self, count: bool) -> dict[str, Any]:
        """The request's body; `count` asks for the tokens to be counted, too."""
        counting = {"stream_options": {"include_usage": True}} if count else {}
        return {"messages": self.messages, **self.parameters, "stream": True, **counting}


def ask(
    client: "Client", terminal: Terminal, question: Question, manner: Manner, *, keep: bool, stoppable: bool = False
) -> "Answer":
    """Asks, and shows the answer.

    Args:
        keep: whether the answer's text is needed afterwards.
        stoppable: whether Ctrl-C ends the answer and nothing else; its finish is `STOPPED` then.

    Raises:
        VllmdError: there was no answer, or not all of it; what has come of it stays on stdout.
    """
    body = question.body(manner.stats or manner.as_json)
    headers = {"Accept": "text/event-stream", **({WAIT_HEADER: "0"} if manner.no_wait else {})}
    sent_at = monotonic()
    with client.request("POST", CHAT_COMPLETIONS, body, headers) as exchange:
        from vllmd.ctl.answer import Answer, Display

        live = not (manner.as_json or manner.no_stream)
        answer = Answer(sent_at, keep or not live)
        name = question.parameters.get("model") or "the model"
        display = Display(terminal, name, text=live, reasoning=live and not manner.hide_reasoning)
        try:
            display.show(exchange, answer)
        except KeyboardInterrupt:
            if not stoppable:
                raise
            answer.finish = STOPPED
    _conclude(terminal, question, manner, answer)
    return answer


def _conclude(terminal: Terminal, question: Question, manner: Manner, answer: "Answer") -> None:
    """Writes what is written at the end of an answer."""
    if answer.finish == STOPPED:
        terminal.cut_answer()
    elif manner.as_json:
        from vllmd.ctl.report import as_json

        terminal.line(as_json(answer))
    else:
        _end(terminal, manner, answer)
    if answer.finish == "length":
        terminal.note(_too_long(question.parameters))
    if manner.stats:
        from vllmd.ctl.report import stats_line

        terminal.remark(stats_line(answer))


def _end(terminal: Terminal, manner: Manner, answer: "Answer") -> None:
    if manner.no_stream:
        terminal.reasoning("" if manner.hide_reasoning else answer.reasoning)
        terminal.answer(answer.text)
    terminal.end_answer()


def _too_long(parameters: Mapping[str, Any]) -> str:
    if "max_tokens" in parameters:
        return "stopped at --max-tokens"
    return "stopped at the longest answer that the model allows; -n sets another length"
