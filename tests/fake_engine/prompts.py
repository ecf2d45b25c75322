"""The prompt that the chat template makes of a request, and its tokens; a partial answer may stand at its end."""

import re
from typing import Any

from .knobs import Knobs

Json = dict[str, Any]
PARTS = ("system", "instructions", "messages", "prompt", "input")
EMPTY_THOUGHTS = ["<think>", "</think>"]


def text_of(content: Any) -> str:
    """The text in a string, a message, a content part, token numbers, or a list of any of them."""
    if isinstance(content, dict):
        return text_of(content.get("content", content.get("text")))
    if isinstance(content, list):
        return " ".join(map(text_of, content))
    return "" if content is None else str(content)


def split(text: str, how: str) -> list[str]:
    """Text as tokens; joined, they are the text again."""
    if how == "chars":
        return list(text)
    if how == "bytes":
        return [piece for char in text for piece in [""] * (len(char.encode()) - 1) + [char]]
    return re.findall(r"\s*\S+|\s+\Z", text)


def partial(body: Json, knobs: Knobs) -> str:
    """The partial answer that is to be continued, as the chat template leaves it; "" if there is none."""
    if not body.get("continue_final_message") or not body.get("messages"):
        return ""
    said = text_of(body["messages"][-1])
    return said if knobs.template == "keep" else said.strip()


def prompt_strings(body: Json, knobs: Knobs) -> list[str]:
    """The tokens of a prompt: its words, and those of a partial answer as the model itself would have said it."""
    parts = [body[name] for name in PARTS if body.get(name)]
    if not body.get("continue_final_message"):
        return text_of(parts).split()
    before = text_of([body.get("system"), body["messages"][:-1]]).split()
    thoughts = EMPTY_THOUGHTS if knobs.template == "think" else []
    return [*before, *thoughts, *split(partial(body, knobs), knobs.split)]
