"""What arrives at systemd's socket: exactly what was said, or nothing."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmd.notify import UNSAID, Notifier


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of the conversation."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        path = str(tmp_path / "notify")
        ear.bind(path)
        ear.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield ear


def heard(systemd: socket.socket) -> str:
    return systemd.recv(65536).decode()


def is_silent(systemd: socket.socket) -> bool:
    systemd.setblocking(False)
    try:
        systemd.recv(1)
    except BlockingIOError:
        return True
    return False


def test_every_word_as_systemd_wants_it(systemd: socket.socket) -> None:
    with Notifier() as notifier:
        notifier.ready()
        notifier.status("starting, loading weights 43 %")
        notifier.extend(300.5)
        notifier.watchdog()
        notifier.stopping()
    assert [heard(systemd) for _ in range(5)] == [
        "READY=1",
        "STATUS=starting, loading weights 43 %",
        "EXTEND_TIMEOUT_USEC=300500000",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    assert is_silent(systemd)


def test_a_descriptor_goes_along_and_is_a_copy(systemd: socket.socket) -> None:
    reading, writing = os.pipe()
    with Notifier({"NOTIFY_SOCKET": "x", "FDSTORE": "9"}) as notifier:
        assert notifier.has_store
        notifier.keep("engine.tiny.1.log", writing)
        os.close(writing)
        notifier.forget("engine.tiny.1.log")
    data, (kept,), _, _ = socket.recv_fds(systemd, 1000, 4)
    assert data == b"FDSTORE=1\nFDNAME=engine.tiny.1.log\nFDPOLL=0"
    assert heard(systemd) == "FDSTOREREMOVE=1\nFDNAME=engine.tiny.1.log"
    os.write(kept, b"x")
    os.close(kept)
    assert os.read(reading, 9) == b"x"
    assert os.read(reading, 9) == b"", "no other copy is left"
    os.close(reading)


@pytest.mark.parametrize(
    "environ", [{}, {"FDSTORE": "9"}, {"NOTIFY_SOCKET": "x"}, {"NOTIFY_SOCKET": "x", "FDSTORE": "0"}]
)
def test_without_a_store_there_is_none(systemd: socket.socket, environ: dict[str, str]) -> None:
    with Notifier(environ) as notifier:
        assert not notifier.has_store


def test_a_status_is_one_line_whatever_is_in_it(systemd: socket.socket) -> None:
    with Notifier() as notifier:
        notifier.status("failed\nMAINPID=1\r\nREADY=1\x0bFDSTORE=1\x85\u2028x  y\n")
    said = heard(systemd)
    assert said == "STATUS=failed MAINPID=1 READY=1 FDSTORE=1 x y"
    assert is_silent(systemd)


@pytest.mark.parametrize("text", ["modèle prêt", "模型 → 43 %", "👋"])
def test_a_status_in_any_language(systemd: socket.socket, text: str) -> None:
    with Notifier() as notifier:
        notifier.status(text)
    assert heard(systemd) == f"STATUS={text}"


def test_half_a_character_does_not_stop_the_daemon(systemd: socket.socket) -> None:
    with Notifier() as notifier:
        notifier.status("a\ud83d")
    assert heard(systemd) == "STATUS=a?"


def test_a_socket_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        name = f"vllmd-test-{os.getpid()}"
        ear.bind(f"\0{name}")
        ear.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        with Notifier() as notifier:
            notifier.ready()
        assert heard(ear) == "READY=1"


def test_without_systemd_every_word_is_none() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        with Notifier(environ) as notifier:
            notifier.ready()
            notifier.status("x")
            notifier.extend(1)
            notifier.watchdog()
            notifier.stopping()
            assert notifier.watchdog_interval_s is None


# SystemdNotifier leaves the socket that it could not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_socket_that_is_not_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    with Notifier() as notifier:
        notifier.ready()
    assert "NOTIFY_SOCKET" in caplog.text
    assert [each.levelno for each in caplog.records] == [logging.WARNING]


def test_a_systemd_that_no_longer_listens_is_a_warning(
    systemd: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with Notifier() as notifier:
        systemd.close()
        notifier.watchdog()
        notifier.status("secret")
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 2
    assert "WATCHDOG" in caplog.records[0].message
    assert "secret" not in caplog.text


def test_signs_of_life_push_no_other_word_out_while_systemd_does_not_read(systemd: socket.socket) -> None:
    with Notifier() as notifier:
        while not notifier.is_behind:
            notifier.extend(1)
        notifier.status("important")
        for _ in range(2 * UNSAID):
            notifier.watchdog()
        said = [heard(systemd)]
        notifier.watchdog()
        while said[-1] != "WATCHDOG=1":
            said.append(heard(systemd))
            notifier.watchdog()
    assert "STATUS=important" in said


def test_after_its_end_nothing_is_said(systemd: socket.socket) -> None:
    with Notifier() as notifier:
        pass
    notifier.ready()
    assert is_silent(systemd)


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_bites(environ: dict[str, str], interval_s: float | None) -> None:
    assert Notifier(environ).watchdog_interval_s == interval_s
