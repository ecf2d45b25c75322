"""The cache of models on disk: where everything lies, what is known of it, and what its end really frees."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vllmd.engine import stock
from vllmd.engine.hub import Shelf, cache_of, is_name, is_offline, is_revision
from vllmd.engine.manifest import File, Manifest, Manifests, from_table, to_table
from vllmd.engine.unused import prune

A, B, C = (letter * 64 for letter in "abc")
ONE = Manifest("acme/tiny", "", "1111", (File("config.json", 2, A), File("w/m.safetensors", 5, B)), 7.0)
TWO = Manifest("acme/tiny", "v2", "2222", (File("config.json", 2, A), File("w/m.safetensors", 9, C)), 8.0)


def put(shelf: Shelf, manifest: Manifest) -> None:
    """The model as a pull leaves it."""
    shelf.blobs.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        shelf.blob(file.etag).write_bytes(b"x" * file.size)
        name = shelf.snapshot(manifest.commit) / file.path
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(os.path.relpath(shelf.blob(file.etag), name.parent))
    shelf.ref(manifest.revision).parent.mkdir(exist_ok=True)
    shelf.ref(manifest.revision).write_text(manifest.commit)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "hub", "acme/tiny")
    put(shelf, ONE)
    put(shelf, TWO)
    return shelf


@pytest.mark.parametrize("name", ["gpt2", "acme/tiny", "Qwen/Qwen2-7B-Instruct", "a/b_c.d-1.5"])
def test_names_on_a_hub(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/srv/m",
        "./m",
        "../m",
        "~/m",
        "a/b/c",
        "s3://b/m",
        "a/b:Q4_K_M",
        "a/b.gguf",
        "a--b",
        "a/..",
        "a b",
        "ä/b",
    ],
)
def test_what_is_none(name: str) -> None:
    assert not is_name(name)


def test_revisions_stay_below_their_directory() -> None:
    assert all(map(is_revision, ("main", "v1.0", "refs/pr/7", "0123abcd", "feature/a+b")))
    assert not any(map(is_revision, ("", "..", "a/../b", "/main", "a b", "a/", "-x", "é")))


def test_where_the_cache_is() -> None:
    assert cache_of({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")
    assert cache_of({"HF_HOME": "/h"}) == Path("/h/hub")
    assert cache_of({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert cache_of({"HOME": "/home/ada"}) == Path("/home/ada/.cache/huggingface/hub")
    assert is_offline({"HF_HUB_OFFLINE": "yes"})
    assert not is_offline({"HF_HUB_OFFLINE": "0"})


def test_a_manifest_survives_and_a_strange_one_is_none(tmp_path: Path) -> None:
    manifests = Manifests(tmp_path / "models")
    assert list(manifests) == []
    for each in (ONE, TWO, ONE):
        manifests.put(each)
    assert (manifests.find("acme/tiny", ""), manifests.find("acme/tiny", "v2")) == (ONE, TWO)
    assert manifests.find("acme/tiny", "v3") is None
    manifests.drop(ONE)
    assert list(manifests) == [TWO]
    (path,) = (tmp_path / "models").iterdir()
    for text in ("", "[]", "{}", '{"repo": 1}', "\xff", "[" * 10_000):
        path.write_text(text, encoding="latin-1")
        assert list(manifests) == []


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"path": "../../etc/passwd", "size": 1, "etag": A}]},
        {"files": [{"path": "/etc/passwd", "size": 1, "etag": A}]},
        {"files": [{"path": "a", "size": 1, "etag": "../" + A}]},
        {"files": [{"path": "a", "size": -1, "etag": A}]},
        {"commit": "../.."},
        {"commit": ".."},
        {"version": 2},
    ],
)
def test_nothing_leads_out_of_its_place(change: dict[str, object]) -> None:
    table = json.loads(json.dumps(to_table(ONE)))
    assert from_table(table) == ONE
    assert from_table({**table, **change}) is None


def test_what_is_whole(shelf: Shelf) -> None:
    assert shelf.is_whole(ONE)
    assert shelf.there(ONE) == ONE.size == 7
    shelf.blob(B).unlink()
    shelf.partial(B).write_bytes(b"xyz")
    assert not shelf.is_whole(ONE)
    assert shelf.there(ONE) == 5
    assert shelf.is_whole(TWO)


def test_the_list(shelf: Shelf) -> None:
    put(Shelf(shelf.hub, "gpt2"), Manifest("gpt2", "", "3333", (File("config.json", 2, A),)))
    users = {(shelf.snapshot("1111"), "acme/tiny"): ("chat",)}
    found = {(each.repo, each.commit): each for each in stock.listing(shelf.hub, [ONE, TWO], users)}
    assert set(found) == {("acme/tiny", "1111"), ("acme/tiny", "2222"), ("gpt2", "3333")}
    one, two, other = found.values()
    assert (one.size, one.total, one.complete, one.used_by, one.revisions) == (7, 7, True, ("chat",), ())
    assert (two.size, two.complete, two.used_by, two.revisions, two.pulled_at) == (11, True, (), ("v2",), 8.0)
    assert (other.size, other.total, other.complete) == (2, None, None), "another program's"


def test_what_is_shared_stays_and_the_rest_is_free(shelf: Shelf) -> None:
    assert stock.commits(shelf, [ONE, TWO], "") == {"1111", "2222"}
    assert stock.commits(shelf, [ONE, TWO], "v2") == stock.commits(shelf, [], "2222") == {"2222"}
    assert stock.commits(shelf, [ONE, TWO], "2") == set(), "too little to be meant"
    shelf.partial(C).write_bytes(b"1234")
    assert stock.remove(shelf, {"2222"}) == 9 + 4
    assert shelf.is_whole(ONE)
    assert not shelf.blob(C).exists()
    assert not shelf.ref("v2").exists()
    assert shelf.ref("").exists()
    with open(shelf.lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            stock.remove(shelf, {"1111"})
    assert shelf.is_whole(ONE), "another process is about to change it"
    assert stock.remove(shelf, {"1111"}) == 7
    assert stock.remove(shelf, {"1111"}) == 0
    assert not shelf.root.exists()


def never(manifest: Manifest) -> bool:
    return False


def test_what_made_way_for_a_newer_commit_goes_when_asked_and_nothing_else(shelf: Shelf, tmp_path: Path) -> None:
    manifests = Manifests(tmp_path / "models")
    newer = replace(TWO, revision="", commit="3333")
    manifests.put(ONE)
    manifests.supersede(replace(ONE, pulled_at=9.0))
    assert list(manifests.superseded) == [], "it is the same commit"
    manifests.supersede(newer)
    put(shelf, newer)
    manifests.put(newer)
    shelf.partial(B).write_bytes(b"12")
    shelf.partial("d" * 64).write_bytes(b"another program's, and just coming")
    hubs = [shelf.hub]

    def stays() -> bool:
        return shelf.is_whole(ONE) and len(list(manifests.superseded)) == 1

    assert prune(manifests, hubs, {("acme/tiny", "1111")}, never) == ([], 0)
    assert prune(manifests, hubs, (), lambda each: each.commit == "1111") == ([], 0)
    manifests.pending.put(replace(ONE, revision="old"))
    assert prune(manifests, hubs, (), never) == ([], 0)
    manifests.pending.drop(replace(ONE, revision="old"))
    shelf.ref("v1").write_text("1111\n")
    assert prune(manifests, hubs, (), never) == ([], 0)
    shelf.ref("v1").unlink()
    readme = shelf.snapshot("1111") / "README.md"
    readme.write_text("another program has pulled all of it")
    assert prune(manifests, hubs, (), never) == ([], 0)
    readme.unlink()
    with open(shelf.lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prune(manifests, hubs, (), never) == ([], 0)
    assert stays()
    assert prune(manifests, hubs, (), never) == (["acme/tiny@1111"], 5 + 2)
    assert not shelf.snapshot("1111").exists()
    assert shelf.partial("d" * 64).exists()
    assert shelf.is_whole(newer), "also what both share"
    assert shelf.is_whole(TWO)
    assert list(manifests.superseded) == []
