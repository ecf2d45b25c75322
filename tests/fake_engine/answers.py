"""What a request is answered with: vLLM's checks and error bodies, the tokens, the counts."""

import json
import time
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

from .knobs import Flags, Knobs
from .prompts import partial, prompt_strings, split, text_of

Json = dict[str, Any]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class HttpError(Exception):
    """An answer with an HTTP error status and vLLM's error body."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class Job:
    """One generating request: what it is answered with, and how far that has come."""

    number: int
    id: str
    model: str
    body: Json
    prompt_tokens: int
    tokens: list[str]
    finish: str
    created: int = field(default_factory=lambda: int(time.time()))
    sent: int = 0
    had_its_turn: bool = False

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self.tokens[: self.sent])

    def wants(self, option: str) -> bool:
        """Whether the client asked for that stream option."""
        return bool((self.body.get("stream_options") or {}).get(option))


def parse(raw: bytes, needs: str) -> Json:
    """A request's JSON, with the field that its route needs (none if that is empty)."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        cause, place = getattr(error, "msg", str(error)), getattr(error, "pos", 0)
        more = f", 'ctx': {{'error': '{cause}'}}"
        raise invalid("json_invalid", f"body.{place}", "JSON decode error", "<dict of 0 items>", more) from error
    if not isinstance(body, dict):
        raise invalid("model_attributes_type", "body", "Input should be a valid dictionary", body)
    if needs and needs not in body:
        raise invalid("missing", f"body.{needs}", "Field required", f"<dict of {len(body)} items>")
    return body


def check(body: Json, flags: Flags, knobs: Knobs) -> None:
    """vLLM's checks of a generating request."""
    _check_number("temperature", body, 0, 2, "in [0, 2]")
    _check_number("top_p", body, 1e-9, 1, "in (0, 1]")
    model, most = body.get("model") or flags.names[0], flags.max_model_len
    if model not in flags.names:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(flags.names)}."
        raise HttpError(404, message, "NotFoundError", "model")
    if (limit := body.get("max_tokens") or 0) > most:
        message = f"max_tokens={limit} cannot be greater than max_model_len={most}. Please request fewer output tokens."
        raise HttpError(400, f"{message} (parameter=max_tokens, value={limit})", param="max_tokens")
    if any(part.get("type") != "text" for part in _parts(body)):
        raise HttpError(400, f"{model} is not a multimodal model")
    check_partial(body, knobs)
    if prompt_tokens(body, knobs) > most:
        message = (
            f"This model's maximum context length is {most} tokens. However, your prompt contains at least {most + 1} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
            f"input prompt. (parameter=input_tokens, value={most + 1})"
        )
        raise HttpError(400, message, param="input_tokens")


def _parts(body: Json) -> list[Json]:
    """The content parts of all messages."""
    contents = [message.get("content") for message in body.get("messages") or []]
    return [part for content in contents if isinstance(content, list) for part in content]


def _check_number(name: str, body: Json, low: float, high: float, rule: str) -> None:
    value = body.get(name)
    if isinstance(value, str):
        message = "Input should be a valid number, unable to parse string as a number"
        raise invalid("float_parsing", f"body.{name}", message, value)
    if value is not None and not low <= value <= high:
        rule = "non-negative" if name == "temperature" and value < 0 else rule
        facts = f"(parameter={name}, value={float(value)})"
        raise HttpError(400, f"{name} must be {rule}, got {float(value)}. {facts}", param=name)


def invalid(kind: str, place: str, message: str, given: Any, more: str = "") -> HttpError:
    """A 400 in pydantic's words."""
    facts = f"'type': '{kind}', 'loc': '{place}', 'msg': {message!r}, 'input': {given!r}{more}"
    return HttpError(400, f"1 validation error:\n  {{{facts}}}", "Bad Request", place)


def check_partial(body: Json, knobs: Knobs) -> None:
    """vLLM's and transformers' checks of a partial answer."""
    if not body.get("continue_final_message"):
        return
    if body.get("add_generation_prompt"):
        raise HttpError(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    if "add_generation_prompt" not in body:
        raise HttpError(400, INCOMPATIBLE)
    if knobs.template == "refuse":
        raise HttpError(400, DOES_NOT_APPEAR)


INCOMPATIBLE = (
    "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the "
    "model to continue the final message, and add_generation_prompt when you want to add a header that will prompt it "
    "to start a new assistant message instead."
)
DOES_NOT_APPEAR = (
    "continue_final_message is set but the final message does not appear in the chat after applying the chat template!"
)


def prompt_tokens(body: Json, knobs: Knobs) -> int:
    """Words in the prompt, whatever the API calls it; a partial answer counts as the model's own tokens."""
    return max(1, len(prompt_strings(body, knobs)))


def answer(body: Json, knobs: Knobs) -> tuple[list[str], str]:
    """The tokens that answer a request, always the same for the same request; and the finish reason."""
    text = _last_said(body) if knobs.echo else knobs.text
    tokens = split(text, knobs.split) if text else _numbered(knobs.tokens)
    said = partial(body, knobs)
    limit = next((int(body[name]) for name in LIMITS if body.get(name)), None)
    if body.get("ignore_eos") and limit and tokens:
        tokens = list(islice(cycle(tokens), limit + len(split(said, knobs.split))))
    tokens = _rest(tokens, said, knobs.split) if said else tokens
    if limit and limit <= len(tokens):
        return tokens[:limit], "length"
    return ([*tokens, ""] if knobs.eos or not tokens else tokens), "stop"


def _rest(tokens: list[str], said: str, how: str) -> list[str]:
    """What follows a partial answer, as from a model that is sure of itself; after another's words, as many later."""
    whole = "".join(tokens)
    trimmed = len(whole) - len(whole.lstrip())  # a chat template may have done the same to what was said
    for start in (0, trimmed):
        if whole.startswith(said, start):
            return split(whole[start + len(said) :], how)
    return tokens[len(said.split()) :]


def _last_said(body: Json) -> str:
    said = [message for message in body.get("messages") or [] if message.get("role") == "user"]
    return text_of(said[-1]) if said else text_of(body.get("prompt") or body.get("input"))


@lru_cache(maxsize=4)
def _numbered(count: int) -> list[str]:
    return ["tok0", *(f" tok{number}" for number in range(1, count))][:count]
