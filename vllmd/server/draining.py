"""The end of a daemon that serves: who is running may finish, who waits is told, and nobody is waited for for ever."""

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

from vllmd.errors import NotReady
from vllmd.server.calls import Calls
from vllmd.server.entrance import Doors

Signals = asyncio.Queue[signal.Signals]
"""Those that have come, and that nobody has looked at yet."""

CUT_SHORT_S = 5.0
"""Seconds that clients whose calls were cut short get to take the error."""

BACK_AFTER_S = 2
"""When those who could not be served had better ask again."""


async def drain(calls: Calls, doors: Doors, drain_s: float, signals: Signals, staying: Iterable[str]) -> None:
    """Lets running calls finish for `drain_s` seconds; a second signal ends the patience.

    Args:
        staying: models whose engines stay: calls of theirs that wait, or come on connections that are open, are served.
    """
    farewell = NotReady("vllmd is stopping", "ask again when it is back", BACK_AFTER_S)
    calls.close(farewell, staying)
    await unless_hurried(_last_calls(calls, doors), signals=signals, timeout_s=drain_s)
    calls.cut_short(farewell)
    with suppress(TimeoutError):
        await asyncio.wait_for(calls.wait_idle(), CUT_SHORT_S)


async def _last_calls(calls: Calls, doors: Doors) -> None:
    await doors.newcomers_have_asked()
    await calls.wait_idle()
    await doors.part()
    await calls.wait_idle()


async def unless_hurried(*works: Coroutine[Any, Any, None], signals: Signals, timeout_s: float | None = None) -> None:
    """Waits for all of `works`, but only until another signal to end or the time is up; then they are called off."""
    tasks = [asyncio.ensure_future(work) for work in works]
    hurry = asyncio.ensure_future(_hurry(signals))
    all_done = asyncio.ensure_future(asyncio.wait(tasks))
    awaited: list[asyncio.Future[Any]] = [all_done, hurry]
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for each in (*awaited, *tasks):
        each.cancel()


async def _hurry(signals: Signals) -> None:
    """Returns with a signal to end; to read the configuration is too late, and no reason to cut anybody short."""
    while await signals.get() is signal.SIGHUP:
        pass
