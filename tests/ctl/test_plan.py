"""`vllmctl plan` and `reload`: what has changed, by what it takes; a file with mistakes is an error."""

import json

import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, refuse, reply

from vllmd import wire
from vllmd.provisions import Fit
from vllmd.settings import Applies
from vllmd.statuses import Change

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


FIT = Fit(
    model="big model",
    verdict="no",
    reason="the weights take 14.19 GiB",
    hint="serve a smaller one",
    permanent=True,
    device="GPU",
    devices=2,
    max_model_len=2048,
    weights_bytes=15_231_233_024,
    kv_token_bytes=57344,
    kv_sequence_bytes=117440512,
    allowance_bytes=3 << 29,
    needed_bytes=20 << 30,
    total_bytes=16 << 30,
    allowed_bytes=15 << 30,
    free_bytes=14 << 30,
    longest=99,
    share=0.5,
)
FIT_ROUTE = "GET /api/models/big%20model/fit"


def test_the_sum_of_a_model_is_a_table_and_no_is_status_1(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(FIT_ROUTE, reply({**wire.to_json(FIT), "more": 1}))
    result = shell.run("plan", "big model")
    assert (result.status, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        "big model: it does not fit",
        "                            EACH OF 2 GPUS",
        "  weights                        14.19 GiB",
        "  KV cache for 2048 tokens        0.11 GiB  56.0 KiB a token",
        "  all else, about                 1.50 GiB",
        "  needed                         20.00 GiB",
        "  the engine may have            15.00 GiB  of 16.00 GiB",
        "  free now                       14.00 GiB",
        "  largest max-model-len that fits: 99",
        "  least gpu-memory-utilization that fits: 0.5",
        "  the weights take 14.19 GiB",
        "  try: serve a smaller one",
    ]
    assert json.loads(shell.run("plan", "big model", "--json").stdout)["needed_bytes"] == 20 << 30


def test_what_is_not_known_is_left_out_of_the_sum(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on("GET /api/models/m/fit?max_model_len=16", reply(wire.to_json(Fit("m", reason="nobody knows"))))
    result = shell.run("plan", "m", "--max-model-len", "16")
    assert (result.status, result.stdout) == (0, "m: it cannot be judged\n  nobody knows\n")
    assert shell.run("plan", "--max-model-len", "16").status == 2, "of which model?"
    daemon.on("GET /api/models/m/fit", reply({"model": "m", "weights_bytes": "much"}))
    assert shell.run("plan", "m").status == 3


def test_an_answer_that_is_none(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(ROUTES["plan"], reply({"changes": [1]}))
    assert shell.run("plan").status == 3
