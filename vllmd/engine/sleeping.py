"""vLLM's sleep mode, over the engine's private socket: the one place that spells its routes.

They are development routes (`VLLM_SERVER_DEV_MODE=1`; entrypoints/serve/…/sleep/api_router.py), and no API that vLLM
keeps: whoever calls believes an answer only when the memory is free, or a token has come. Level 1 keeps the weights in
main memory. Level 2 drops them, so that they are read from the disk again before the KV cache comes back.
"""

import json
from collections.abc import Iterable, Mapping
from urllib.parse import urlencode

from vllmd.engine.client import EngineClient
from vllmd.errors import EngineUnreachable, SleepError

_WEIGHTS, _CACHE = ("tags", "weights"), ("tags", "kv_cache")


async def put_to_sleep(client: EngineClient, level: int) -> None:
    """Returns when the engine says that it sleeps. No request may run in it.

    Mode `abort`, since with `wait` an engine that was given up on falls asleep at its next idle moment.

    Args:
        level: 1 or 2.

    Raises:
        SleepError: it refuses, or is gone.
    """
    await _post(client, "/sleep", [("level", str(level)), ("mode", "abort")])


async def wake(client: EngineClient, level: int) -> None:
    """Returns when the engine says that it is awake.

    Args:
        level: at which it was put to sleep.

    Raises:
        SleepError: it refuses, or is gone.
    """
    if level < 2:
        await _post(client, "/wake_up")
        return
    await _post(client, "/wake_up", [_WEIGHTS])
    await _post(client, "/collective_rpc", body={"method": "reload_weights"})
    await _post(client, "/wake_up", [_CACHE])


async def _post(
    client: EngineClient, path: str, query: Iterable[tuple[str, str]] = (), body: Mapping[str, object] | None = None
) -> None:
    target = f"{path}?{urlencode(list(query))}" if query else path
    data, headers = (json.dumps(body).encode(), {"Content-Type": "application/json"}) if body else (None, {})
    try:
        async with client.send("POST", target, body=data, headers=headers) as exchange:
            status, text = (await exchange.head()).status, await exchange.read()
    except EngineUnreachable as error:
        raise SleepError(f"{path}: {error.message}") from error
    if status != 200:
        raise SleepError(f"the engine answers {path} with {status}: {text[:200].decode(errors='replace')}")
