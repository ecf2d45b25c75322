"""The last patience: it ends with another signal to end, and with no other."""

import asyncio
import signal

import pytest

from vllmd.server.draining import unless_hurried


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_only_a_signal_to_end_ends_the_patience(number: signal.Signals) -> None:
    signals, may_end, is_off = asyncio.Queue[signal.Signals](), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            is_off.set()
            raise

    waiting = asyncio.create_task(unless_hurried(work(), signals=signals))
    signals.put_nowait(number)
    for _ in range(10):
        await asyncio.sleep(0)
    assert waiting.done() is is_off.is_set() is (number is not signal.SIGHUP)
    may_end.set()
    await waiting
