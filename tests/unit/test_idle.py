"""Who is waited for before a daemon that nobody needs may end."""

import asyncio
from typing import cast

from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Job, Jobs, Kind
from vllmd.server.calls import Calls
from vllmd.server.entrance import Doors
from vllmd.server.idle import until_idle


class Unmoved:
    """Doors where nobody comes."""

    def close(self) -> None: ...

    async def open(self) -> None: ...

    async def newcomers_have_asked(self) -> None: ...


async def test_a_job_that_says_nothing_for_long_is_waited_for() -> None:
    feed, done = Feed(), asyncio.Event()
    jobs = Jobs(feed)

    async def work(job: Job[None]) -> None:
        await done.wait()

    jobs.ask(Kind.PULL, "m", work)
    idle = asyncio.create_task(until_idle(0.01, cast(Doors, Unmoved()), Calls(), {}, jobs, feed))
    await asyncio.wait([idle], timeout=0.5)
    assert not idle.done()
    done.set()
    await asyncio.wait_for(idle, 30)
