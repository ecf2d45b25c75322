"""Tasks whose end is nobody's to wait for, and which must not fail in silence."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begins `work`; whoever keeps the task may `cancel` it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_complain)
    return task


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.critical("internal error: %s", error, exc_info=error)


async def cancel(task: asyncio.Task[None] | None) -> None:
    """Calls a task off, if there is one, and returns when it has ended."""
    if task and not task.done():
        task.cancel()
        await asyncio.wait([task])
