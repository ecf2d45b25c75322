"""One health check: a token has to come out.

vLLM answers `/health` with 200 while its engine core is stopped dead, so only work proves work. The cheapest proof is a
completion of one token. An engine that is full lets it wait; then the tokens that others get are the proof: those that
pass through here, or, as an answer in one piece shows none until it is whole, those that vLLM counts in its metrics.
"""

import asyncio
import json
import re

from vllmd.engine.client import EngineClient
from vllmd.errors import EngineUnreachable, ProbeFailed

_PATH = "/v1/completions"
_COUNTER = re.compile(rb"^vllm:generation_tokens_total(?:{.*})? (\S+)$", re.MULTILINE)


async def probe(client: EngineClient, model: str, timeout_s: float) -> None:
    """Returns when the engine has shown that it makes tokens.

    Args:
        client: the engine's.
        model: the name under which it serves its model.
        timeout_s: seconds it may take; tokens that reached clients in this time count as well, and so do those that
            vLLM counts in a quarter of that time afterwards.

    Raises:
        ProbeFailed: with the reason.
    """
    began_at = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(timeout_s):
            await _ask(client, model)
    except TimeoutError:
        if client.last_event_at <= began_at and not await _counts_tokens(client, timeout_s / 4):
            raise ProbeFailed(f"no token within {timeout_s:g} s") from None
    except EngineUnreachable as error:
        raise ProbeFailed(error.message) from error


async def _ask(client: EngineClient, model: str) -> None:
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    async with client.send("POST", _PATH, body=json.dumps(body).encode(), headers=headers) as answer:
        text = await answer.read()
    if answer.status != 200:
        raise ProbeFailed(f"the engine answered {answer.status}: {text[:200].decode(errors='replace')}")
    if not _has_token(text):
        raise ProbeFailed("the engine answered without a token")


async def _counts_tokens(client: EngineClient, within_s: float) -> bool:
    """Whether vLLM's counter of generated tokens rises."""
    try:
        async with asyncio.timeout(within_s):
            before = await _tokens(client)
            while await _tokens(client) <= before:  # noqa: ASYNC110 (vLLM tells nobody when a counter rises)
                await asyncio.sleep(within_s / 10)
    except (TimeoutError, EngineUnreachable, ValueError):
        return False
    return True


async def _tokens(client: EngineClient) -> float:
    async with client.send("GET", "/metrics") as answer:
        page = await answer.read()
    return sum(map(float, _COUNTER.findall(page)))


def _has_token(text: bytes) -> bool:
    try:
        return int(json.loads(text)["usage"]["completion_tokens"]) > 0
    except (ValueError, KeyError, TypeError):
        return False
