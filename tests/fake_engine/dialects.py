"""The bytes of each API's events and bodies, key by key as vLLM 0.32.0 wrote them."""

import json
from json.encoder import encode_basestring
from typing import Any

from .answers import Job, Json

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
FINGERPRINT = "vllm-0.32.0-810bb3bd"
MARK = "<the token>"


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def data(event: Json) -> bytes:
    return b"data: %b\n\n" % compact(event)


def named(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), compact(event))


def nulls(*names: str) -> Json:
    return dict.fromkeys(names)


class Dialect:
    """How one API spells an answer: `opening`, one `token` each, `closing`; or `whole`; or, too soon, `error`."""

    prefix = ""
    needs = ""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._before, _, self._after = self._token(MARK).partition(encode_basestring(MARK).encode())

    def token(self, text: str, finish: str = "") -> bytes:
        """One token's event; the last one has a finish reason. The others are the fast path: prebuilt but the text."""
        if finish or self.job.wants("continuous_usage_stats"):
            return self._token(text, finish)
        return b"%b%b%b" % (self._before, encode_basestring(text).encode(), self._after)

    def opening(self) -> list[bytes]:
        return []

    def _token(self, text: str, finish: str = "") -> bytes:
        raise NotImplementedError

    def closing(self, finish: str) -> list[bytes]:
        raise NotImplementedError

    def whole(self, finish: str) -> Json:
        raise NotImplementedError

    def error(self, message: str, kind: str, code: int) -> list[bytes]:
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return [b"data: %b\n\n" % json.dumps(body).encode(), DONE]


class Chat(Dialect):
    """/v1/chat/completions: a chunk with the role, a chunk for each token, usage if wanted, [DONE]."""

    prefix, needs, kind = "chatcmpl-", "messages", "chat.completion.chunk"

    def opening(self) -> list[bytes]:
        choice = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [data(self._chunk(choice) | nulls("prompt_token_ids", "prompt_text"))]

    def _token(self, text: str, finish: str = "") -> bytes:
        event = self._chunk(self._choice(text, finish))
        if finish and not self.job.wants("include_usage"):
            event["system_fingerprint"] = FINGERPRINT
        return data(event)

    def closing(self, finish: str) -> list[bytes]:
        if not self.job.wants("include_usage"):
            return [DONE]
        return [data(self._facts(self.kind, []) | {"usage": self._usage(), "system_fingerprint": FINGERPRINT}), DONE]

    def whole(self, finish: str) -> Json:
        message = {"role": "assistant", "content": self.job.text}
        message |= nulls("refusal", "annotations", "audio", "function_call", "reasoning")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        choice |= nulls("stop_reason", "token_ids", "routed_experts")
        rest = nulls("prompt_logprobs", "prompt_token_ids", "prompt_text", *HANDED_ON)
        return self._whole("chat.completion", choice) | rest

    def _choice(self, text: str, finish: str) -> Json:
        choice = {"delta": {"content": text}, "logprobs": None, "finish_reason": finish or None}
        return choice | nulls(*(["stop_reason"] if finish else []), "token_ids")

    def _chunk(self, choice: Json) -> Json:
        event = self._facts(self.kind, [{"index": 0, **choice}])
        if self.job.wants("continuous_usage_stats"):
            event["usage"] = self._usage() | nulls("completion_tokens_details")
        return event

    def _facts(self, kind: str, choices: list[Json]) -> Json:
        job = self.job
        return {"id": job.id, "object": kind, "created": job.created, "model": job.model, "choices": choices}

    def _whole(self, kind: str, choice: Json) -> Json:
        usage = self._usage() | nulls("prompt_tokens_details", "completion_tokens_details")
        ends = {"service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
        return self._facts(kind, [choice]) | ends

    def _usage(self) -> Json:
        prompt, sent = self.job.prompt_tokens, self.job.sent
        return {"prompt_tokens": prompt, "total_tokens": prompt + sent, "completion_tokens": sent}


HANDED_ON = ("kv_transfer_params", "ec_transfer_params", "metrics")


class Completions(Chat):
    """/v1/completions: as chat, without the first chunk."""

    prefix, needs, kind = "cmpl-", "prompt", "text_completion"

    def opening(self) -> list[bytes]:
        return []

    def whole(self, finish: str) -> Json:
        choice = {"index": 0, "text": self.job.text, "logprobs": None, "finish_reason": finish}
        choice |= nulls("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts")
        return self._whole(self.kind, choice) | nulls(*HANDED_ON)

    def _choice(self, text: str, finish: str) -> Json:
        choice = {"text": text, "logprobs": None, "finish_reason": finish or None}
        return choice | nulls("stop_reason", "prompt_token_ids", "token_ids")


class Messages(Dialect):
    """/v1/messages: Anthropic's events, no [DONE] but after an error."""

    prefix, needs = "chatcmpl-", "messages"
    reasons = {"stop": "end_turn", "length": "max_tokens"}  # noqa: RUF012

    def opening(self) -> list[bytes]:
        message = self._message([], None) | {"usage": self._usage()}
        start = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
        return [named({"type": "message_start", "message": message}), named(start)]

    def _token(self, text: str, finish: str = "") -> bytes:
        delta = {"type": "text_delta", "text": text}
        return named({"type": "content_block_delta", "delta": delta, "index": 0})

    def closing(self, finish: str) -> list[bytes]:
        delta = {"stop_reason": self.reasons.get(finish), "stop_sequence": None}
        last = {"type": "message_delta", "delta": delta, "usage": self._usage()}
        return [named({"type": "content_block_stop", "index": 0}), named(last), named({"type": "message_stop"})]

    def whole(self, finish: str) -> Json:
        content = [{"type": "text", "text": self.job.text}]
        return self._message(content, self.reasons.get(finish)) | {"usage": self._usage()}

    def error(self, message: str, kind: str, code: int) -> list[bytes]:
        return [named({"type": "error", "error": {"type": "internal_error", "message": message}}), DONE]

    def _message(self, content: list[Json], reason: str | None) -> Json:
        facts = {"id": self.job.id, "type": "message", "role": "assistant", "content": content, "model": self.job.model}
        return facts | {"stop_reason": reason, "stop_sequence": None}

    def _usage(self) -> Json:
        return {"input_tokens": self.job.prompt_tokens, "output_tokens": self.job.sent}


class Responses(Dialect):
    """/v1/responses: numbered events, no [DONE]."""

    prefix, needs = "resp_", "input"

    def __init__(self, job: Job) -> None:
        self._item_id = "msg_" + job.id.removeprefix(self.prefix)
        self._place = {"item_id": self._item_id, "output_index": 0}
        super().__init__(job)

    def opening(self) -> list[bytes]:
        begun = self._response("in_progress", [])
        item = self._item("in_progress", [])
        return [
            named({"response": begun, "sequence_number": 0, "type": "response.created"}),
            named({"response": begun, "sequence_number": 1, "type": "response.in_progress"}),
            named({"item": item, "output_index": 0, "sequence_number": 2, "type": "response.output_item.added"}),
            named(self._part_event("added", 3, "", [])),
        ]

    def token(self, text: str, finish: str = "") -> bytes:
        return self._token(text)

    def _token(self, text: str, finish: str = "") -> bytes:
        facts = {"content_index": 0, "delta": text, "item_id": self._item_id, "logprobs": [], "output_index": 0}
        return named(facts | {"sequence_number": 3 + self.job.sent, "type": "response.output_text.delta"})

    def closing(self, finish: str) -> list[bytes]:
        text, number = self.job.text, 4 + self.job.sent
        said = {"content_index": 0, "item_id": self._item_id, "logprobs": [], "output_index": 0}
        said |= {"sequence_number": number, "text": text, "type": "response.output_text.done"}
        item = self._item("completed", [self._part(text, None)])
        done = {"item": item, "output_index": 0, "sequence_number": number + 2, "type": "response.output_item.done"}
        last = {"response": self.whole(finish), "sequence_number": number + 3, "type": "response.completed"}
        return [*map(named, (said, self._part_event("done", number + 1, text, None), done, last))]

    def whole(self, finish: str) -> Json:
        item = self._item("completed", [self._part(self.job.text, None)])
        return self._response("incomplete" if finish == "length" else "completed", [item])

    def error(self, message: str, kind: str, code: int) -> list[bytes]:
        return [named({"type": "error", "code": str(code), "message": message, "param": None, "sequence_number": 0})]

    def _part_event(self, what: str, number: int, text: str, logprobs: Any) -> Json:
        place = {"content_index": 0, **self._place, "part": self._part(text, logprobs)}
        return place | {"sequence_number": number, "type": f"response.content_part.{what}"}

    def _part(self, text: str, logprobs: Any) -> Json:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _item(self, status: str, content: list[Json]) -> Json:
        facts = {"id": self._item_id, "content": content, "role": "assistant", "status": status}
        return facts | {"type": "message", "phase": None}

    def _response(self, status: str, output: list[Json]) -> Json:
        job, cut, temperature = self.job, status == "incomplete", self.job.body.get("temperature")
        facts: Json = {"id": job.id, "created_at": job.created}
        facts["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        facts |= nulls("instructions", "metadata") | {"model": job.model, "object": "response", "output": output}
        facts |= {"parallel_tool_calls": True, "temperature": 1.0 if temperature is None else float(temperature)}
        facts |= {"tool_choice": "none"}
        facts |= {"tools": [], "top_p": 1.0, "background": False}
        facts |= {"max_output_tokens": job.body.get("max_output_tokens")}
        facts |= nulls("max_tool_calls", "previous_response_id", "prompt", "reasoning")
        facts |= {"service_tier": "auto", "status": status, "text": None, "top_logprobs": None}
        facts |= {"truncation": "disabled", "usage": None if status == "in_progress" else self._usage(), "user": None}
        facts |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        return facts | nulls(*HANDED_ON[:2], "input_messages", "output_messages")

    def _usage(self) -> Json:
        cached = {"cached_tokens": 0, "cache_write_tokens": 0}
        thought = {"reasoning_tokens": 0, "tool_output_tokens": 0}
        return {
            "input_tokens": self.job.prompt_tokens,
            "input_tokens_details": cached | {"input_tokens_per_turn": [], "cached_tokens_per_turn": []},
            "output_tokens": self.job.sent,
            "output_tokens_details": thought | {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []},
            "total_tokens": self.job.prompt_tokens + self.job.sent,
        }


DIALECTS: dict[str, type[Dialect]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/messages": Messages,
    "/v1/responses": Responses,
}
