"""`vllmctl logs`: where it looks, what it hands to journalctl, and what it makes of the daemon's own lines."""

import os
import time
from pathlib import Path

import click
import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, reply, stream

from vllmd.address import UnixAddress, parse
from vllmd.ctl.logs import scope_of
from vllmd.ctl.reach import SYSTEM_SOCKET
from vllmd.ctl.since import since

KEPT = reply({"model": "qwen", "lines": [{"at": 100.0, "line": "old"}, {"at": 2000.0, "line": "new", "later": 1}]})


class Systemd:
    """A systemctl that knows vllmd's unit or does not, and a journalctl that prints its arguments."""

    def __init__(self, folder: Path, knows: str, journal: bool = True) -> None:
        self.folder = folder
        self._write("systemctl", f'echo "$@" >> {folder}/asked; echo {knows}')
        if journal:
            self._write("journalctl", 'printf "%s\\n" "$@"')

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)

    def shell(self, **environ: str) -> Shell:
        return Shell({"PATH": f"{self.folder}:{os.environ['PATH']}", **environ})


def test_where_systemd_runs_vllmd_it_is_journalctl(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, "loaded")
    result = systemd.shell().run("logs", "-f", "-n", "50", "--since", "1 hour ago", "-o", "short", "--grep=x")
    assert (result.status, result.stderr) == (0, "")
    unit = ["-u", "vllmd.service", "-o", "cat"]
    assert result.stdout.splitlines() == [*unit, "-f", "-n", "50", "--since=1 hour ago", "-o", "short", "--grep=x"]
    assert "vllmd.service" in (tmp_path / "asked").read_text()


def test_onelinectl_ends_as_others_do_when_nobody_reads(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, "loaded")
    (tmp_path / "journalctl").write_text("#!/bin/sh\nyes\n")
    result = systemd.shell().script('"$@" logs | head -1; echo "${PIPESTATUS[0]}"')
    assert (result.stdout, result.stderr) == ("y\n141\n", "")


@pytest.mark.parametrize("knows", ["not-found", ""])
def test_where_systemd_does_not_the_daemon_is_asked(tmp_path: Path, knows: str) -> None:
    result = Systemd(tmp_path, knows).shell().run("logs")
    assert (result.status, result.stdout) == (3, "")
    assert "cannot reach vllmd at unix:///run/vllmd/vllmd.sock" in result.stderr


def test_a_model_s_own_lines_are_the_daemon_s_to_tell(tmp_path: Path) -> None:
    result = Systemd(tmp_path, "loaded").shell().run("logs", "-m", "qwen")
    assert result.status == 3
    assert not (tmp_path / "asked").exists()


def test_another_address_is_not_systemd_s(daemon: StubDaemon, shell: Shell, tmp_path: Path) -> None:
    daemon.on("GET /api/logs", KEPT)
    its_own = Systemd(tmp_path, "loaded").shell(**shell.environ)
    assert its_own.run("logs").stdout == "old\nnew\n"
    assert not (tmp_path / "asked").exists()


def test_whose_unit_it_is() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    assert scope_of(SYSTEM_SOCKET, environ, 1000) == []
    assert scope_of(UnixAddress("/run/user/1000/vllmd/vllmd.sock"), environ, 1000) == ["--user"]
    assert scope_of(UnixAddress("/run/user/1001/vllmd/vllmd.sock"), environ, 1000) is None
    assert scope_of(parse("http://gpu1:8000"), environ, 1000) is None


# ── the daemon's own ──


def test_the_lines_that_are_kept(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/logs", KEPT)
    daemon.on("GET /api/logs?model=a+b&lines=7", KEPT)
    assert shell.run("logs").stdout == "old\nnew\n"
    assert shell.run("logs", "-m", "a b", "-n", "7").stdout == "old\nnew\n"
    assert shell.run("logs", "--since", "@1000").stdout == "new\n"


def test_and_those_that_come(daemon: StubDaemon, shell: Shell) -> None:
    line = b'id: 1\nevent: line\ndata: {"at": 1.0, "line": "%b"}\n\n'
    missed = b'event: missed\ndata: {"missed": 12}\n\n'
    daemon.on("GET /api/logs?lines=10&follow=1", stream(b": hello\n\n", line % b"a", missed + line % b"b"))
    result = shell.run("logs", "-f")
    assert (result.status, result.stdout) == (3, "a\nb\n")
    assert result.stderr.startswith("vllmctl: 12 lines were missed\nvllmctl: the daemon has closed the connection\n")


def test_options_of_journalctl_need_a_journal(daemon: StubDaemon, shell: Shell) -> None:
    result = shell.run("logs", "--grep=x")
    assert (result.status, daemon.requests) == (2, [])
    assert "only journalctl knows --grep=x" in result.stderr


@pytest.mark.parametrize("answer", [reply({}), reply([]), reply({"lines": [1]})])
def test_a_log_that_is_none(daemon: StubDaemon, shell: Shell, answer: object) -> None:
    daemon.on("GET /api/logs", answer)  # type: ignore[arg-type]
    assert shell.run("logs").status == 3


def test_a_daemon_that_has_no_logs_yet(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/logs", refuse(404, "route_not_found", "nothing is served at /api/logs"))
    assert shell.run("logs").status == 1


@pytest.mark.parametrize("text", ["yesteryear", "25:00", "10 fortnights ago", "", "@x", "-", "2026-13-01"])
def test_times_that_are_none(daemon: StubDaemon, shell: Shell, text: str) -> None:
    with pytest.raises(click.BadParameter):
        since(text, 0.0)
    assert shell.run("logs", "--since", text).status == 2


def test_times() -> None:
    now = time.mktime((2026, 11, 23, 20, 30, 0, 0, 0, -1))

    def ago_s(text: str) -> float:
        return now - since(text, now)

    assert [ago_s(each) for each in ("-10min", "10 min ago", "-2h", "2 hours ago", "3 days ago", "-5s")] == [
        600, 600, 7200, 7200, 259200, 5
    ]  # fmt: skip
    assert [ago_s(each) for each in ("20:00", "20:29:59", "today", "2026-11-23 20:00", "2026-11-23T20:00:00")] == [
        1800, 1, 73800, 1800, 1800
    ]  # fmt: skip
    assert time.localtime(since("yesterday", now))[:5] == (2026, 11, 22, 0, 0)
    assert since("@1795463558", now) == 1795463558
