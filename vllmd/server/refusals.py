"""What is told to those who cannot be served now: why, and when to ask again."""

import math

from vllmd.engine.supervisor import Supervisor
from vllmd.errors import EngineFailed, NotReady, Overloaded, TooMany, Unavailable
from vllmd.lifecycle import State

RETRY_AFTER_S = 5
"""What a refused client is told while nobody knows how long it will take."""

LONGEST_RETRY_AFTER_S = 600
"""However long a load will take: it may fail, or be quicker than the last one."""

LONGEST_PAUSE_S = 60
"""However long the next try is put off: an administrator may order one before."""


def not_ready(supervisor: Supervisor) -> Unavailable:
    """Why the model of `supervisor` cannot answer now, as an error."""
    engine, verdict = supervisor.engine, supervisor.engine.verdict
    if engine.state is State.FAILED and verdict:
        return EngineFailed(f"{supervisor.name} failed: {verdict.message}", verdict.hint or "see: vllmctl status")
    if supervisor.is_out:
        return NotReady(f"{supervisor.name} is not loaded", f"load it:  vllmctl load {supervisor.name}")
    hint = verdict.hint if verdict and (engine.crashes or engine.setbacks) else ""
    return NotReady(f"{supervisor.name} is not ready: {supervisor.sentence()}", hint, retry_after_s(supervisor))


def busy(supervisor: Supervisor) -> Unavailable:
    """For a client that does not want to wait for a place in an engine that is ready."""
    message = f"{supervisor.name} works on as many requests as it takes at once"
    return Overloaded(message, "try again later, or let the request wait", retry_after_s(supervisor))


def too_late(supervisor: Supervisor, wait_s: float) -> Unavailable:
    """For one that has waited for all of `queue.wait_s`: for the engine, or for a place in one that is ready."""
    waited, after_s = f"waited {wait_s:g} s for {supervisor.name}", retry_after_s(supervisor)
    if supervisor.client is not None:
        return Overloaded(f"{waited}: it is busy with other requests", "try again later", after_s)
    return NotReady(f"{waited}: {supervisor.sentence()}", "see: vllmctl status", after_s)


def full(supervisor: Supervisor, *, own: int, held: int) -> Unavailable:
    """For one that does not, or no longer, wait because the queue is full.

    Args:
        own, held: how many of the same identity wait, and how many in all; without this one.
    """
    after_s = retry_after_s(supervisor)
    if 0 < own < held:
        filled = f"{own} of the {held} requests that wait are yours, and others wait too"
        return TooMany(filled, "wait for answers before you ask more", after_s)
    message = f"{held} requests wait for a model already"
    return Overloaded(message, "try again later, or raise queue.limit", after_s)


def at_its_limit(who: str, what: str, limit: int) -> Unavailable:
    """For one that has as many requests as one identity may have.

    Args:
        what: what they are: `running` or `waiting`.
    """
    message = f"{who} has as many requests {what} as it may: {limit}"
    return TooMany(message, "wait for answers before you ask more", RETRY_AFTER_S)


def retry_after_s(supervisor: Supervisor) -> int:
    """When it makes sense to ask again, in seconds: after the load, if it is known how long that will take; not before
    it is tried again, where it is put off; and where others are away, as seldom as they are asked."""
    engine, left_s = supervisor.engine, supervisor.status.eta_s
    if (pause_s := supervisor.pause_s) is not None:
        return min(math.ceil(pause_s) + RETRY_AFTER_S, LONGEST_PAUSE_S)
    if left_s is not None:
        return min(max(math.ceil(left_s), 1), LONGEST_RETRY_AFTER_S)
    if engine.state is State.STARTING and engine.setbacks:
        return min(max(math.ceil(supervisor.policy.backoff_s(engine.setbacks)), RETRY_AFTER_S), LONGEST_PAUSE_S)
    return RETRY_AFTER_S
