"""Where the answer of one engine goes over into that of the next: the later events made to fit the earlier. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from vllmd import sse

_FIRST_STAYS = ("id", "created", "model", "system_fingerprint")
_PLAIN = {"index", "delta", "finish_reason", "stop_reason"}
_PLAIN_DELTA = {"role", "content"}


class Told:
    """What the client has been told beside the text, which the next engine must not contradict.

    Attributes:
        has_role: the chunk with the role has come.
        prompt_tokens: how long the prompt is; None as long as no usage has come.
    """

    __slots__ = ("_facts", "has_role", "prompt_tokens")

    def __init__(self) -> None:
        self.has_role = False
        self.prompt_tokens: int | None = None
        self._facts: dict[str, Any] = {}

    def note(self, chunk: Mapping[str, Any]) -> None:
        """Notes what a chunk says for the first time."""
        self._facts = {name: chunk[name] for name in _FIRST_STAYS if chunk.get(name) is not None} | self._facts
        self.has_role = self.has_role or any("role" in delta_of(choice) for choice in chunk["choices"])
        if self.prompt_tokens is None and isinstance(usage := chunk.get("usage"), dict):
            self.prompt_tokens = usage.get("prompt_tokens")

    def stamp(self, chunk: dict[str, Any]) -> None:
        """Makes a chunk of another engine's one of the same answer."""
        chunk.update({name: value for name, value in self._facts.items() if name in chunk})


class Seam:
    """Makes the events of the engine that goes on fit what the client has seen.

    Args:
        told: what the client knows, kept up to date by the transcript.
        tail: the whitespace at the end of what was said, which the engine did not get.
        tokens: how many tokens of what was said are part of this engine's prompt.

    Attributes:
        fault: why the answer cannot go on after all; "" as long as it does. No event may be passed on then.
    """

    def __init__(self, told: Told, tail: str, tokens: int) -> None:
        self.fault = ""
        self._told = told
        self._tail = tail
        self._again = ""
        self._tokens = tokens

    def mend(self, event: bytes) -> bytes:
        """What the client gets for one whole event; nothing for one that it has had, such as the role.

        What is no chunk stays as it is: comments, errors, `[DONE]`.
        """
        chunk = chunk_in(event)
        if chunk is None:
            return event
        self._told.stamp(chunk)
        if isinstance(chunk.get("usage"), dict):
            self._account(chunk["usage"])
        for choice in chunk["choices"]:
            self.fault = self.fault or strangeness(choice)
            if self.fault or not self._fit(choice):
                return b""
        return encode(chunk)

    def _fit(self, choice: dict[str, Any]) -> bool:
        """Takes off what the client has had; returns whether anything is left."""
        delta, is_last = delta_of(choice), choice.get("finish_reason") is not None
        if self._told.has_role and delta.pop("role", None) and not delta.get("content") and not is_last:
            return False
        if isinstance(content := delta.get("content"), str) or is_last:
            choice["delta"] = delta | {"content": self._join(content or "", is_last)}
        return True

    def _join(self, content: str, is_last: bool) -> str:
        """The text less the whitespace that the client has. As long as it may go either way, nothing."""
        if not self._tail:
            return content
        self._again += content
        text = self._again.lstrip()
        space = self._again[: len(self._again) - len(text)]
        if not text and not is_last and not space.startswith(self._tail):
            return ""
        rest = missing(self._tail, space)
        self._tail = ""
        return rest + text

    def _account(self, usage: dict[str, Any]) -> None:
        """To the engine what was said is prompt, to the client it is answer; the sum is the same."""
        prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(answer, int):
            return
        said = self._tokens if self._told.prompt_tokens is None else prompt - self._told.prompt_tokens
        usage.update(prompt_tokens=prompt - said, completion_tokens=answer + said)


def missing(said: str, again: str) -> str:
    """What must follow the whitespace `said` so that it looks like `again`, the engine's second try at it.

    What is out stays out, and nothing is doubled. Of the same whitespace the rest is missing; of other whitespace the
    line feeds that are more, and the indentation of the last line where `said` has no other. Blanks do not matter
    before a line feed, nor does less whitespace than was said.
    """
    if again.startswith(said):
        return again[len(said) :]
    lines, indentation = again.count("\n") - said.count("\n"), again.rpartition("\n")[2]
    if lines > 0:
        return "\n" * lines + indentation
    has = said.rpartition("\n")[2]
    return indentation[len(has) :] if lines == 0 and indentation.startswith(has) else ""


def strangeness(choice: Mapping[str, Any]) -> str:
    """What a choice has that is no plain text, so that a continuation would lose it; "" if nothing."""
    if choice.get("index") != 0:
        return "the answer is one of several"
    rest = [name for name, value in choice.items() if value and name not in _PLAIN]
    rest += [name for name, value in delta_of(choice).items() if value and name not in _PLAIN_DELTA]
    return f"the answer has {rest[0]}" if rest else ""


def delta_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice adds to the answer."""
    delta = choice.get("delta")
    return delta if isinstance(delta, dict) else {}


def chunk_in(event: bytes) -> dict[str, Any] | None:
    """The chunk of a chat completion that an event is; None if it is none."""
    decoded = sse.decode(event)
    table = object_in(decoded[0].data) if len(decoded) == 1 else {}
    choices = table.get("choices")
    is_chunk = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
    return table if is_chunk and "error" not in table else None


def object_in(text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` is; an empty one if it is none."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def encode(chunk: Mapping[str, Any]) -> bytes:
    """A chunk as an event, spelt as vLLM does."""
    return b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode(
        errors="backslashreplace"  # half a surrogate pair becomes the escape that it is in JSON
    )
