"""A model that comes from a hub, on a real vLLM: fetched at the load, served from its snapshot, and it answers."""

import asyncio
from pathlib import Path

import demo
import prepare
import pytest
from loopback_hub import serving
from system.real import STARTS_WITHIN_S, RealDaemon

from vllmd.engine.environment import ensure

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

REPO = "acme/smollm2-135m"


def test_a_model_is_fetched_and_brings_a_token() -> None:
    model = asyncio.run(prepare.prepare(demo.STATE, print))
    environment = asyncio.run(ensure(prepare.ENGINE, demo.STATE / "environments", "", print))
    with serving() as hub:
        hub.put(REPO, {each.name: each.read_bytes() for each in model.iterdir()})
        args = {"dtype": "float32", "max-model-len": 512, "enforce-eager": True}
        table = {"model": REPO, "args": args, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
        daemon = RealDaemon(
            environ={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
            models={"tiny": table},
            environment={"path": str(environment.root)},
            paths={"cache": str(demo.STATE / "cache")},
        )
        try:
            daemon.launch()
            daemon.wait_for("ready", STARTS_WITHIN_S)
            body = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 8, "stream": False}
            status, answer = daemon.fetch("/api/prompt", "POST", body)
            assert status == 200, answer
            assert answer["text"].strip()
            commit = hub.heads[REPO]["main"]
            snapshot = daemon.folder / f"hf/hub/models--acme--smollm2-135m/snapshots/{commit}"
            argv = Path(f"/proc/{daemon.engine_pid}/cmdline").read_bytes().split(b"\0")
            assert str(snapshot).encode() in argv
            assert b"HF_HUB_OFFLINE=1" in Path(f"/proc/{daemon.engine_pid}/environ").read_bytes().split(b"\0")
            assert len([path for _, _, path, _ in hub.asked if path.startswith("/api/models/")]) == 1
            (found,) = daemon.fetch("/api/models/local")[1]["models"]
            assert (found["complete"], found["used_by"]) == (True, ["tiny"])
        finally:
            daemon.see_to_its_end()
