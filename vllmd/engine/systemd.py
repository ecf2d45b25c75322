"""What systemd hears while the daemon runs: when it is ready, what it is doing, and that it still turns."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from vllmd.engine.feed import Feed
from vllmd.engine.supervisor import Supervisor
from vllmd.lifecycle import State
from vllmd.notify import Notifier
from vllmd.sections import Current

STATUS_INTERVAL_S = 5.0
SETTLED_S = 60.0


async def tell(notifier: Notifier, supervisors: Mapping[str, Supervisor], current: Current, feed: Feed) -> None:
    """READY=1 with the first token of the default model, and a STATUS= line for every change.

    A model that comes only when somebody asks for it is not waited for: that the doors are open is all there is to say.
    """
    while True:
        supervisor = supervisors[current.config.default_model]
        status = supervisor.status
        notifier.status(f"{status.name}: {status.sentence()}")
        if supervisor.client is not None or supervisor.on_demand or status.load == "manual":
            notifier.ready()
        elif not status.is_passing or supervisor.engine.state is State.BACKOFF:
            # Unloaded, given up, or in a pause that may be long: the daemon stays and says why, though systemd still
            # waits for the first token.
            notifier.extend(SETTLED_S)
        # What passes is told again now and then, since its age or what is left of it changes.
        with suppress(TimeoutError):
            is_settled = status.state == "ready" and not notifier.is_behind
            async with asyncio.timeout(None if is_settled else STATUS_INTERVAL_S):
                await feed.after(feed.last)


async def feed_watchdog(notifier: Notifier) -> None:
    """Signs of life from the event loop; a blocked one gives none."""
    while (interval_s := notifier.watchdog_interval_s) is not None:
        notifier.watchdog()
        await asyncio.sleep(interval_s)
