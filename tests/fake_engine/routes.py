"""The routes that generate nothing."""

import math
import os
import time
from typing import Any
from zlib import crc32

from .answers import check_partial, parse, prompt_tokens
from .dialects import DIALECTS, compact
from .generation import DEAD, Generator
from .http import JSON, Request
from .knobs import VERSION, Flags, Knobs
from .prompts import prompt_strings, split, text_of

Answer = tuple[int, bytes, str]
NOT_FOUND: Answer = (404, b'{"detail":"Not Found"}', JSON)
WRONG_METHOD: Answer = (405, b'{"detail":"Method Not Allowed"}', JSON)
METRICS = {
    "num_requests_running": ("gauge", "Number of requests in model execution batches."),
    "num_requests_waiting": ("gauge", "Number of requests waiting to be processed."),
    "kv_cache_usage_perc": ("gauge", "KV-cache usage. 1 means 100 percent usage."),
    "prompt_tokens_total": ("counter", "Number of prefill tokens processed."),
    "generation_tokens_total": ("counter", "Number of generation tokens processed."),
    "prefix_cache_queries_total": ("counter", "Prefix cache queries, in terms of number of queried tokens."),
    "prefix_cache_hits_total": ("counter", "Prefix cache hits, in terms of number of cached tokens."),
    "num_preemptions_total": ("counter", "Cumulative number of preemption from the engine."),
}


def generates(request: Request) -> bool:
    return request.method == "POST" and request.path in DIALECTS


def answer(request: Request, flags: Flags, knobs: Knobs, generator: Generator) -> Answer:
    """Status, body and media type."""
    if request.path == "/v1/embeddings" and not knobs.embeddings:
        return NOT_FOUND
    get, post = READ.get(request.path), ASKED.get(request.path)
    if request.path == "/metrics" and knobs.metrics:
        return 200, knobs.metrics.encode(), "text/plain"
    if request.method == "GET" and get:
        return get(flags, generator)
    if request.method == "POST" and post:
        return 200, compact(post[1](parse(request.body, post[0]), flags, knobs)), JSON
    return WRONG_METHOD if get or post or request.path in DIALECTS else NOT_FOUND


def _health(flags: Flags, generator: Generator) -> Answer:
    return (503 if generator.refusal == DEAD else 200), b"", JSON


def _version(flags: Flags, generator: Generator) -> Answer:
    return 200, compact({"version": VERSION}), JSON


def _load(flags: Flags, generator: Generator) -> Answer:
    return 200, compact({"server_load": generator.running}), JSON


def _models(flags: Flags, generator: Generator) -> Answer:
    return 200, compact({"object": "list", "data": [_model(name, flags) for name in flags.names]}), JSON


def _model(name: str, flags: Flags) -> dict[str, Any]:
    now = int(time.time())
    permission = {"id": f"modelperm-{os.urandom(8).hex()}", "object": "model_permission", "created": now}
    permission |= {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
    permission |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
    permission |= {"organization": "*", "group": None, "is_blocking": False}
    facts = {"id": name, "object": "model", "created": now, "owned_by": "vllm", "root": flags.model, "parent": None}
    return facts | {"max_model_len": flags.max_model_len, "permission": [permission]}


def _metrics(flags: Flags, generator: Generator) -> Answer:
    values = (
        generator.running,
        generator.waiting if generator.running or not generator.paused else 0,  # a core at rest tells nothing new
        min(1.0, generator.running / 256),
        generator.prompt_total,
        generator.generation_total,
        generator.prompt_total,  # each of them asked for, none found
        0,
        0,
    )
    lines = []
    for (name, (kind, text)), value in zip(METRICS.items(), values, strict=True):
        lines += [f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"]
        lines.append(f'vllm:{name}{{engine="0",model_name="{flags.names[0]}"}} {float(value)}')
    return 200, "\n".join([*lines, ""]).encode(), "text/plain; version=1.0.0; charset=utf-8"


def _tokenize(body: dict[str, Any], flags: Flags, knobs: Knobs) -> dict[str, Any]:
    """A text's tokens as the model would say it, or those of a conversation's prompt."""
    check_partial(body, knobs)
    texts = prompt_strings(body, knobs) if "messages" in body else split(text_of(body.get("prompt")), knobs.split)
    facts = {"count": len(texts), "max_model_len": flags.max_model_len, "tokens": [crc32(t.encode()) for t in texts]}
    return facts | {"token_strs": texts if body.get("return_token_strs") else None}


def _count(body: dict[str, Any], flags: Flags, knobs: Knobs) -> dict[str, Any]:
    return {"input_tokens": prompt_tokens(body, knobs)}


def _embed(body: dict[str, Any], flags: Flags, knobs: Knobs) -> dict[str, Any]:
    """One vector of length 1 for each input, the same for the same text."""
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    angles = [float(sum(text_of(text).encode()) % 360) for text in inputs]
    vectors = [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in angles]
    data = [{"index": i, "object": "embedding", "embedding": vector} for i, vector in enumerate(vectors)]
    count = prompt_tokens(body, knobs)
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
    facts = {"id": f"embd-{os.urandom(8).hex()}", "object": "list", "created": int(time.time())}
    return facts | {"model": flags.names[0], "data": data, "usage": usage}


READ = {
    "/health": _health,
    "/ping": _health,
    "/version": _version,
    "/load": _load,
    "/v1/models": _models,
    "/metrics": _metrics,
}
ASKED = {  # with the field that each needs
    "/tokenize": ("", _tokenize),
    "/v1/messages/count_tokens": ("messages", _count),
    "/v1/embeddings": ("input", _embed),
}
