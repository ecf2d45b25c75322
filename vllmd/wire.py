"""How daemon and vllmctl say in JSON what they say to each other, what clients send, and the bodies of errors.

What the daemon tells stands in `statuses` and `provisions`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

from vllmd.errors import EngineError, EngineSaid, RequestError, VllmdError, outcome_of
from vllmd.settings import Problem, option, read

T = TypeVar("T")

SHOWN_CHARACTERS = 500
"""The longest message of an error."""


def dumps(value: object) -> str:
    """JSON in which text stays readable, unless it holds what UTF-8 cannot carry (half a surrogate pair)."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


class Told(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_json(value: Told) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return asdict(value)


def known(cls: type[T], table: Mapping[str, Any]) -> T:
    """A dataclass of what is known of it here; what another version says beside that is passed over."""
    names = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in table.items() if key in names})


@dataclass(frozen=True)
class PromptRequest:
    """The simple door's request; None stands for what the client left out."""

    prompt: str = option("", "the question")
    system: str | None = option(None, "the system prompt")
    model: str | None = option(None, "the model's name")
    temperature: float | None = option(None, "sampling temperature", minimum=0, maximum=2)
    top_p: float | None = option(None, "nucleus sampling", minimum=0, maximum=1)
    max_tokens: int | None = option(None, "the longest answer, in tokens", minimum=1)
    stop: tuple[str, ...] | None = option(None, "strings that end the answer")
    seed: int | None = option(None, "seed of the sampling")
    stream: bool = option(True, "events as they come, or one JSON object at the end")

    def messages(self) -> list[dict[str, str]]:
        """The chat that the engine is asked to continue."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class PullRequest:
    """Which model is to be fetched, or verified."""

    model: str = option("", "the name of a configured model, or a name on the hub")
    revision: str | None = option(None, "a branch, tag or commit; the hub's default where it is left out")
    repair: bool = option(False, "verify: fetch anew what is broken")


@dataclass(frozen=True)
class InstallRequest:
    """Which vLLM is to be installed."""

    version: str | None = option(None, "of vLLM; the one that vllmd was made with where it is left out")
    variant: str | None = option(None, "cuda, cpu or rocm; what suits the machine where it is left out")


@dataclass(frozen=True)
class UseRequest:
    """Who is to run in an environment."""

    model: str | None = option(None, "the name of a configured model; all of them where it is left out")


ENVELOPE = ("input", "output_only", "wait_for_completion", "workflow_id")


def read_prompt(body: object) -> PromptRequest:
    """Reads the body of `POST /api/prompt`.

    Raises:
        RequestError: it is no object, has no prompt, an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(body, Mapping):
        raise RequestError("the body is not a JSON object", 'send {"prompt": "…"}')
    table = {key: value for key, value in body.items() if value is not None}
    if isinstance(table.get("stop"), str):
        table["stop"] = [table["stop"]]
    problems: list[Problem] = []
    request = read(PromptRequest, table, "", problems)
    for problem in problems:
        known = ", ".join(each.name for each in fields(PromptRequest))
        raise RequestError(str(problem), f"the fields are {known}", param=problem.place)
    if not request.prompt.strip():
        said = "prompt: it is empty" if "prompt" in table else "prompt: missing"
        raise RequestError(said, 'send {"prompt": "your question"}', param="prompt")
    return request


def read_workflow_run(body: object) -> PromptRequest:
    """Reads the body of `POST /api/workflows/runs`: the same request in model-compose's envelope.

    Raises:
        RequestError: as `read_prompt`, or the envelope has an unknown key or no object in `input`.
    """
    if not isinstance(body, Mapping) or "input" not in body:
        raise RequestError("input: missing", 'send {"input": {"prompt": "…"}}', param="input")
    for key in body:
        if key not in ENVELOPE:
            raise RequestError(f"{key}: unknown key", f"known are {', '.join(ENVELOPE)}", param=str(key))
    if not isinstance(body["input"], Mapping):
        raise RequestError("input: expected an object", 'send {"input": {"prompt": "…"}}', param="input")
    return read_prompt(body["input"])


def error_body(error: VllmdError) -> dict[str, Any]:
    """An error as clients of OpenAI's API expect it, with whose it is and what to do about it."""
    if isinstance(error, EngineSaid) and error.body is not None:
        return dict(error.body)
    outcome = outcome_of(error)
    param = error.param if isinstance(error, RequestError) else None
    body = {
        "message": _cut(error.message),
        "type": outcome.type,
        "code": outcome.code,
        "param": _cut(param) if param else None,
        "source": "engine" if isinstance(error, EngineError) else "vllmd",
        "hint": error.hint,
    }
    return {"error": body}


def _cut(text: str) -> str:
    """A client that sent a megabyte in the wrong place need not get it back."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
