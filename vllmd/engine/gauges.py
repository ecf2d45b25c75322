"""What an engine says of its own load, read from vLLM's metrics, and only while somebody wants to know."""

import asyncio
import math
import re
from collections import defaultdict
from dataclasses import dataclass

from vllmd.engine.client import EngineClient
from vllmd.engine.tasks import start
from vllmd.errors import EngineUnreachable

RUNNING = b"vllm:num_requests_running"
WAITING = b"vllm:num_requests_waiting"
KV_CACHE = b"vllm:kv_cache_usage_perc"

FRESH_S = 1.0
"""A busy engine has better things to do than to be asked more often than this."""

PATIENCE_S = 0.25
"""Nobody who wants to know how vllmd is waits longer than this for an engine that may hang."""

STALE_S = 5.0
"""What an engine said so long ago is no longer told, and an answer that takes so long is not waited for."""

TRACE = '"GET /metrics HTTP/1.1" 200 OK'
"""How the line ends that the engine's web server logs for each of these questions."""

_GAUGE = re.compile(rb"^(%b)(?:\{.*\})? ([0-9.e+-]+)$" % b"|".join((RUNNING, WAITING, KV_CACHE)), re.M)


@dataclass(frozen=True)
class Gauges:
    """An engine's load.

    Args:
        running: requests that it computes.
        waiting: requests that wait in it for their turn.
        kv_cache_usage: the part of its KV cache that is in use, 0 to 1.
    """

    running: int
    waiting: int
    kv_cache_usage: float


def read(metrics: bytes) -> Gauges | None:
    """The load that vLLM's `/metrics` tells (vllm/v1/metrics/loggers.py); None if it does not.

    With data parallelism each part tells its own: requests add up, and of the caches it is the mean.
    """
    told: dict[bytes, list[float]] = defaultdict(list)
    try:
        for name, value in _GAUGE.findall(metrics):
            told[name].append(float(value))
        usage = sum(told[KV_CACHE]) / len(told[KV_CACHE])
        return Gauges(int(sum(told[RUNNING])), int(sum(told[WAITING])), min(1.0, max(0.0, usage)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


class Scraping:
    """Asks one generation of an engine for its gauges, at most once a second however many want to know.

    Args:
        client: the engine's.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._gauges: Gauges | None = None
        self._asked_at = self._told_at = -math.inf

    async def latest(self) -> Gauges | None:
        """What the engine says, or said a moment ago. An answer that takes longer is there for who asks next."""
        now = asyncio.get_running_loop().time
        if (self._task is None or self._task.done()) and now() >= self._asked_at + FRESH_S:
            self._asked_at, self._task = now(), start(self._scrape())
        if self._task and not self._task.done():
            await asyncio.wait([self._task], timeout=PATIENCE_S)
        return self._gauges if now() < self._told_at + STALE_S else None

    async def _scrape(self) -> None:
        try:
            async with asyncio.timeout(STALE_S), self._client.send("GET", "/metrics") as exchange:
                self._gauges = read(await exchange.read())
        except (TimeoutError, EngineUnreachable):
            return
        self._told_at = asyncio.get_running_loop().time()
