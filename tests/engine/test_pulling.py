"""Fetching a model: whole or not at all, from where it broke off, and every failure told apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import Faults, LoopbackHub, etag_of
from pulls import MODEL, MORE, NEEDED, REPO, SIZE, TOKEN, WEIGHTS, Pulls, outcome
from waiting import until_sync

from vllmd.engine.hub import size_of
from vllmd.engine.pulling import Verb
from vllmd.engine.transfer import PIECE_BYTES


@pytest.fixture
def pulls(hub: LoopbackHub, tmp_path: Path) -> Pulls:
    return Pulls(tmp_path, hub)


def test_what_vllm_needs_is_fetched_and_pinned(hub: LoopbackHub, pulls: Pulls) -> None:
    said = pulls.run(HF_TOKEN=TOKEN)
    assert (said.status, said.error) == (0, []), said.output
    assert pulls.found() == NEEDED
    manifest = pulls.manifests.find(REPO, "")
    assert manifest is not None
    assert manifest.commit == hub.heads[REPO]["main"] == pulls.shelf.ref("").read_text()
    expected = {(path, len(content), etag_of(path, content)) for path, content in NEEDED.items()}
    assert {(each.path, each.size, each.etag) for each in manifest.files} == expected
    assert said.progress[-1][1:] == [SIZE, SIZE]
    assert hub.sent_bytes == SIZE
    # The token is shown to the hub alone, and told to nobody.
    assert {shown for name, _, _, shown in hub.asked if name == "store"} == {""}
    assert any(shown == f"Bearer {TOKEN}" for name, _, _, shown in hub.asked if name == "hub")
    assert TOKEN not in said.output
    # What is there is not fetched again.
    assert pulls.run().status == 0
    assert hub.sent_bytes == SIZE


def test_faults_that_pass_are_outlasted(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults = Faults(status={"model-00002-of-00002.safetensors": (503, {}, 1)}, cut=(1_000_000, 1), spoil=1)
    said = pulls.run()
    assert (said.status, said.error) == (0, []), said.output
    assert pulls.found() == NEEDED


def test_a_connection_that_breaks_costs_little(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults = Faults(cut=(1_000_000, 2))
    assert pulls.run().status == 0
    assert pulls.found() == NEEDED
    assert SIZE <= hub.sent_bytes <= SIZE + 2 * PIECE_BYTES, "it went on from where it broke off"


def test_a_store_that_knows_no_ranges_is_put_up_with(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults = Faults(cut=(1_000_000, 1), ignore_range=True)
    assert pulls.run().status == 0
    assert pulls.found() == NEEDED


def test_what_comes_damaged_is_never_taken_for_the_model(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults = Faults(spoil=100)
    said = pulls.run()
    assert (said.status, said.error[0]) == (1, "model_damaged")
    assert "came twice, and both times damaged" in said.error[1]
    assert size_of(pulls.shelf.blob(etag_of("m.safetensors", WEIGHTS))) < 0
    hub.faults = Faults(short=True)
    said = pulls.run()
    assert (said.status, said.error[0]) == (1, "model_damaged")
    assert "ends after" in said.error[1]
    hub.faults = Faults()
    assert pulls.run().status == 0
    assert pulls.found() == NEEDED


@pytest.mark.parametrize(
    ("how", "code", "words", "hint"),
    [
        ({"repo": "acme/nothing"}, "not_on_hub", "has no acme/nothing", "HF_TOKEN"),
        ({"revision": "v9"}, "not_on_hub", "no revision 'v9'", "a branch, a tag"),
        ({"repo": "acme/gated"}, "model_gated", "accepted its terms", "/acme/gated, and set a token"),
        ({"HF_TOKEN": "hf_wrong_token_1"}, "hub_token_refused", "does not accept the token", "expire"),
        ({"repo": "acme/words"}, "not_on_hub", "no weights", "safetensors"),
        ({"repo": "acme/huge"}, "no_space", "needs 100000 TB more, and", "make room"),
        ({"repo": "acme/limited"}, "hub_rate_limited", "too many requests", "in 7 s; with a token"),
        ({"repo": "acme/down"}, "hub_unreachable", "answers 503", "later"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "hub_unreachable", "http://127.0.0.1:9", "HTTPS_PROXY"),
        ({"HF_HUB_OFFLINE": "1"}, "hub_unreachable", "switched off", "HF_HUB_OFFLINE"),
    ],
)
def test_failures_are_told_apart(
    hub: LoopbackHub, pulls: Pulls, how: dict[str, str], code: str, words: str, hint: str
) -> None:
    hub.put("acme/gated", MODEL)
    hub.gated.add("acme/gated")
    hub.put("acme/words", {"README.md": b"hello", "config.json": b"{}"})
    hub.put("acme/huge", {"model.safetensors": WEIGHTS, "huge.safetensors": MORE})
    hub.sizes["huge.safetensors"] = 10**17
    hub.faults.status = {"acme/limited": (429, {"Retry-After": "7"}, 99), "acme/down": (503, {}, 99)}
    said = pulls.run(Verb.PULL, **how)
    assert said.status == 1
    assert said.error[0] == code, said.output
    assert words in said.error[1]
    assert hint in said.error[2]
    assert said.error[3:] == ([7] if code == "hub_rate_limited" else [])
    assert "Traceback" not in said.output
    assert not list(pulls.shelf.blobs.glob("*")), "nothing was fetched"


@pytest.mark.parametrize(
    ("commit", "path"), [("../../../state", "model.safetensors"), ("c0ffee", "../model.safetensors")]
)
def test_a_hub_cannot_lead_out_of_the_cache(hub: LoopbackHub, pulls: Pulls, commit: str, path: str) -> None:
    hub.repos["acme/evil"] = {commit: {path: WEIGHTS}}
    hub.heads["acme/evil"] = {"main": commit}
    said = pulls.run(repo="acme/evil")
    assert (said.status, said.error[:1]) == (1, ["pull_failed"]), said.output
    assert "makes no sense" in said.error[1]
    assert not any(name == "store" for name, *_ in hub.asked), "nothing was fetched"


def test_killed_in_the_middle_it_goes_on_from_there(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults.pace_s = 0.02
    process = pulls.begin()
    partial = pulls.shelf.partial(etag_of("m.safetensors", WEIGHTS))
    until_sync(lambda: size_of(partial) > 500_000, "some of it to come")
    process.kill()
    process.communicate()
    come = size_of(partial)
    commit = hub.heads[REPO]["main"]
    hub.put(REPO, {**MODEL, "model-00002-of-00002.safetensors": b"new"})
    hub.faults.pace_s = 0
    assert pulls.run(Verb.COMPLETE).status == 0
    assert pulls.found() == NEEDED, "the commit that was begun is completed, though the branch has moved"
    assert pulls.shelf.snapshot(commit).exists()
    assert hub.begun[partial.stem] == [0, come], "and from the bytes that were there"


def test_it_dies_with_whoever_started_it(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults.pace_s = 0.05
    program = (
        "import os, sys, time; sys.path[:0] = ['tests']; from pathlib import Path; from types import SimpleNamespace\n"
        "from pulls import Pulls; pulls = Pulls(Path(sys.argv[1]), SimpleNamespace(url=sys.argv[2]))\n"
        "print(pulls.begin(parent=os.getpid()).pid, flush=True); time.sleep(300)"
    )
    folder = str(pulls.shelf.hub.parent)
    parent = subprocess.Popen([sys.executable, "-c", program, folder, hub.url], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until_sync(lambda: hub.sent_bytes > 100_000, "some of it to come")
    os.kill(pid, 0)
    parent.kill()
    parent.communicate()
    until_sync(lambda: not _runs(pid), "the program to be gone")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_two_at_once_fetch_it_once(hub: LoopbackHub, pulls: Pulls) -> None:
    hub.faults.pace_s = 0.005
    first, second = pulls.begin(), pulls.begin()
    assert (outcome(first).status, outcome(second).status) == (0, 0)
    assert pulls.found() == NEEDED
    assert hub.sent_bytes == SIZE


def test_a_revision_that_moves_shares_what_did_not_change(hub: LoopbackHub, pulls: Pulls) -> None:
    assert pulls.run().status == 0
    commit, changed = hub.heads[REPO]["main"], {**MODEL, "model-00002-of-00002.safetensors": MORE[::-1]}
    hub.put(REPO, changed)
    assert pulls.run(Verb.COMPLETE).status == 0
    assert pulls.found() == NEEDED, "what was pulled stays"
    hub.faults = Faults(spoil=100)
    assert pulls.run(Verb.PULL).error[0] == "model_damaged"
    assert pulls.found() == NEEDED, "a pull that failed has taken nothing away"
    hub.faults, hub.sent = Faults(), {}
    assert pulls.run(Verb.PULL).status == 0
    assert pulls.found()["model-00002-of-00002.safetensors"] == MORE[::-1]
    assert hub.sent_bytes == len(MORE)
    assert pulls.run(revision=commit).status == 0
    assert pulls.found(commit) == NEEDED
    assert hub.sent_bytes == len(MORE)


def test_broken_files_are_found_and_repaired(hub: LoopbackHub, pulls: Pulls) -> None:
    assert pulls.run().status == 0
    assert pulls.run(Verb.VERIFY).error == []
    blob = pulls.shelf.blob(etag_of("m.safetensors", WEIGHTS))
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    pulls.shelf.blob(etag_of("config.json", MODEL["config.json"])).write_bytes(b"")
    said = pulls.run(Verb.VERIFY)
    assert (said.status, said.error[0]) == (1, "model_damaged")
    assert "2 of 3 files of acme/tiny are broken" in said.error[1]
    assert "verify --repair acme/tiny" in said.error[2]
    assert {"line": "config.json: it has 0 bytes instead of 23"} in said.lines
    sent = hub.sent_bytes
    assert pulls.run(Verb.REPAIR).status == 0
    assert pulls.found() == NEEDED
    assert hub.sent_bytes - sent == len(WEIGHTS) + len(MODEL["config.json"]), "only what was broken"
