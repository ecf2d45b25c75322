"""How workers share the tests (pytest-xdist): by files, and what a machine has but once goes to one of them."""

from xdist.scheduler import LoadFileScheduling

SYSTEM = "tests/system/"
"""Containers with a systemd in them, and the real vLLM, which takes all cores and gigabytes."""


class Sharing(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Gives a file's tests, which share daemons, to one worker; and those of `SYSTEM` as if they were one file.

    The workers take the files in the order in which they are collected.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return SYSTEM if file.startswith(SYSTEM) else file


def longest_first(nodeid: str) -> bool:
    """A key to sort tests by: half of the time goes to `SYSTEM`, beside which the other workers do the rest."""
    return not nodeid.startswith(SYSTEM)
