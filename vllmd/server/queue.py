"""Waiting for an engine: requests are held, not refused, while it loads or is being replaced."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from vllmd import config
from vllmd.engine.client import EngineClient
from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineFailed, NotReady, Overloaded, Unavailable
from vllmd.lifecycle import State
from vllmd.server.calls import Call, Calls

TICK_S = 1.0
"""A held stream is told once in this time how far the model is."""

RETRY_AFTER_S = 5
"""What a refused client is told while nobody knows how long a load will take."""

Tell = Callable[[str], Awaitable[None]]


class Queue:
    """The calls that wait.

    Args:
        settings: how long, and how many.
        feed: changes when an engine's state does.
        calls: all calls under way.
    """

    def __init__(self, settings: config.Queue, feed: Feed, calls: Calls) -> None:
        self._settings = settings
        self._feed = feed
        self._calls = calls

    async def engine_for(self, call: Call, supervisor: Supervisor, tell: Tell) -> EngineClient:
        """The way to the engine of `supervisor`, as soon as it is ready.

        Args:
            call: the request; it counts as held meanwhile.
            supervisor: its model's.
            tell: brings a line of status to the client; called only for streams, and after `queue.status_after_s`.

        Raises:
            EngineFailed: the supervisor has given up.
            NotReady: the model is not loaded, or did not become ready in time, or the client does not want to wait.
            Overloaded: too many wait already.
        """
        if client := supervisor.client:
            return client
        self._admit(call, supervisor)
        call.held = True
        try:
            async with asyncio.timeout(self._settings.wait_s):
                return await self._hold(call, supervisor, tell)
        except TimeoutError:
            waited = f"waited {self._settings.wait_s:g} s for {supervisor.name}: {supervisor.status.sentence()}"
            raise NotReady(waited, "see: vllmctl status", RETRY_AFTER_S) from None
        finally:
            call.held = False

    def _admit(self, call: Call, supervisor: Supervisor) -> None:
        self._refuse_if_hopeless(supervisor)
        if not call.may_wait:
            raise not_ready(supervisor)
        if self._calls.held >= self._settings.limit:
            full = f"{self._settings.limit} requests wait for a model already"
            raise Overloaded(full, "try again later, or raise queue.limit", RETRY_AFTER_S)

    def _refuse_if_hopeless(self, supervisor: Supervisor) -> None:
        if supervisor.engine.state in (State.FAILED, State.STOPPED):
            raise not_ready(supervisor)

    async def _hold(self, call: Call, supervisor: Supervisor, tell: Tell) -> EngineClient:
        now = asyncio.get_running_loop().time
        tell_from = now() + self._settings.status_after_s
        while (client := supervisor.client) is None:
            self._refuse_if_hopeless(supervisor)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._feed.after(self._feed.last), TICK_S)
            if call.stream and supervisor.client is None and now() >= tell_from:
                await tell(supervisor.status.sentence())
                tell_from = now() + TICK_S
        return client


def not_ready(supervisor: Supervisor) -> Unavailable:
    """Why the model of `supervisor` cannot answer now, as an error."""
    engine, verdict = supervisor.engine, supervisor.engine.verdict
    if engine.state is State.FAILED and verdict:
        return EngineFailed(f"{supervisor.name} failed: {verdict.message}", verdict.hint or "see: vllmctl status")
    if engine.state is State.STOPPED:
        return NotReady(f"{supervisor.name} is not loaded", f"load it:  vllmctl load {supervisor.name}")
    hint = verdict.hint if verdict and engine.crashes else ""
    return NotReady(f"{supervisor.name} is not ready: {supervisor.status.sentence()}", hint, RETRY_AFTER_S)
