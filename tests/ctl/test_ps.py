"""`vllmctl ps` and `vllmctl cancel`: which requests are shown, how, and which is meant by the beginning of an id."""

import json

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import Answer, StubDaemon, refuse, reply

from vllmd import wire
from vllmd.ctl.ps import shortened
from vllmd.statuses import RequestStatus

LIST = "GET /api/requests"
ONE = RequestStatus("8a7f44c0d1e2", "uid:1000", "qwen", "/v1/x", "running", age_s=61.5, stream=True, tokens=1234)
OTHER = RequestStatus("8b000000ffff", "127.0.0.1", "a-long-name", "/v1/x", "held", age_s=3)


def listing(*requests: RequestStatus) -> Answer:
    return reply({"requests": [wire.to_json(each) for each in requests], "later": 1})


def test_a_table_for_eyes(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(ONE, OTHER))
    result = shell.run("ps")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "ID        WHO        MODEL        STATE          AGE  TOKENS",
        "8a7f44c0  uid:1000   qwen         running  1 min 1 s    1234",
        "8b000000  127.0.0.1  a-long-name  held           3 s       -",
    ]


def test_without_requests_there_are_only_headings(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing())
    assert shell.run("ps").stdout == "ID  WHO  MODEL  STATE  AGE  TOKENS\n"


def test_json_is_the_daemon_s_own(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(ONE))
    result = shell.run("ps", "--json")
    assert json.loads(result.stdout) == {"requests": [wire.to_json(ONE)], "later": 1}
    assert result.stdout.count("\n") == 1


def test_names_that_clients_choose_cannot_break_the_table(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(RequestStatus("a\x1b[2Jb\nc", "漢字", "m")))
    _, line = shell.run("ps").stdout.splitlines()
    assert line.split() == ["a[2Jb", "c", "漢字", "m", "running", "0", "s", "-"]


@pytest.mark.parametrize(
    ("ids", "short"),
    [
        ([], {}),
        (["abc"], {"abc": "abc"}),
        (["0123456789abc", "x"], {"0123456789abc": "01234567", "x": "x"}),
        (["0123456789abc", "0123456789xyz"], {"0123456789abc": "0123456789a", "0123456789xyz": "0123456789x"}),
        (["01234567", "0123456789"], {"01234567": "01234567", "0123456789": "012345678"}),
        (["twin-of-mine", "twin-of-mine"], {"twin-of-mine": "twin-of-"}),
    ],
)
def test_ids_are_as_short_as_they_can_be(ids: list[str], short: dict[str, str]) -> None:
    assert shortened(ids) == short


@pytest.mark.parametrize("beginning", ["8a", "8a7f44c0d1e2"])
def test_the_beginning_of_an_id_is_enough(daemon: StubDaemon, shell: Shell, beginning: str) -> None:
    daemon.on(LIST, listing(ONE, OTHER))
    daemon.on("DELETE /api/requests/8a7f44c0d1e2", reply({"id": ONE.id, "cancelled": 1}, 202))
    result = shell.run("cancel", beginning)
    assert (result.status, result.stdout, result.stderr) == (0, "8a7f44c0d1e2: cancelled\n", "")
    assert shell.run("cancel", beginning, "-q").stdout == ""


def test_a_whole_id_is_meant_even_if_another_begins_with_it(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(RequestStatus("a/b"), RequestStatus("a/bc")))
    daemon.on("DELETE /api/requests/a%2Fb", reply({}, 202))
    assert shell.run("cancel", "a/b").status == 0


def test_several_that_begin_so_are_listed(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(ONE, OTHER))
    result = shell.run("cancel", "8")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == ("vllmctl: 2 requests begin with '8'\n         8a7f44c0d1e2\n         8b000000ffff\n")
    assert [each.method for each in daemon.requests] == ["GET"]


@pytest.mark.parametrize("beginning", ["9", ""])
def test_none_that_begins_so(daemon: StubDaemon, shell: Shell, beginning: str) -> None:
    daemon.on(LIST, listing(ONE))
    result = shell.run("cancel", beginning)
    assert result.status == 1
    assert result.stderr.startswith(f"vllmctl: no request under way begins with {beginning!r}")


def test_one_that_has_ended_meanwhile(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, listing(ONE))
    daemon.on(f"DELETE /api/requests/{ONE.id}", refuse(404, "request_not_found", "no such request"))
    assert (shell.run("cancel", "8a").status, shell.run("cancel").status) == (1, 2)


def test_a_list_that_is_none(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(LIST, reply({"requests": [1]}))
    assert shell.run("ps").status == 3
