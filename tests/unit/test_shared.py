"""What is dear to find out: once for all who ask, not for long, and never across what is known to have changed."""

import asyncio

import pytest

from vllmd.engine.shared import Shared


class Finder:
    """Finds its own count of calls, when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        found = self.begun
        await self.may_end.wait()
        if self.error:
            raise self.error
        return found


async def test_all_who_ask_at_once_get_one_answer() -> None:
    finder = Finder()
    shared = Shared(finder, 3600)
    asking = [asyncio.create_task(shared.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.wait(asking[:1])
    finder.may_end.set()
    assert await asyncio.gather(*asking[1:]) == [1] * 4, "who leaves takes it from nobody"
    assert await shared.get("a") == 1
    assert await shared.get("b") == 2, "something has changed"


async def test_an_answer_is_not_good_for_long() -> None:
    finder = Finder()
    finder.may_end.set()
    shared = Shared(finder, 0)
    assert [await shared.get(), await shared.get()] == [1, 2]


async def test_a_failure_is_told_and_not_remembered() -> None:
    finder = Finder()
    finder.error = OSError("no disk")
    finder.may_end.set()
    shared = Shared(finder, 3600)
    with pytest.raises(OSError, match="no disk"):
        await shared.get()
    finder.error = None
    assert await shared.get() == 2
