"""One health check: a token has to come out.

vLLM answers `/health` with 200 while its engine core is stopped dead, so only work proves work. The cheapest proof is a
completion of one token. While answers flow to clients anyway, those are the proof.
"""

import asyncio
import json

from vllmd.engine.client import EngineClient
from vllmd.errors import EngineUnreachable, ProbeFailed

_PATH = "/v1/completions"


async def probe(client: EngineClient, model: str, timeout_s: float) -> None:
    """Returns when the engine has shown that it makes tokens.

    Args:
        client: the engine's.
        model: the name under which it serves its model.
        timeout_s: seconds it may take; tokens that reached clients in this time count as well.

    Raises:
        ProbeFailed: with the reason.
    """
    began_at = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(timeout_s):
            await _ask(client, model)
    except TimeoutError:
        if client.last_event_at <= began_at:
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


def _has_token(text: bytes) -> bool:
    try:
        return int(json.loads(text)["usage"]["completion_tokens"]) > 0
    except (ValueError, KeyError, TypeError):
        return False
