"""One health check: the engine has to show that it makes tokens.

vLLM answers `/health` with 200 while its engine core is stopped dead, so only work proves work. An *idle* engine is
asked for one token. A *busy* one is left alone: the answers that flow to clients are the proof, and where nothing flows
(long prefills, answers that come in one piece) vLLM's own token counters are, as long as they move. An engine that has
requests and shows none of it for `stall_s` hangs, however healthy it says it is.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllmd.engine.client import EngineClient
from vllmd.errors import CertainFailure, EngineRefused, EngineUnreachable, NotListening, ProbeFailed
from vllmd.lifecycle import Policy

_COMPLETIONS = "/v1/completions"
_EMBEDDINGS = "/v1/embeddings"
_COUNTERS = re.compile(rb"^vllm:(?:prompt|generation|iteration)_tokens_(?:total|sum)(?:\{[^}]*\})? ([0-9.e+]+)$", re.M)

LOOK_INTERVAL_S = 1.0
METRICS_TIMEOUT_S = 5.0

FRESH_S = 2.5
"""A proof younger than this is one for now: what passes to clients is looked at every two seconds."""

LULL_S = 5.0
"""A busy engine that is silent for so long is looked at before its time."""

SLOWEST_PREFILL_BYTES_PER_S = 200.0
"""A long prompt buys time: measured on two CPU cores under load are 75 tokens a second, some 300 bytes of text."""


async def probe(client: EngineClient, model: str, policy: Policy) -> None:
    """Returns when the engine has shown that it makes tokens.

    Args:
        client: the engine's.
        model: the name under which it serves its model.
        policy: how long it may take: `probe_timeout_s` when idle, `stall_s` (and more for long prompts) when busy.

    Raises:
        ProbeFailed: no token came; it may be a moment's weakness.
        NotListening: nobody was there to be asked.
        CertainFailure: it has work and does none of it, or refuses such requests.
    """
    if client.under_way:
        await _watch(client, policy.stall_s)
    else:
        await _ask(client, model, policy.probe_timeout_s)


async def due(client: EngineClient, after_s: float) -> None:
    """Returns when it is time for the next check: after `after_s` seconds, or once a busy engine falls silent."""
    now = asyncio.get_running_loop().time
    end = now() + after_s
    while now() < end and not (client.under_way and now() - _silent_since(client) > LULL_S):  # noqa: ASYNC110
        await asyncio.sleep(min(LOOK_INTERVAL_S, max(0.0, end - now())))  # silence is no event that could be awaited


async def _watch(client: EngineClient, stall_s: float) -> None:
    """Returns when a busy engine has moved, or is no longer busy. Raises CertainFailure."""
    now, limit_s = asyncio.get_running_loop().time, min(METRICS_TIMEOUT_S, stall_s / 2)
    watched_since, counted = now(), await _counters(client, limit_s)
    while client.under_way and now() - client.proved_at > FRESH_S:
        await asyncio.sleep(min(LOOK_INTERVAL_S, stall_s / 4))
        before, counted = counted, await _counters(client, limit_s)
        if None not in (before, counted) and counted != before:
            client.proved_at = now()
        elif now() > max(watched_since, _silent_since(client)) + stall_s + _patience_s(client):
            silent_s = now() - _silent_since(client)
            raise CertainFailure(f"requests run ({len(client.under_way)}), and no token has come for {silent_s:.0f} s")


def _silent_since(client: EngineClient) -> float:
    """When a busy engine last showed a token, or got something to do; in the event loop's time."""
    return max(client.proved_at, min((each.at for each in client.under_way), default=client.proved_at))


def _patience_s(client: EngineClient) -> float:
    """What the longest prompt under way adds to the time of silence."""
    return max((each.body_bytes for each in client.under_way), default=0) / SLOWEST_PREFILL_BYTES_PER_S


async def _counters(client: EngineClient, limit_s: float) -> float | None:
    """The sum of vLLM's token counters; None if it does not tell within that time."""
    try:
        async with asyncio.timeout(limit_s), client.send("GET", "/metrics") as exchange:
            return sum(float(value) for value in _COUNTERS.findall(await exchange.read()))
    except (TimeoutError, EngineUnreachable):
        return None


async def _ask(client: EngineClient, model: str, timeout_s: float) -> None:
    """Asks an idle engine for one token. Raises ProbeFailed or NotListening."""
    began_at = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(timeout_s):
            await _one_token(client, model)
    except TimeoutError:
        if client.proved_at <= began_at:  # tokens for clients who came meanwhile count as well
            raise ProbeFailed(f"no token within {timeout_s:g} s") from None
    except EngineRefused as error:
        raise NotListening(error.message) from error
    except EngineUnreachable as error:
        raise ProbeFailed(error.message) from error


async def _one_token(client: EngineClient, model: str) -> None:
    """The least work that proves work: a token, or a vector from a model that makes no tokens."""
    answer = await _post(client, _COMPLETIONS, {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0})
    if answer.status == 404:
        answer = await _post(client, _EMBEDDINGS, {"model": model, "input": "1"})
    if 400 <= answer.status < 500:
        raise CertainFailure(f"the engine refuses a request for one token with {answer.status}: {answer.text}")
    if answer.status != 200:
        raise ProbeFailed(f"the engine answered {answer.status}: {answer.text}")
    if not _shows_work(answer.body):
        raise ProbeFailed("the engine answered without a token")
    client.proved_at = asyncio.get_running_loop().time()


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body[:200].decode(errors="replace")


async def _post(client: EngineClient, path: str, body: Mapping[str, object]) -> _Answer:
    headers = {"Content-Type": "application/json"}
    async with client.send("POST", path, body=json.dumps(body).encode(), headers=headers) as exchange:
        return _Answer((await exchange.head()).status, await exchange.read())


def _shows_work(body: bytes) -> bool:
    """Whether an answer holds a token (`usage` counts it) or a vector (`data` has it)."""
    try:
        table = json.loads(body)
        return bool(table.get("data")) or int(table["usage"]["completion_tokens"]) > 0
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False
