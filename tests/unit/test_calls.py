"""The calls under way: counted while they are, and ended in order when the daemon stops."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from vllmd.errors import NotReady, VllmdError
from vllmd.server.calls import Call, Calls

FAREWELL = NotReady("vllmd is stopping", "ask again when it is back")


def call(model: str = "m", *, held: bool = False) -> Call:
    return Call("id", "tester", model, "/v1/x", b"{}", {}, stream=True, may_wait=True, held=held)


@contextmanager
def under_way(calls: Calls, call: Call) -> Iterator[None]:
    calls.add(call)
    try:
        yield
    finally:
        calls.discard(call)


@asynccontextmanager
async def serving(calls: Calls, *served: Call) -> AsyncIterator[list["asyncio.Task[str]"]]:
    """Each call in a task of its own, which tells how it ended; they go on until they are ended."""
    begun = asyncio.Barrier(len(served) + 1)

    async def serve(one: Call) -> str:
        try:
            with under_way(calls, one):
                await begun.wait()
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            return f"ended: {one.ended_by}"
        return "finished"

    tasks = [asyncio.create_task(serve(one)) for one in served]
    async with asyncio.timeout(30):
        await begun.wait()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def is_idle(calls: Calls) -> bool:
    waiting = asyncio.create_task(calls.wait_idle())
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    return not waiting.cancelled()


async def test_nothing_is_under_way_at_first() -> None:
    calls = Calls()
    assert (calls.count("m"), calls.held, await is_idle(calls)) == ((0, 0), 0, True)


async def test_calls_are_counted_by_model_and_by_whether_they_wait() -> None:
    calls = Calls()
    async with serving(calls, call("a"), call("a"), call("a", held=True), call("b", held=True)):
        assert (calls.count("a"), calls.count("b"), calls.count("c")) == ((2, 1), (0, 1), (0, 0))
        assert calls.held == 2
        assert not await is_idle(calls)
    assert (calls.count("a"), calls.held, await is_idle(calls)) == ((0, 0), 0, True)


async def test_a_call_that_stops_waiting_counts_as_running() -> None:
    calls, one = Calls(), call(held=True)
    async with serving(calls, one):
        assert calls.count("m") == (0, 1)
        one.held = False
        assert calls.count("m") == (1, 0)


async def test_a_call_that_fails_is_no_longer_under_way() -> None:
    calls = Calls()

    def fail() -> None:
        with under_way(calls, call()):
            assert calls.count("m") == (1, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (calls.count("m"), await is_idle(calls)) == ((0, 0), True)


async def test_closing_ends_those_that_wait_and_lets_the_others_go_on() -> None:
    calls = Calls()
    async with serving(calls, call(), call(held=True)) as (running, waiting):
        calls.close(FAREWELL)
        assert await waiting == "ended: vllmd is stopping"
        assert not running.done()
        assert calls.count("m") == (1, 0)


async def test_nothing_begins_after_closing() -> None:
    calls = Calls()
    calls.close(FAREWELL)
    with pytest.raises(NotReady) as caught, under_way(calls, call()):
        pytest.fail("it began")
    assert caught.value is FAREWELL
    assert await is_idle(calls)


async def test_cutting_short_ends_all() -> None:
    calls = Calls()
    async with serving(calls, call(), call(held=True)) as tasks:
        calls.cut_short(FAREWELL)
        assert await asyncio.gather(*tasks) == ["ended: vllmd is stopping"] * 2
        async with asyncio.timeout(30):
            await calls.wait_idle()


@pytest.mark.parametrize("end", [Calls.close, Calls.cut_short])
async def test_a_call_is_ended_once_and_keeps_its_first_reason(end: Callable[[Calls, VllmdError], None]) -> None:
    calls, one = Calls(), call(held=True)
    ended: list[str] = []

    async def serve() -> None:
        with under_way(calls, one):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(str(one.ended_by))
            await asyncio.sleep(0)  # the farewell to its client: nobody interrupts it
            ended.append("told")

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    end(calls, FAREWELL)
    await asyncio.sleep(0)
    calls.cut_short(NotReady("too late"))
    await task
    assert ended == ["vllmd is stopping", "told"]


async def test_waiting_for_idleness_ends_with_the_last_call() -> None:
    calls = Calls()
    async with serving(calls, call(), call()) as (first, second):
        idle = asyncio.create_task(calls.wait_idle())
        first.cancel()
        await first
        await asyncio.sleep(0)
        assert not idle.done()
        second.cancel()
        async with asyncio.timeout(30):
            await idle


async def test_two_calls_are_two_even_if_they_look_the_same() -> None:
    calls = Calls()
    one, other = call(), call()
    with under_way(calls, one), under_way(calls, other):
        assert calls.count("m") == (2, 0)
