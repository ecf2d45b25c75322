"""The journal's protocol, what makes way when it is slow, and lines for those who have none."""

import array
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until_sync

from vllmd.about import CURRENT, about
from vllmd.journal.backlog import Backlog
from vllmd.journal.lines import Format, TextLines, formatter
from vllmd.journal.protocol import encode, priority_of
from vllmd.journal.sending import JournalHandler, is_the_journal

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True)


def decode(entry: bytes) -> dict[str, str]:
    """What journald makes of a datagram."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", entry[:8])
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        fields[name.decode()] = value.decode()
    return fields


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_field_arrives_whatever_is_in_it(fields: dict[str, str]) -> None:
    assert decode(encode(fields)) == fields


def test_half_a_character_stops_nothing() -> None:
    assert decode(encode({"MESSAGE": "a\ud83d"})) == {"MESSAGE": "a?"}


def test_levels_are_syslog_priorities() -> None:
    levels = [logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, 35, 1]
    assert [priority_of(level) for level in levels] == [2, 3, 4, 6, 7, 4, 7]


@given(st.lists(st.booleans()), st.integers(1, 20))
def test_what_matters_stays_and_the_order_too(matters: list[bool], kept: int) -> None:
    backlog = Backlog(kept)
    for number, each in enumerate(matters):
        backlog.put(str(number).encode(), each)
    left = []
    while (entry := backlog.take()) is not None:
        left.append(int(entry))
    assert left == sorted(left)
    assert len(left) + backlog.dropped == len(matters)
    wanted = [number for number, each in enumerate(matters) if each][-kept:]
    assert set(wanted) <= set(left)


# ── a journald that the test plays ──


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "socket"))
        ear.settimeout(10)
        yield ear


@pytest.fixture
def log(tmp_path: Path, journald: socket.socket) -> Iterator[logging.Logger]:
    handler, logger = JournalHandler(tmp_path / "socket"), logging.Logger("test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def received(journald: socket.socket) -> Mapping[str, str]:
    data, (*rights,), _, _ = journald.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    for _, _, packed in rights:
        (file,) = array.array("i", packed)
        with os.fdopen(file, "rb") as sealed:
            sealed.seek(0)
            data += sealed.read()
    return decode(data)


def test_a_line_with_all_that_it_is_about(journald: socket.socket, log: logging.Logger) -> None:
    token = CURRENT.set({"request_id": "r1", "uid": "1000"})
    log.error("%s: fell\nover", "tiny", extra=about(model="tiny", generation=3, stream="engine", nothing=None))
    CURRENT.reset(token)
    found = received(journald)
    assert found["CODE_FILE"] == __file__
    assert {name: value for name, value in found.items() if not name.startswith("CODE_")} == {
        "MESSAGE": "tiny: fell\nover",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "vllmd",
        "VLLMD_MODEL": "tiny",
        "VLLMD_GENERATION": "3",
        "VLLMD_STREAM": "engine",
        "VLLMD_REQUEST_ID": "r1",
        "VLLMD_UID": "1000",
    }


def test_a_traceback_of_our_own_is_in_the_message(journald: socket.socket, log: logging.Logger) -> None:
    try:
        int("no")
    except ValueError:
        log.exception("unforeseen")
    message = received(journald)["MESSAGE"]
    assert message.startswith("unforeseen\nTraceback (most recent")
    assert "\nValueError: " in message


def test_what_no_datagram_can_carry_goes_in_a_file(journald: socket.socket, log: logging.Logger) -> None:
    text = "x" * 3_000_000
    log.info(text)
    log.info("short")
    assert received(journald)["MESSAGE"] == text
    assert received(journald)["MESSAGE"] == "short"


def test_a_journald_that_stands_still_stops_nobody_and_gets_every_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "slow"))
        ear.settimeout(10)
        handler, logger = JournalHandler(tmp_path / "slow", Backlog(2000)), logging.Logger("test")
        logger.addHandler(handler)
        for number in range(50_000):  # more than its queue and ours hold: this ends only if nobody waits
            logger.log(logging.ERROR if number % 100 == 0 else logging.INFO, "%d", number)
        found: list[Mapping[str, str]] = []
        while not found or found[-1]["MESSAGE"] != "49999":
            found.append(received(ear))
        handler.close()
    errors = [int(each["MESSAGE"]) for each in found if each["PRIORITY"] == "3"]
    assert errors == list(range(0, 50_000, 100))
    confessions = [
        each["MESSAGE"] for each in found if "were lost" in each["MESSAGE"]
    ]  # one a gap, and gaps are timing
    assert confessions
    assert sum(int(each.split()[0]) for each in confessions) == 50_000 + len(confessions) - len(found)


def test_a_journald_that_is_away_for_a_while_misses_nothing(tmp_path: Path) -> None:
    handler, logger = JournalHandler(tmp_path / "later"), logging.Logger("test")
    logger.addHandler(handler)
    logger.info("early")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "later"))
        ear.settimeout(10)
        assert received(ear)["MESSAGE"] == "early"
        logger.info("last")
        handler.close()
        assert received(ear)["MESSAGE"] == "last", "what was logged before the end is sent"


def test_without_a_journald_the_end_is_not_held_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllmd.journal.sending.FAREWELL_S", 0.1)
    handler = JournalHandler(tmp_path / "never")
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    handler.close()
    until_sync(lambda: not handler._thread.is_alive(), "the thread to end")


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        stat = os.fstat(file.fileno())
        assert is_the_journal(file.fileno(), f"{stat.st_dev}:{stat.st_ino}")
        assert not is_the_journal(file.fileno(), f"{stat.st_dev}:{stat.st_ino + 1}")
        assert not is_the_journal(file.fileno(), "")
    assert not is_the_journal(-1, "1:1")


# ── lines ──


def record(**more: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "%s: up", "args": ("tiny",), "levelname": "INFO", "levelno": 20, **more})


def test_lines_for_people() -> None:
    assert formatter(Format.TEXT).format(record()).endswith(" INFO tiny: up")


def test_what_an_engine_says_in_several_lines_stays_so_and_forges_no_record() -> None:
    engine = record(msg="fell\n2026-01-01 INFO all is well\x1b[2J", args=(), **about(stream="engine"))
    first, second = formatter(Format.TEXT).format(engine).split("\n")
    assert first.endswith("INFO fell")
    assert second == "    2026-01-01 INFO all is well\\x1b[2J"
    assert TextLines("%(message)s", indent="").format(engine).split("\n")[1] == second.strip()


def test_json_lines() -> None:
    made = record(created=1.5, msecs=500.0, **about(model="tiny", generation=1, stream="engine"))
    line = formatter(Format.JSON).format(made)
    assert "\n" not in line
    assert json.loads(line) == {
        "at": "1970-01-01T00:00:01.500Z",
        "level": "info",
        "message": "tiny: up",
        "model": "tiny",
        "generation": "1",
        "stream": "engine",
    }
    try:
        int("no")
    except ValueError:
        assert "\n" not in formatter(Format.JSON).format(record(exc_info=sys.exc_info()))
