"""The journal of a real systemd: whose a line is, how grave, and what belongs together."""

import json
from typing import Any

import pytest
from system.service import Service
from waiting import until_sync

pytestmark = pytest.mark.timeout(1800)

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: out of luck'


def entries(service: Service, *matches: str) -> list[dict[str, Any]]:
    """What the journal has of the service since its last start."""
    invocation = f"_SYSTEMD_INVOCATION_ID={service.show('InvocationID')}"
    lines = service.machine.journal("--output=json", "--all", invocation, *matches).splitlines()
    return [json.loads(line) for line in lines]


def test_the_engine_s_lines_are_told_apart_by_fields(service: Service) -> None:
    service.stop()
    service.start()
    theirs = entries(service, "VLLMD_STREAM=engine")
    assert {(each["VLLMD_MODEL"], each["VLLMD_GENERATION"]) for each in theirs} == {("tiny", "1")}
    assert any("Application startup complete" in each["MESSAGE"] for each in theirs)
    everything = entries(service)
    assert 0 < len(theirs) < len(everything)
    assert not any("Application startup" in each["MESSAGE"] for each in everything if "VLLMD_STREAM" not in each)


def test_a_traceback_is_one_entry_and_an_error(service: Service) -> None:
    service.stop()
    service.control(start_end="exit:1", start_last=TRACEBACK)
    service.begin()

    def found() -> list[dict[str, Any]]:
        return [each for each in entries(service, "VLLMD_STREAM=engine") if "out of luck" in each["MESSAGE"]]

    until_sync(found, "the traceback to be in the journal")
    assert found()[0]["MESSAGE"].startswith("tiny: Traceback")
    assert int(found()[0]["PRIORITY"]) <= 3


def test_a_line_of_a_request_s_says_whose(service: Service) -> None:
    service.configure(queue={"limt": 3})
    assert service.machine.run("systemctl", "reload", "vllmd").returncode != 0

    def found() -> list[dict[str, Any]]:  # vllmd's thread may still be about to send it
        return [each for each in entries(service) if "queue.limt" in each["MESSAGE"] and "VLLMD_UID" in each]

    until_sync(found, "the line to be in the journal")
    line = found()[0]
    assert line["VLLMD_UID"] == service.machine("id", "--user", "vllmd")
    assert line["VLLMD_REQUEST_ID"]
