"""What no hub on a loopback address can do: full disks, closed directories, and what they are called."""

import errno
from pathlib import Path

import pytest

from vllmd.engine.hub_errors import Asked, explained
from vllmd.engine.hub_verdicts import CAUSES, HOPELESS, cause_of, verdict_on
from vllmd.engine.pulling import SPARE_BYTES, check_room
from vllmd.errors import Damaged, HubUnreachable, NoSpace, PullError, RateLimited, VllmdError, kind_of, outcome_of

ASKED = Asked("https://hub.example", "acme/m", "", has_token=False)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/c/blobs/x"), NoSpace, "the disk is full: /c/blobs/x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), NoSpace, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/c/blobs"), PullError, "cannot write /c/blobs"),
        (OSError(errno.EROFS, "Read-only file system", "/c"), PullError, "Read-only"),
        (ValueError("something else"), PullError, "acme/m cannot be pulled: something else"),
        (Damaged("it is damaged"), Damaged, "it is damaged"),
    ],
)
def test_what_the_system_says(error: Exception, kind: type[VllmdError], words: str) -> None:
    found = explained(error, ASKED)
    assert type(found) is kind
    assert words in found.message
    assert found.hint or error is found


def test_room_is_looked_for_before_anything_is_fetched() -> None:
    check_room(0, 0, "acme/m", Path("/c"))
    check_room(10**9, 10**9 + SPARE_BYTES, "acme/m", Path("/c"))
    with pytest.raises(NoSpace, match=r"acme/m needs 15\.2 GB more, and 3\.1 GB are free where models lie \(/c\)"):
        check_room(15_200_000_000, 3_100_000_000, "acme/m", Path("/c"))


def test_a_hub_that_is_away_is_waited_for_and_nothing_else() -> None:
    waited_for = {kind: verdict_on(kind("")).retry_after_s for kind in PullError.__subclasses__()}
    assert {kind for kind, after_s in waited_for.items() if after_s is not None} == {HubUnreachable, RateLimited}
    assert verdict_on(RateLimited("", "", 300.0)).retry_after_s == 300
    assert not any(verdict_on(kind("")).permanent for kind in (HubUnreachable, RateLimited))


def test_every_failure_of_a_pull_has_a_code_by_which_it_comes_back_and_a_cause() -> None:
    kinds: list[type[PullError]] = [PullError, *PullError.__subclasses__()]
    assert [kind_of(outcome_of(kind("")).code) for kind in kinds] == kinds
    assert set(CAUSES) == set(PullError.__subclasses__())
    assert set(HOPELESS) < set(CAUSES)
    assert cause_of(PullError("")) == "pull failed"
    assert kind_of("nobody_s") is VllmdError
