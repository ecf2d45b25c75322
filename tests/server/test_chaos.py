"""The short form of the chaos test: half a minute of faults in the order of a seed."""

import os

import chaos
import pytest
from daemons import running

SECONDS = 30.0
SEED = int(os.environ.get("VLLMD_CHAOS_SEED", "1"))


@pytest.mark.timeout(300)
async def test_whatever_happens_the_promises_hold() -> None:
    """pytest shows the seed and the steps when it fails: VLLMD_CHAOS_SEED plays them again."""
    print(f"VLLMD_CHAOS_SEED={SEED}")
    with running(chaos.make_daemon()) as daemon:
        steps = await chaos.run(daemon, SEED, SECONDS, print)
    assert steps
