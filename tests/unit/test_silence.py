"""Watching for silence, on a clock that jumps ahead whenever there is nothing to do: minutes pass in no time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vllmd.server.silence import Silence


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for the next timer it moves the clock there."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self.now_s += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


class Stream:
    """What is done to a stream, and when.

    Args:
        write: what writing a comment is like.
    """

    def __init__(self, write: Callable[[], Coroutine[Any, Any, object]] = lambda: asyncio.sleep(0)) -> None:
        self.kept_alive_at: list[float] = []
        self.given_up_at: list[float] = []
        self._write = write

    def watch(self, *, keepalive_s: float, stall_s: float) -> Silence:
        return Silence(keepalive_s, stall_s, self._keep_alive, lambda: self.given_up_at.append(now()))

    async def _keep_alive(self) -> None:
        self.kept_alive_at.append(now())
        await self._write()


def now() -> float:
    return asyncio.get_running_loop().time()


def run(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        runner.run(story)


def test_a_silent_stream_is_kept_alive_and_given_up_once() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=2, stall_s=8) as silence:
            await asyncio.sleep(7)
            assert not silence.is_stalled
            await asyncio.sleep(100)
            assert silence.is_stalled
        assert stream.kept_alive_at == [2, 4, 6]
        assert stream.given_up_at == [8]

    run(story())


def test_a_stream_that_speaks_is_left_in_peace() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=2, stall_s=8) as silence:
            for _ in range(1000):
                await asyncio.sleep(1)
                silence.heard()
        assert (stream.kept_alive_at, stream.given_up_at, silence.is_stalled) == ([], [], False)

    run(story())


def test_every_word_starts_the_silence_anew() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=4, stall_s=16) as silence:
            await asyncio.sleep(7)  # kept alive at 4
            silence.heard()
            await asyncio.sleep(15)  # and at 7 + 4, + 8, + 12, but not yet given up
            assert (stream.kept_alive_at, stream.given_up_at) == ([4, 11, 15, 19], [])
            await asyncio.sleep(1)
            await asyncio.sleep(0)
        assert stream.given_up_at == [23]

    run(story())


def test_a_stall_shorter_than_the_keep_alive() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=100, stall_s=8):
            await asyncio.sleep(200)
        assert (stream.kept_alive_at, stream.given_up_at) == ([], [8])

    run(story())


def test_nothing_happens_after_the_end() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=2, stall_s=8):
            await asyncio.sleep(1)
        await asyncio.sleep(100)
        assert (stream.kept_alive_at, stream.given_up_at) == ([], [])

    run(story())


def test_the_end_does_not_wait_for_a_comment_that_nobody_reads() -> None:
    async def story() -> None:
        stream = Stream(write=lambda: asyncio.sleep(1000))
        async with stream.watch(keepalive_s=2, stall_s=8):
            await asyncio.sleep(3)
        assert now() == 3

    run(story())


def test_a_client_that_does_not_read_its_comment_is_no_silent_engine() -> None:
    async def story() -> None:
        stream = Stream(write=lambda: asyncio.sleep(100))
        async with stream.watch(keepalive_s=2, stall_s=8) as silence:
            await asyncio.sleep(101)
            silence.heard()
            await asyncio.sleep(7)
            assert not silence.is_stalled

    run(story())


def test_what_is_being_passed_on_is_no_silence() -> None:
    async def story() -> None:
        stream = Stream()
        async with stream.watch(keepalive_s=2, stall_s=8) as silence:
            await asyncio.sleep(1)
            silence.pause()
            await asyncio.sleep(100)
            assert (stream.kept_alive_at, stream.given_up_at) == ([], [])
            silence.heard()
            await asyncio.sleep(20)
        assert stream.kept_alive_at == [103, 105, 107]
        assert stream.given_up_at == [109]

    run(story())


def test_a_client_that_has_left_ends_the_watch_without_noise() -> None:
    async def leave() -> None:
        raise ConnectionResetError("gone")

    async def story() -> None:
        stream = Stream(write=leave)
        async with stream.watch(keepalive_s=2, stall_s=8) as silence:
            await asyncio.sleep(100)
        assert (stream.kept_alive_at, stream.given_up_at, silence.is_stalled) == ([2], [], False)

    run(story())


async def _stumble() -> None:
    raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_is_not_hidden() -> None:
    async def story() -> None:
        stream = Stream(write=_stumble)
        async with stream.watch(keepalive_s=2, stall_s=8):
            await asyncio.sleep(100)

    with pytest.raises(ZeroDivisionError):
        run(story())


def test_a_mistake_does_not_hide_another() -> None:
    async def story() -> None:
        async with Stream(write=_stumble).watch(keepalive_s=2, stall_s=8):
            await asyncio.sleep(100)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(story())


async def test_on_a_real_clock() -> None:
    given_up = asyncio.Event()
    comments = 0

    async def keep_alive() -> None:
        nonlocal comments
        comments += 1

    async with asyncio.timeout(30), Silence(0.01, 0.2, keep_alive, given_up.set) as silence:
        await given_up.wait()
    assert silence.is_stalled
    assert comments > 0
