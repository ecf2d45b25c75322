"""What a load needs of a hub: nothing where the model is there, or is vLLM's to find; and what is done in need."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import etag_of, serving

from vllmd.engine.feed import Feed
from vllmd.engine.jobs import Jobs
from vllmd.engine.library import Library, as_configured, wanted_by
from vllmd.engine.manifest import File, Manifest, Manifests
from vllmd.engine.plan import Plan
from vllmd.errors import HubUnreachable, InUse, NotOnHub, PullError
from vllmd.provisions import JobStatus
from vllmd.sections import EnvironmentSettings, Model, Paths

NOBODY = "http://127.0.0.1:9"
CONFIG = Manifest("acme/m", "", "c0ffee", (File("config.json", 2, etag_of("config.json", b"{}")),))

Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Plans of a model on a hub, and of whatever else."""

    def make(model: str = "acme/m", endpoint: str = NOBODY, args: Any = None, **env: str) -> Plan:
        paths = Paths(state=str(tmp_path / "s"), runtime=str(tmp_path / "r"), cache=str(tmp_path / "c"))
        around = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin"}
        return Plan("m", Model(model, args=args or {}, env=env), EnvironmentSettings(), paths, around)

    return make


def library_of(plan: Plan, jobs: Jobs | None = None) -> Library:
    return Library(jobs or Jobs(Feed()), plan.state, plan.environ, lambda: [plan])


async def provided(plan: Plan, told: Callable[[JobStatus], None] = lambda status: None) -> Path | None:
    return await library_of(plan).provide(plan, told)


def put(plan: Plan) -> Path:
    """The model as a pull leaves it; returns where it lies."""
    wanted = wanted_by(plan)
    assert wanted is not None
    Manifests(plan.state / "models").put(CONFIG)
    snapshot = wanted.shelf.snapshot(CONFIG.commit)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    return snapshot


def test_what_is_asked_of_a_hub(make: Make, tmp_path: Path) -> None:
    wanted = wanted_by(make(args={"revision": "v2"}, HF_HOME="/srv/hf"))
    assert wanted is not None
    assert (wanted.subject, wanted.shelf.root) == ("acme/m@v2", Path("/srv/hf/hub/models--acme--m"))
    for model in (str(tmp_path), "s3://bucket/m", "acme/m:Q4_K_M", "./m"):
        assert wanted_by(make(model)) is None, "it is served as it is, or is vLLM's to find"
    assert wanted_by(make(args={"load-format": "dummy"})) is None
    assert wanted_by(make(VLLM_USE_MODELSCOPE="True")) is None, "that is another hub"
    elsewhere = wanted_by(make(args={"download_dir": "/srv/models", "load-format": "mistral"}))
    assert elsewhere is not None
    assert elsewhere.shelf.root == Path("/srv/models/models--acme--m"), "where vLLM would look for it"
    assert "consolidated*.safetensors" in elsewhere.patterns, "that format needs what others do not"


def test_names_that_people_use(make: Make) -> None:
    library = library_of(make(args={"revision": "v2"}, HF_HOME="/srv/hf"))
    assert library.wanted("m") == library.wanted("acme/m")
    assert library.wanted("m").subject == "acme/m@v2"
    assert library.wanted("m@v3").subject == library.wanted("acme/m", "v3").subject == "acme/m@v3"
    assert library.wanted("other/m").shelf.hub != library.wanted("m").shelf.hub, "each has its own surroundings"
    for name in ("/srv/m", "", "acme/m@../x", "a b"):
        with pytest.raises(NotOnHub):
            library.wanted(name)
    with pytest.raises(NotOnHub, match="is no model on a hub"):
        library_of(make("s3://bucket/m")).wanted("m")


async def test_what_is_there_costs_no_question(make: Make) -> None:
    assert await provided(make(HF_HUB_OFFLINE="1")) is None, "nobody may be asked: vLLM says what is missing"
    assert await provided(make("s3://bucket/m")) is None
    assert await as_configured(make(), lambda status: None) is None
    snapshot = put(make())
    assert await provided(make()) == await provided(make(HF_HUB_OFFLINE="1")) == snapshot


async def test_without_a_hub_the_cache_has_to_do(make: Make) -> None:
    plan = make()
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        await provided(plan)
    wanted = wanted_by(plan)
    assert wanted is not None
    wanted.shelf.ref("").parent.mkdir(parents=True)
    wanted.shelf.ref("").write_text("another program's")
    assert await provided(plan) is None, "vLLM is to try it with what is there"
    pinned = make(args={"revision": "c0ffee"})
    with pytest.raises(HubUnreachable):
        await provided(pinned)
    wanted.shelf.snapshot("c0ffee").mkdir(parents=True)
    assert await provided(pinned) is None, "a commit needs no name"


async def test_a_cache_that_cannot_be_written_has_to_do(make: Make) -> None:
    with serving() as hub:
        hub.put("acme/m", {"config.json": b"{}", "m.safetensors": b"x"})
        plan = make(endpoint=hub.url)
        wanted = wanted_by(plan)
        assert wanted is not None
        wanted.shelf.lock.mkdir(parents=True)  # in the place of a file; root may write whatever is read-only
        with pytest.raises(PullError, match="cannot be pulled"):
            await provided(plan)
        wanted.shelf.ref("").parent.mkdir(parents=True)
        wanted.shelf.ref("").write_text("another program's")
        assert await provided(plan) is None, "vLLM is to try it with what is there"


async def test_what_is_missing_is_fetched_and_told(make: Make) -> None:
    with serving() as hub:
        commit = hub.put("acme/m", {"config.json": b"{}", "m.safetensors": b"x" * 1000})
        plan, told = make(endpoint=hub.url), list[JobStatus]()
        snapshot = await provided(plan, told.append)
        assert snapshot is not None
        assert (snapshot.name, sorted(each.name for each in snapshot.iterdir())) == (
            commit,
            ["config.json", "m.safetensors"],
        )
        assert {each.phase for each in told} >= {"asking the hub", "downloading"}
        assert await provided(plan) == snapshot


async def test_other_files_of_the_same_commit_are_fetched_when_others_are_wanted(make: Make) -> None:
    with serving() as hub:
        commit = hub.put("acme/m", {"config.json": b"{}", "m.safetensors": b"x", "consolidated.safetensors": b"yy"})
        usual, mistral = make(endpoint=hub.url), make(endpoint=hub.url, args={"load-format": "mistral"})
        snapshot = await provided(usual)
        hub.put("acme/m", {"config.json": b"{}", "m.safetensors": b"another"})
        away = make(endpoint=NOBODY, args={"load-format": "mistral"})
        assert snapshot is not None
        assert await provided(away) == snapshot, "an outage of the hub is none of ours"
        assert await provided(mistral) == snapshot, "a load does not move the model"
        assert snapshot.name == commit
        assert sorted(each.name for each in snapshot.iterdir()) == [
            "config.json",
            "consolidated.safetensors",
            "m.safetensors",
        ]
        asked = len(hub.asked)
        for plan in (usual, mistral, usual):
            assert await provided(plan) == snapshot
        assert len(hub.asked) == asked, "now there is all for both of them"


async def test_what_is_used_stays(make: Make) -> None:
    plan, jobs = make(), Jobs(Feed())
    library, snapshot = library_of(plan, jobs), put(plan)
    with pytest.raises(InUse, match="acme/m is in use by chat, code"):
        library.remove("m", ["chat", "code"])
    job = library.verify(library.wanted("m"), repair=False)
    with pytest.raises(InUse, match="by a job: verify"):
        library.remove("m", [])
    await job.result()
    assert snapshot.exists()
    (found,) = library.stored()
    assert (found.repo, found.used_by, found.complete) == ("acme/m", ("m",), True)
    # Another commit of it, of which nothing has come yet, goes by itself.
    manifests = Manifests(plan.state / "models")
    manifests.pending.put(replace(CONFIG, commit="beef01"))
    assert [(each.commit, each.complete) for each in library.stored()] == [("beef01", False), ("c0ffee", True)]
    library.remove("m@beef01", [])
    assert (list(manifests), list(manifests.pending)) == ([CONFIG], [])
    library.remove("m", [])
    assert not library.stored()
    with pytest.raises(NotOnHub, match="there is no m on this disk"):
        library.remove("m", [])
