"""How workers share the tests (pytest-xdist): by files, and what a machine has but once goes to one of them."""

from xdist.scheduler import LoadFileScheduling

SYSTEM = "tests/system/"
"""Containers with a systemd in them, and the real vLLM, which takes all cores and gigabytes."""


class Sharing(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Gives each unit to one worker, in the order in which the tests are collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """What is not divided: the tests of a file, which share daemons, and those of `SYSTEM` as if they were one file."""
    return SYSTEM if nodeid.startswith(SYSTEM) else nodeid.partition("::")[0]


def longest_first(nodeid: str) -> bool:
    """A key to sort tests by: half of the time goes to `SYSTEM`, beside which the other workers do the rest."""
    return not nodeid.startswith(SYSTEM)
