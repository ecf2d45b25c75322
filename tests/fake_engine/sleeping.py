"""Sleep mode, as vLLM 0.32.0 has it: the scheduler pauses, then the executor lets memory go; a wake undoes both.

The two are not tied together, in life as here: after a sleep that failed the scheduler stays paused, and a wake that
comes while a sleep still waits for requests lets go on what will lose its memory a moment later.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import virtual_gpus

from .answers import HttpError, invalid
from .claim import Claim
from .dialects import compact
from .generation import DEAD, Generator
from .http import JSON, Request
from .knobs import Controls, Flags
from .routes import NOT_FOUND, WRONG_METHOD, Answer

TAGS = frozenset({"weights", "kv_cache"})
MODES = ("abort", "wait", "keep")
METHODS = {"/sleep": "POST", "/wake_up": "POST", "/is_sleeping": "GET", "/collective_rpc": "POST"}
NO_METHOD = (
    "Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no attribute '{}'', "
    "please check the stack trace above for the root cause"
)


class Sleeper:
    """Whether the engine sleeps, and what of it.

    Args:
        crash: ends the process as the death of EngineCore does.
    """

    def __init__(
        self, flags: Flags, controls: Controls, generator: Generator, claim: Claim, crash: Callable[[], None]
    ) -> None:
        self._flags, self._controls, self._generator, self._claim = flags, controls, generator, claim
        self._crash = crash
        self._asleep: set[str] = set()
        self._freed = False
        self._core = asyncio.Lock()  # EngineCore does one thing at a time
        self._orders: set[asyncio.Task[Any]] = set()
        generator.memory_is_gone = self._touched

    async def answer(self, request: Request) -> Answer:
        """Answers what the routes of sleep mode are asked; an order is carried out even if its client leaves."""
        if not int(os.environ.get("VLLM_SERVER_DEV_MODE", "0")):
            return NOT_FOUND
        if request.method != METHODS[request.path]:
            return WRONG_METHOD
        if self._generator.refusal:
            raise HttpError(500, self._generator.refusal, "InternalServerError")
        order = asyncio.create_task(self._carry_out(request))
        self._orders.add(order)
        order.add_done_callback(self._done)
        return 200, compact(await asyncio.shield(order)), JSON

    async def _carry_out(self, request: Request) -> dict[str, Any]:
        match request.path:
            case "/sleep":
                return await self._sleep(parse_qs(request.query))
            case "/wake_up":
                return await self._wake_up(parse_qs(request.query).get("tags"))
            case "/collective_rpc":
                return await self._collective_rpc(_method(request.body))
        return await self._is_sleeping()

    def _done(self, order: asyncio.Task[Any]) -> None:
        self._orders.discard(order)
        if not order.cancelled():
            order.exception()  # whoever wanted to know may have left

    # ── the routes ──

    async def _sleep(self, query: dict[str, list[str]]) -> dict[str, Any]:
        level, mode = _level(query.get("level", ["1"])[-1]), _mode(query.get("mode", ["abort"])[-1])
        self._controls.note("sleep", level=level, mode=mode)
        await self._generator.pause(mode)
        async with self._busy():
            knobs = self._controls.now
            await self._come_to_pass("sleep", knobs.sleep, knobs.sleep_s)
            if level and "weights" not in self._asleep:
                self._fall_asleep(level, knobs.sleep)
        return {"status": "sleeping", "level": level}

    async def _wake_up(self, tags: list[str] | None) -> dict[str, Any]:
        self._controls.note("wake", tags=tags)
        async with self._busy():
            knobs = self._controls.now
            await self._come_to_pass("wake_up", knobs.wake, knobs.wake_s)
            wanted = self._asleep if tags is None else set(tags) - {"scheduling"}
            if wanted <= self._asleep:
                self._rise(self._asleep - wanted)
            if not self._asleep:
                self._generator.resume(mute=knobs.wake == "mute")
        return {"status": "sleeping" if self._asleep else "awake", "tags": tags}

    async def _is_sleeping(self) -> dict[str, Any]:
        async with self._busy():
            return {"is_sleeping": self._generator.paused or bool(self._asleep)}

    async def _collective_rpc(self, method: str) -> dict[str, Any]:
        async with self._busy():
            if method != "reload_weights":
                raise HttpError(500, NO_METHOD.format(method), "InternalServerError")
            self._controls.note("reload")
            await self._come_to_pass(method, self._controls.now.reload, 0)
            if self._touched({"weights"}):
                raise HttpError(500, DEAD, "InternalServerError")
            self._generator.has_no_weights = False
        return {"results": [None]}

    # ── what they do ──

    @asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        """EngineCore's turn."""
        async with self._core:
            await self._generator.core_runs()
            yield

    async def _come_to_pass(self, order: str, how: str, seconds: float) -> None:
        """Takes its time and meets its fate, a word of the knobs SLEEP, WAKE or RELOAD."""
        await asyncio.sleep(seconds)
        if how == "hangs":
            await asyncio.Event().wait()
        if how == "dies":
            self._crash()
            raise HttpError(500, DEAD, "InternalServerError")
        if how == "refuses":
            raise _failed(order, "refused by the test")

    def _fall_asleep(self, level: int, how: str) -> None:
        self._asleep = set(TAGS)
        self._freed = self._flags.enable_sleep_mode and how != "lies"
        if self._freed:
            self._generator.has_no_weights = level == 2 or self._generator.has_no_weights
            self._claim.sleep()

    def _rise(self, still: set[str]) -> None:
        """Takes back the memory of all but those tags: half of it is for the weights, half for the KV cache."""
        try:
            if self._freed:
                self._claim.wake(1 - len(still) / len(TAGS))
        except virtual_gpus.NotFreeError as error:
            raise _failed("wake_up", "CUDA Error: out of memory") from error
        self._asleep = still

    def _touched(self, tags: Set[str] = TAGS) -> bool:
        """Whether memory that was to be used is not there: that is the end (in CUDA an illegal access)."""
        gone = self._freed and bool(self._asleep & tags)
        if gone:
            self._crash()
        return gone


def _level(text: str) -> int:
    if not text.isdigit():
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise invalid("int_parsing", "query.level", message, text)
    if int(text) > 2:
        message = "Input should be less than or equal to 2"
        raise invalid("less_than_equal", "query.level", message, text, ", 'ctx': {'le': 2}")
    return int(text)


def _mode(text: str) -> str:
    if text not in MODES:
        choice = "'abort', 'wait' or 'keep'"
        more = f", 'ctx': {{'expected': {choice!r}}}"
        raise invalid("literal_error", "query.mode", f"Input should be {choice}", text, more)
    return text


def _method(raw: bytes) -> str:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise HttpError(400, f"JSON decode error: {error}", "Bad Request") from error
    if not isinstance(body, dict):
        raise HttpError(400, "Request body must be a JSON object", "Bad Request")
    if body.get("method") is None:
        raise HttpError(400, "Missing 'method' in request body", "Bad Request")
    return str(body["method"])


def _failed(order: str, cause: str) -> HttpError:
    return HttpError(500, f"Call to {order} method failed: {cause}", "InternalServerError")
