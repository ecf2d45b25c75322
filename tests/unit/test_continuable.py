"""Which requests another engine may go on with."""

import ast
from pathlib import Path
from typing import Any

import demo
import pytest

from vllmd.server.continuable import FIELDS, obstacle_in, opens_a_stop

CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({"stream": False}, "it is no stream"),
        ({"stream": None}, "it is no stream"),
        ({"messages": []}, "it has no messages"),
        ({"messages": "hi"}, "it has no messages"),
        ({"tools": [{"type": "function"}]}, "tools were offered"),
        ({"logprobs": True}, "logprobs were asked for"),
        ({"prompt_logprobs": 0}, "logprobs were asked for"),
        ({"n": 2}, "several answers were asked for"),
        ({"response_format": {"type": "json_object"}}, "a form was prescribed"),
        ({"structured_outputs": {"regex": "a"}}, "a form was prescribed"),
        ({"guided_choice": ["a"]}, "a form was prescribed"),
        ({"modalities": ["text", "audio"]}, "more than text was asked for"),
        ({"continue_final_message": True}, "the request itself continues a message"),
        ({"add_generation_prompt": False}, "the request itself shapes the end of its prompt"),
        ({"seed": 1}, "a seed was set, which stands for one certain answer"),
        ({"seed": 0, "temperature": 0.1}, "a seed was set, which stands for one certain answer"),
    ],
)
def test_what_stands_in_the_way(fields: dict[str, Any], obstacle: str) -> None:
    assert obstacle_in(CHAT | fields) == obstacle


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7, "top_p": 0.9, "stop": ["\n\n"], "frequency_penalty": 1, "user": "me"},
        {"tools": None, "tool_choice": "none", "logprobs": False, "top_logprobs": 0, "n": 1, "best_of": 1},
        {"response_format": {"type": "text"}, "modalities": ["text"], "structured_outputs": None},
        {"seed": 7, "temperature": 0},
        {"seed": -1},
        {"continue_final_message": False, "add_generation_prompt": True, "include_reasoning": True},
        {"metadata": {"a": "b"}, "x-of-a-fork": True},
    ],
)
def test_what_does_no_harm(fields: dict[str, Any]) -> None:
    assert obstacle_in(CHAT | fields) == ""


@pytest.mark.parametrize(
    ("text", "stop", "opens"),
    [
        ("one tw", "two", True),
        ("one two ", ["x", " \n"], True),
        ("one", "two", False),
        ("one t", None, False),
        ("one t", [], False),
        ("", "two", False),
    ],
)
def test_a_stop_string_over_the_seam(text: str, stop: object, opens: bool) -> None:
    assert opens_a_stop(text, {"stop": stop, "include_stop_str_in_output": True}) == opens
    assert not opens_a_stop(text, {"stop": stop})


def fields_of_vllm(protocol: Path) -> set[str]:
    (request,) = (
        node
        for node in ast.parse(protocol.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "ChatCompletionRequest"
    )
    named = [node.target for node in request.body if isinstance(node, ast.AnnAssign)]
    return {name.id for name in named if isinstance(name, ast.Name) and not name.id.startswith("_")}


@pytest.mark.real
def test_every_field_of_vllm_has_been_thought_of() -> None:
    """A new version's new fields want to be judged."""
    where = "environments/vllm*/lib/python*/site-packages/vllm/entrypoints/openai/chat_completion/protocol.py"
    installed = list(demo.STATE.glob(where))
    assert installed, "make test installs it"
    for protocol in installed:
        fields = fields_of_vllm(protocol)
        assert len(fields) > 60
        assert fields <= FIELDS
