"""`vllmctl plan` and `reload`: what has changed, by what it takes; a file with mistakes is an error."""

import json

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, reply

from vllmd import wire
from vllmd.settings import Applies
from vllmd.wire import Change

CHANGES = [
    Change("listen.tcp", '"127.0.0.1:8080"', '"127.0.0.1:9"', Applies.DAEMON),
    Change("defaults.temperature", "0.7", "0.5"),
    Change("models.tiny.args.max-model-len", "", "99", Applies.ENGINE, ("tiny",)),
    Change("models.tiny.env.A", '"…"', '"…"', Applies.ENGINE, ("tiny",)),
    Change("models.old", '"m"', "", Applies.ENGINE, ("old",)),
    Change("queue.later", "1", "2", "with something unknown"),
]
ROUTES = {"plan": "GET /api/plan", "reload": "POST /api/reload"}


@pytest.mark.parametrize("verb", ROUTES)
def test_the_changes_stand_under_what_they_take(daemon: StubDaemon, shell: Shell, verb: str) -> None:
    daemon.on(ROUTES[verb], reply({"changes": [{**wire.to_json(each), "more": 1} for each in CHANGES]}))
    result = shell.run(verb)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "at once",
        "    defaults.temperature: 0.7 → 0.5",
        "    queue.later: 1 → 2",
        "with a new engine: old",
        '    models.old: "m" → nothing',
        "with a new engine: tiny",
        "    models.tiny.args.max-model-len: nothing → 99",
        '    models.tiny.env.A: "…" → "…"',
        "only after:  systemctl restart vllmd   (which keeps the engines)",
        '    listen.tcp: "127.0.0.1:8080" → "127.0.0.1:9"',
    ]


@pytest.mark.parametrize("verb", ROUTES)
def test_nothing_is_said_as_such(daemon: StubDaemon, shell: Shell, verb: str) -> None:
    daemon.on(ROUTES[verb], reply({"changes": []}))
    assert shell.run(verb).stdout == "nothing has changed\n"
    assert shell.run("-q", verb).stdout == ""
    assert json.loads(shell.run(verb, "--json").stdout) == {"changes": []}


@pytest.mark.parametrize("verb", ROUTES)
def test_a_file_with_mistakes_is_an_error_with_status_2(daemon: StubDaemon, shell: Shell, verb: str) -> None:
    daemon.on(ROUTES[verb], refuse(500, "config_error", "a.toml: queue.limt: unknown key\na.toml: x: unknown table"))
    result = shell.run(verb)
    assert result.status == 2
    assert "queue.limt: unknown key" in result.stderr
    assert "x: unknown table" in result.stderr


def test_an_answer_that_is_none(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(ROUTES["plan"], reply({"changes": [1]}))
    assert shell.run("plan").status == 3
