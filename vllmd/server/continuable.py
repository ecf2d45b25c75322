"""Which chat requests may be continued by another engine: every field of vLLM's, and why not. Pure.

The fields are those of ChatCompletionRequest in vLLM 0.32 (vllm/entrypoints/openai/chat_completion/protocol.py), with
those of OpenAI and of older versions. A field that is in no group is harmless too: this vLLM ignores what it does not
know, and what changes the form of an answer shows in its events, where `continuation.Transcript` looks for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

ADAPTED = "messages max_tokens max_completion_tokens min_tokens continue_final_message add_generation_prompt"
"""What `continuation` changes in a request; all else goes to the next engine as it is."""

HARMLESS = {
    "the same for every token, whatever was said before": "model temperature top_p top_k min_p logit_bias "
    "repetition_penalty allowed_token_ids stop_token_ids ignore_eos watermarking skip_special_tokens "
    "spaces_between_special_tokens length_penalty vllm_xargs",
    "begin anew at the seam, for what was said is prompt to the next engine": "frequency_penalty presence_penalty "
    "repetition_detection bad_words",
    "what may begin a stop string is held back, so that none lies across the seam (but see `opens_a_stop`)": "stop "
    "include_stop_str_in_output",
    "how a prompt is made: the same again, and `Transcript.judge` makes sure of it": "chat_template "
    "chat_template_kwargs documents add_special_tokens media_io_kwargs mm_processor_kwargs cache_salt",
    "thoughts come as events of their own, which no transcript takes": "reasoning_effort thinking_token_budget",
    "only the first chunk shows it, and the client keeps the first engine's": "return_prompt_text",
    "usage is mended in the events": "stream_options",
    "whom and how to serve": "priority request_id session_id stream_interval user",
    "mean nothing alone, or on other routes": "tool_choice parallel_tool_calls truncation_side "
    "return_tokens_as_token_ids routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs",
}
"""Why fields do no harm → the fields."""

_Test = Callable[[Any], bool]


def _is_not(*harmless: Any) -> _Test:
    return lambda value: value not in harmless


def _is_no_count(value: Any) -> bool:
    """Whether a limit is spelt so that nothing can be taken off it: vLLM reads "5" and 5.0 as 5."""
    return value is not None and type(value) is not int


_OBSTACLES: Mapping[str, tuple[_Test, str]] = {
    "stream": (lambda value: value is not True, "it is no stream"),
    "messages": (lambda value: not (isinstance(value, list) and value), "it has no messages"),
    "max_tokens": (_is_no_count, "its limit is no whole number"),
    "max_completion_tokens": (_is_no_count, "its limit is no whole number"),
    "min_tokens": (_is_no_count, "its limit is no whole number"),
    "tools": (bool, "tools were offered"),
    "functions": (bool, "functions were offered"),
    "logprobs": (bool, "logprobs were asked for"),
    "top_logprobs": (bool, "logprobs were asked for"),
    "logprob_token_ids": (bool, "logprobs were asked for"),
    "prompt_logprobs": (_is_not(None), "logprobs were asked for"),
    "return_token_ids": (bool, "token ids were asked for"),
    "n": (_is_not(None, 1), "several answers were asked for"),
    "best_of": (_is_not(None, 1), "several answers were asked for"),
    "use_beam_search": (bool, "a beam search was asked for"),
    "response_format": (lambda value: value not in (None, {"type": "text"}), "a form was prescribed"),
    "structured_outputs": (_is_not(None), "a form was prescribed"),
    "guided_json": (_is_not(None), "a form was prescribed"),
    "guided_regex": (_is_not(None), "a form was prescribed"),
    "guided_choice": (_is_not(None), "a form was prescribed"),
    "guided_grammar": (_is_not(None), "a form was prescribed"),
    "modalities": (_is_not(None, [], ["text"]), "more than text was asked for"),
    "audio": (bool, "more than text was asked for"),
    "echo": (bool, "an echo was asked for"),
    "continue_final_message": (bool, "the request itself continues a message"),
    "add_generation_prompt": (_is_not(None, True), "the request itself shapes the end of its prompt"),
    "truncate_prompt_tokens": (_is_not(None), "the prompt may be truncated"),
    "include_reasoning": (_is_not(None, True), "thoughts were kept back"),
    "kv_transfer_params": (bool, "another engine computed its prompt"),
    "ec_transfer_params": (bool, "another engine computed its prompt"),
}
"""Field → whether its value stands in the way, and what to say then."""

FIELDS = frozenset({*" ".join([ADAPTED, *HARMLESS.values()]).split(), *_OBSTACLES, "seed"})
"""All that are in one of the groups."""


def obstacle_in(request: Mapping[str, Any]) -> str:
    """Why a request cannot be continued honestly; "" if it can.

    A seed stands for one certain answer, and the next engine would draw its random numbers anew: whoever sets one is
    told, and asks again. Without chance (temperature 0), or with vLLM's -1 for none, it means nothing.
    """
    for field, (is_met, what) in _OBSTACLES.items():
        if is_met(request.get(field)):
            return what
    if request.get("seed") not in (None, -1) and request.get("temperature") != 0:
        return "a seed was set, which stands for one certain answer"
    return ""


def opens_a_stop(text: str, request: Mapping[str, Any]) -> bool:
    """Whether the end of `text` may be the beginning of a stop string, the rest of which the next engine would miss.

    vLLM sends such text at once where stop strings are to be part of the answer, and looks for them in what it
    generates alone (vllm/v1/engine/detokenizer.py).
    """
    if not request.get("include_stop_str_in_output"):
        return False
    stop = request.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    return any(text.endswith(each[:length]) for each in stops for length in range(1, len(each)))
