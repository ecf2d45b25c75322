"""A chat whose engine died in mid-answer, and how another engine goes on with it. Pure.

What was said so far goes back as a partial assistant message (`continue_final_message`), and what the next engine says
is made to fit (`seam`): one id, one role, one account of tokens. Nothing is said twice, and nothing is lost between:

- The partial message ends before its trailing whitespace, which chat templates may strip (and transformers then does,
  utils/chat_template_utils.py). The next engine says it again, and the seam takes off what the client has.
- A character of several tokens is not said before the last of them; the next engine generates all of it.
- vLLM holds back what may begin a stop string; the next engine generates it again, and finds the stop string.

The answer is one that the model could have given, not always the one that it would have given: random numbers are drawn
anew, penalties count from the seam on, and what was said is cut into tokens afresh. Tokens that the text does not show
(with `ignore_eos` those that end a turn) are not sent back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllmd import sse
from vllmd.server.continuable import obstacle_in, opens_a_stop
from vllmd.server.seam import Seam, Told, chunk_in, delta_of, object_in, strangeness
from vllmd.wire import dumps

__all__ = ["Resumption", "Seam", "Transcript"]

_LIMITS = ("max_tokens", "max_completion_tokens")
_OF_THE_TEMPLATE = ("documents", "reasoning_effort")
_WORD_STARTS = "▁Ġ"
"""What some tokenizers put before a text that stands alone."""


@dataclass(frozen=True)
class Resumption:
    """How another engine goes on.

    Args:
        body: the request to send it.
        seam: makes its events fit.
    """

    body: bytes
    seam: Seam


class Transcript:
    """What one chat stream has said so far, so that another engine can go on.

    Args:
        body: the request as it was sent to the engine, a JSON object.
        limit_bytes: the longest text that is kept.

    Attributes:
        obstacle: why nobody can go on with it; "" while somebody can. Once it is there it stays.
        text: what was said, as JSON escapes it: the bytes between the quotes of each `delta.content`. The relay itself
            appends to it, and counts in `tokens`, where an event is a piece of text and nothing else.
        tokens: how many events had text; hardly more than the tokens, and fewer where vLLM merges those that come fast.
        is_finished: the answer has its finish_reason; only the usage and `[DONE]` can be missing.
    """

    __slots__ = ("_body", "_limit_bytes", "_told", "is_finished", "obstacle", "text", "tokens")

    def __init__(self, body: bytes, limit_bytes: int) -> None:
        self.obstacle = obstacle_in(json.loads(body))
        self.text = bytearray()
        self.tokens = 0
        self.is_finished = False
        self._body = body
        self._limit_bytes = limit_bytes
        self._told = Told()

    def take(self, event: bytes) -> None:
        """Notes what a whole event says, one that the relay did not know for a piece of text alone."""
        if chunk := chunk_in(event):
            self._told.note(chunk)
            for choice in chunk["choices"]:
                self._hear(choice)
        elif any(each.has_data and each.data != "[DONE]" for each in sse.decode(event)):
            self._give_up("an event was no chunk of a chat completion")

    def mind_the_bound(self) -> None:
        """Gives up a text that has become too long. To be called now and then."""
        if len(self.text) > self._limit_bytes:
            self._give_up(f"more than {self._limit_bytes} bytes were said")
        if self.obstacle:
            self.text.clear()

    def said(self) -> str:
        """The text that is sent back: without the whitespace at its end."""
        return self._text().rstrip()

    def questions(self) -> Sequence[bytes]:
        """Requests to the next engine's `/tokenize`, for `judge`; none if nothing was said.

        They ask for the prompt as it was, the prompt with the partial answer, and the partial answer alone.
        """
        said, request = self.said(), self._request()
        template = {name: request[name] for name in _OF_THE_TEMPLATE if request.get(name) is not None}
        request["chat_template_kwargs"] = template | (request.get("chat_template_kwargs") or {})
        alone = {"model": request.get("model"), "prompt": said.lstrip(), "add_special_tokens": False}
        asked = [request, _with_partial(request, said), alone] if said else []
        return [dumps(each | {"return_token_strs": True}).encode() for each in asked]

    def judge(self, answers: Sequence[bytes]) -> int | None:
        """Sees to it that the engine gets the prompt that the first one had, and then what was said; else an obstacle.

        Some chat templates take the thoughts out of an answer that is sent back, or put empty ones before it.

        Args:
            answers: what `/tokenize` said to the `questions`, in their order, errors included; none if it is mute.

        Returns:
            How many tokens `said` has; None if the engine did not tell.
        """
        if opens_a_stop(self._text(), self._request()):
            self._give_up("it ends where a stop string may have begun")
        if not self.said():
            return 0
        tables = [object_in(answer) for answer in answers]
        if any(_is_refused(table) for table in tables):
            self._give_up("the chat template takes no partial answer")
        if not tables or not all(isinstance(table.get("count"), int) for table in tables):
            return None
        if not self._goes_on(*tables):
            self._give_up("the chat template changes an answer that is sent back")
        return int(tables[1]["count"] - tables[0]["count"])

    def resume(self, tokens: int | None) -> Resumption:
        """The request with which another engine goes on, and what makes its answer fit.

        Args:
            tokens: how many tokens `said` has, by `judge`; None where that is unknown: then as many as events came.
        """
        said, used = self.said(), self.tokens if tokens is None else tokens
        tail = self._text()[len(said) :]
        if not said:  # templates and transformers want a partial message to have text
            return Resumption(self._body, Seam(self._told, tail, 0))
        body = dumps(_less(_with_partial(self._request(), said), used)).encode()
        return Resumption(body, Seam(self._told, tail, used))

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = json.loads(self._body)
        return request

    def _text(self) -> str:
        text: str = json.loads(f'"{self.text.decode(errors="replace")}"', strict=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins what two events halved

    def _hear(self, choice: Mapping[str, Any]) -> None:
        if strange := strangeness(choice):
            self._give_up(strange)
        delta = delta_of(choice)
        content = delta.get("content") or ""
        if not isinstance(content, str):
            self._give_up("an event holds a text that is none")
            content = ""
        self.text += json.dumps(content, ensure_ascii=False)[1:-1].encode(errors="backslashreplace")
        self.tokens += "content" in delta and "role" not in delta
        self.is_finished = self.is_finished or choice.get("finish_reason") is not None

    def _give_up(self, why: str) -> None:
        self.obstacle = self.obstacle or why

    def _goes_on(self, before: Mapping[str, Any], after: Mapping[str, Any], alone: Mapping[str, Any]) -> bool:
        """Whether a prompt is the one before and then the answer, of which at most leading whitespace is lost."""
        prompt, whole, answer = ("".join(table.get("token_strs") or ()) for table in (before, after, alone))
        answer = answer[1:] if answer[:1] in _WORD_STARTS else answer
        said = self.said()
        space = said[: len(said) - len(said.lstrip())]
        between = len(whole) - len(prompt) - len(answer)
        return whole.startswith(prompt) and whole.endswith(answer) and 0 <= between <= len(space.encode()) + 1


def _with_partial(request: Mapping[str, Any], said: str) -> dict[str, Any]:
    messages = [*request["messages"], {"role": "assistant", "content": said}]
    return {**request, "messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def _less(request: Mapping[str, Any], used: int) -> dict[str, Any]:
    """The request with its limits less the tokens that are used up; at least one more is generated."""
    left = {name: max(1, request[name] - used) for name in _LIMITS if isinstance(request.get(name), int)}
    if isinstance(request.get("min_tokens"), int):
        left["min_tokens"] = max(0, request["min_tokens"] - used)
    return {**request, **left}


def _is_refused(table: Mapping[str, Any]) -> bool:
    error = table.get("error")
    return isinstance(error, dict) and error.get("code") == 400
