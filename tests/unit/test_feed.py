"""One list of changes for everybody: in order, without gaps, and never waiting for anybody."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.feed import Entry, Feed
from vllmd.statuses import ModelStatus


def status(state: object) -> ModelStatus:
    return ModelStatus("m", state=str(state))


def published(count: int, keep: int = 1024) -> Feed:
    feed = Feed(keep)
    for number in range(1, count + 1):
        feed.publish(status(number))
    return feed


async def soon(feed: Feed, number: int) -> tuple[Sequence[Entry], int]:
    async with asyncio.timeout(10):
        return await feed.after(number)


async def test_entries_are_numbered_from_one() -> None:
    feed = published(3)
    assert feed.last == 3
    entries, missed = await soon(feed, 0)
    assert (list(entries), missed) == ([Entry(n, status(n)) for n in (1, 2, 3)], 0)


async def test_a_reader_gets_what_is_later() -> None:
    entries, missed = await soon(published(5), 3)
    assert ([entry.number for entry in entries], missed) == ([4, 5], 0)


async def test_a_slow_reader_is_told_how_much_it_missed() -> None:
    entries, missed = await soon(published(10, keep=3), 2)
    assert ([entry.number for entry in entries], missed) == ([8, 9, 10], 5)


async def test_a_reader_waits_for_the_next_entry() -> None:
    feed = published(2)
    reader = asyncio.create_task(soon(feed, 2))
    await asyncio.sleep(0)
    assert not reader.done()
    feed.publish(status("next"))
    entries, missed = await reader
    assert (list(entries), missed) == ([Entry(3, status("next"))], 0)


async def test_a_reader_ahead_of_its_time_waits_until_its_number_is_reached() -> None:
    feed = Feed()
    reader = asyncio.create_task(soon(feed, 2))
    for number in (1, 2, 3):
        await asyncio.sleep(0)
        assert not reader.done()
        feed.publish(status(number))
    assert [entry.number for entry in (await reader)[0]] == [3]


async def test_every_reader_is_woken_by_one_entry() -> None:
    feed = Feed()
    readers = [asyncio.create_task(soon(feed, 0)) for _ in range(50)]
    await asyncio.sleep(0)
    feed.publish(status("on"))
    assert [len(entries) for entries, _ in await asyncio.gather(*readers)] == [1] * 50


async def test_entries_published_at_once_are_read_at_once() -> None:
    feed = Feed()
    reader = asyncio.create_task(soon(feed, 0))
    await asyncio.sleep(0)
    feed.publish(status(1))
    feed.publish(status(2))
    assert len((await reader)[0]) == 2


async def test_a_reader_that_leaves_harms_nobody() -> None:
    feed = Feed()
    staying, leaving = asyncio.create_task(soon(feed, 0)), asyncio.create_task(soon(feed, 0))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    feed.publish(status("on"))
    assert (await staying)[1] == 0
    assert leaving.cancelled()


async def test_what_was_read_is_not_changed_afterwards() -> None:
    feed = published(2)
    entries, _ = await soon(feed, 0)
    feed.publish(status(3))
    assert len(entries) == 2


@given(st.lists(st.integers(0, 7), max_size=20), st.integers(1, 10))
def test_a_reader_sees_every_entry_once_or_is_told_that_it_is_gone(bursts: list[int], keep: int) -> None:
    """Between two readings come bursts of entries; seen and missed together are all."""

    async def read() -> None:
        feed, last, seen, lost = Feed(keep), 0, list[int](), 0
        for burst in bursts:
            for _ in range(burst):
                feed.publish(status("x"))
            if feed.last > last:
                entries, missed = await soon(feed, last)
                numbers = [entry.number for entry in entries]
                assert numbers == list(range(last + missed + 1, feed.last + 1))
                assert len(numbers) <= keep
                seen, lost, last = seen + numbers, lost + missed, numbers[-1]
        assert len(seen) + lost == sum(bursts)
        assert lost == 0 or max(bursts) > keep

    asyncio.run(read())
