"""What has happened to the engines, for those who follow: nothing twice, nothing silently missed, nobody waited for."""

import asyncio

import pytest
from waiting import until

from vllmd.engine.feed import Feed
from vllmd.statuses import ModelStatus


def publish(feed: Feed, count: int) -> None:
    for _ in range(count):
        feed.publish(ModelStatus("tiny", generation=feed.last + 1))


async def test_entries_come_in_order_and_once() -> None:
    feed = Feed()
    publish(feed, 3)
    entries, missed = await feed.after(0)
    assert ([entry.number for entry in entries], missed) == ([1, 2, 3], 0)
    assert [entry.news.generation for entry in entries if isinstance(entry.news, ModelStatus)] == [1, 2, 3]
    entries, missed = await feed.after(2)
    assert ([entry.number for entry in entries], missed) == ([3], 0)


async def test_who_is_up_to_date_waits() -> None:
    feed = Feed()
    publish(feed, 3)
    waiting = [asyncio.create_task(feed.after(3)) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    publish(feed, 2)
    for task in waiting:
        entries, missed = await task
        assert ([entry.number for entry in entries], missed) == ([4, 5], 0)


@pytest.mark.parametrize(("seen", "missed"), [(0, 6), (5, 1), (6, 0), (9, 0)])
async def test_what_was_forgotten_is_counted(seen: int, missed: int) -> None:
    feed = Feed(keep=4)
    publish(feed, 10)
    entries, gone = await feed.after(seen)
    assert gone == missed
    assert entries[0].number == seen + missed + 1
    assert entries[-1].number == 10


async def test_nothing_is_lost_between_two_looks() -> None:
    feed, seen = Feed(), list[int]()

    async def follow() -> None:
        last = 0
        while last < 200:
            entries, missed = await feed.after(last)
            assert not missed
            seen.extend(entry.number for entry in entries)
            last = entries[-1].number

    async def tell() -> None:
        for number in range(200):
            publish(feed, 1)
            if number % 7 == 0:
                await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(follow())
        group.create_task(tell())
    assert seen == list(range(1, 201))


async def test_a_follower_that_gives_up_disturbs_nobody() -> None:
    feed = Feed()
    quitter, stayer = asyncio.create_task(feed.after(0)), asyncio.create_task(feed.after(0))
    await asyncio.sleep(0)
    quitter.cancel()
    await until(quitter.done, "it to give up")
    publish(feed, 1)
    entries, _ = await stayer
    assert len(entries) == 1
