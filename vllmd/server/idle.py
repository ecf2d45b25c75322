"""Ending because nobody wants anything, without overlooking somebody who does.

Between the moment in which a daemon looks idle and the one in which it ends, a client may come. So the doors are
closed first: who comes from then on waits in systemd's socket, and starts the next vllmd. Then those who were let in
are waited for. If one of them wants something the doors are opened again, and nothing has happened.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Jobs
from vllmd.engine.supervisor import Supervisor
from vllmd.server.calls import Calls
from vllmd.server.entrance import Doors


async def until_idle(
    limit_s: float, doors: Doors, calls: Calls, supervisors: Mapping[str, Supervisor], jobs: Jobs, feed: Feed
) -> None:
    """Returns when nobody has asked a model anything for `limit_s` seconds; the doors are closed then.

    A model on its way (starting, stopping, between two tries) and a job are waited for, and every change of state
    begins the time anew: somebody wanted it. Who only looks, at the status or the events, wants nothing.
    """
    while True:
        await _quiet(limit_s, calls, supervisors, jobs, feed)
        doors.close()
        await doors.newcomers_have_asked()
        if calls.is_idle and time.monotonic() - calls.idle_since >= limit_s and not _is_at_work(supervisors, jobs):
            return
        await doors.open()


async def _quiet(limit_s: float, calls: Calls, supervisors: Mapping[str, Supervisor], jobs: Jobs, feed: Feed) -> None:
    changed_at = time.monotonic()
    while True:
        await calls.wait_idle()
        left_s = max(calls.idle_since, changed_at) + limit_s - time.monotonic()
        is_at_work = _is_at_work(supervisors, jobs)
        if left_s <= 0 and not is_at_work:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(None if is_at_work else left_s):
                await feed.after(feed.last)
                changed_at = time.monotonic()


def _is_at_work(supervisors: Mapping[str, Supervisor], jobs: Jobs) -> bool:
    """Whether something is under way that ends by itself, and is told by the feed when it does."""
    return jobs.are_running or any(each.status.is_passing for each in supervisors.values())
