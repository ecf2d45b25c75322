"""`vllmctl incidents`: the table, and one incident as a whole."""

import json
from dataclasses import replace

import pytest
from ctl.shell import Shell, screen
from ctl.stub_daemon import StubDaemon, refuse, reply

from vllmd.incident import IncidentReport, ProcessFacts, Versions
from vllmd.wire import to_json

LIST = "GET /api/incidents"
ONE = IncidentReport(
    id="20261127T144140.123-tiny-2",
    at=1795790500.0,
    model="tiny",
    generation=2,
    cause="hung",
    reason="no token has come for 60 s",
    hint="see the stacks",
    lived_s=93.7,
    was_ready=True,
    permanent=True,
    config_digest="1dc6bbd6",
    versions=Versions("0.1.0", "0.33.0", "3.11.7", driver="550.54"),
    gpus=("GPU 0: NVIDIA H200, 1 of 2 MiB used", "GPU 0: process 9 holds 1 MiB"),
    processes=(
        ProcessFacts(41, "guard", "S", 0.0, 10, "do_wait"),
        ProcessFacts(42, "VLLM::EngineCor", "T", 12.34, 3000, "", "Thread 42\n    step (core.py:1)"),
    ),
    lines=("first", "last words"),
)
OTHER = replace(ONE, id="20261127T144139.001-a-long-name-1", model="a-long-name", generation=1, cause="no memory")


@pytest.fixture(autouse=True)
def _two(daemon: StubDaemon) -> None:
    daemon.on(LIST, reply({"incidents": [to_json(each.glance) for each in (ONE, OTHER)], "later": 1}))
    daemon.on(f"{LIST}?limit=1", reply({"incidents": [to_json(ONE.glance)]}))
    daemon.on(f"{LIST}/{ONE.id}", reply({**to_json(ONE), "later": 1}))


def test_a_table_for_eyes(shell: Shell) -> None:
    result = shell.run("incidents", environ={"TZ": "UTC"})
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "ID              WHEN                 MODEL        GENERATION  CAUSE      REASON",
        "20261127T14414  2026-11-27 14:41:40  tiny                  2  hung       no token has come for 60 s",
        "20261127T14413  2026-11-27 14:41:40  a-long-name           1  no memory  no token has come for 60 s",
    ]


def test_on_a_terminal_a_line_is_a_line(shell: Shell) -> None:
    with screen(shell, "incidents", size=(24, 60)) as shown:
        assert shown.end() == 0
        assert "no token" not in shown.written.decode()


def test_json_is_the_daemon_s_own(shell: Shell) -> None:
    assert json.loads(shell.run("incidents", "--json").stdout)["later"] == 1
    told = shell.run("incidents", ONE.id, "--json").stdout
    assert (json.loads(told)["later"], told.count("\n")) == (1, 1)


def test_what_is_asked_for_is_asked(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"{LIST}?model=a%2Fb&limit=3", reply({"incidents": []}))
    result = shell.run("incidents", "-m", "a/b", "-n", "3")
    assert (result.status, result.stdout) == (0, "ID  WHEN  MODEL  GENERATION  CAUSE  REASON\n")
    assert shell.run("incidents", "-n", "-1").status == 2


@pytest.mark.parametrize("which", ["last", ONE.id, "20261127T144140"])
def test_the_verdict_first_then_facts_then_the_last_lines(shell: Shell, which: str) -> None:
    result = shell.run("incidents", which, environ={"TZ": "UTC"})
    assert (result.status, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:3] == ["tiny: no token has come for 60 s", "    see the stacks", ""]
    assert lines[3:] == [
        "    incident      20261127T144140.123-tiny-2",
        lines[4],
        "    engine        generation 2, lived 1 min 33 s, had served",
        "    cause         hung; trying again cannot help",
        "    versions      vllmd 0.1.0, vLLM 0.33.0, Python 3.11.7, GPU driver 550.54",
        "    configuration 1dc6bbd6",
        "    GPUs          GPU 0: NVIDIA H200, 1 of 2 MiB used",
        "                  GPU 0: process 9 holds 1 MiB",
        "    processes     guard (41): sleeping, 0.0 s of CPU, 10 MiB, waits in do_wait",
        "                  VLLM::EngineCor (42): stopped, 12.3 s of CPU, 3000 MiB",
        "",
        "    VLLM::EngineCor (42):",
        "        Thread 42",
        "            step (core.py:1)",
        "",
        "the last 2 lines of its engine:",
        "first",
        "last words",
    ]
    assert lines[4].startswith("    when          2026-11-27 14:41:40 (")


def test_little_is_known(daemon: StubDaemon, shell: Shell) -> None:
    bare = IncidentReport(ONE.id, 1e300, "tiny", 1, "cannot start", "no", "", 0.1, False)
    daemon.on(f"{LIST}/{ONE.id}", reply(to_json(bare)))
    assert shell.run("incidents", "last").stdout.splitlines() == [
        "tiny: no",
        "",
        "    incident      20261127T144140.123-tiny-2",
        "    when          ? (0 s ago)",
        "    engine        generation 1, lived 0 s, had not served yet",
        "    cause         cannot start",
    ]


def test_what_an_engine_has_printed_does_not_paint_the_screen(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"{LIST}/{ONE.id}", reply(to_json(replace(ONE, lines=("\x1b[2J\x07gone",)))))
    with screen(shell, "incidents", "last") as shown:
        assert shown.end() == 0
        assert "\x1b[2J" not in shown.written.decode()
    assert "\x1b[2J" in shell.run("incidents", "last").stdout


@pytest.mark.parametrize(
    ("which", "complaint"),
    [
        ("2026", "vllmctl: 2 incidents begin with '2026'\n         20261127T144140.123-tiny-2\n"),
        ("1999", "vllmctl: no incident begins with '1999'\n         see:  vllmctl incidents\n"),
        ("", "vllmctl: no incident begins with ''\n"),
    ],
)
def test_none_or_several_that_begin_so(shell: Shell, which: str, complaint: str) -> None:
    result = shell.run("incidents", which)
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith(complaint)


def test_no_engine_has_died(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"{LIST}?limit=1", reply({"incidents": []}))
    result = shell.run("incidents", "last")
    assert (result.status, result.stdout) == (1, "")
    assert "no engine has died" in result.stderr


def test_one_that_has_made_way_meanwhile(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(f"{LIST}/{ONE.id}", refuse(404, "incident_not_found", "no incident here"))
    assert shell.run("incidents", "last").status == 1


@pytest.mark.parametrize("body", [{}, [], {"incidents": 1}, {"incidents": [{}]}, {"incidents": [1]}])
def test_a_list_that_is_none(daemon: StubDaemon, shell: Shell, body: object) -> None:
    daemon.on(LIST, reply(body))
    result = shell.run("incidents")
    assert (result.status, result.stdout) == (3, "")
    daemon.on(f"{LIST}/{ONE.id}", reply(body))
    assert shell.run("incidents", "last").status == 3
