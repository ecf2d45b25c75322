"""When nobody wants anything of a daemon: its own long work is wanted by somebody, also while it says nothing."""

import asyncio
from typing import cast

import pytest

from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Job, Jobs, Kind
from vllmd.server.calls import Calls
from vllmd.server.entrance import Doors
from vllmd.server.idle import until_idle


class Closable:
    """Doors before which nobody stands."""

    def close(self) -> None: ...

    async def newcomers_have_asked(self) -> None: ...

    async def open(self) -> None: ...


async def test_a_silent_job_is_waited_for() -> None:
    feed, may_end = Feed(), asyncio.Event()
    jobs = Jobs(feed)

    async def work(job: Job[None]) -> None:
        await may_end.wait()

    job = jobs.ask(Kind.PULL, "acme/m", work)
    idle = asyncio.create_task(until_idle(0.01, cast(Doors, Closable()), Calls(), {}, jobs, feed))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(idle), 0.2)
    assert not job.is_over
    may_end.set()
    await asyncio.wait_for(idle, 30)
    assert job.is_over
