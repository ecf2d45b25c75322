"""The program that fetches models, run by tests against a hub on a loopback address."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

from vllmd.engine.hub import Shelf
from vllmd.engine.manifest import Manifests
from vllmd.engine.pulling import Order, Verb, encode

REPO = "acme/tiny"
TOKEN = "hf_0123456789abcdef"
WEIGHTS = random.Random(7).randbytes(3_000_000)
MORE = random.Random(8).randbytes(700_000)
MODEL = {
    "config.json": b'{"model_type": "qwen2"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": MORE,
    "pytorch_model.bin": b"the same once more",
    "original/consolidated.00.pth": b"and once more",
    ".gitattributes": b"*.bin filter=lfs",
}
NEEDED = {path: content for path, content in MODEL.items() if path == "config.json" or path.endswith(".safetensors")}
SIZE = sum(map(len, NEEDED.values()))

ENDS_WITHIN_S = 90.0


@dataclass(frozen=True)
class Said:
    """What the program has said, and how it ended."""

    status: int
    lines: list[dict[str, Any]]
    output: str

    @property
    def error(self) -> list[Any]:
        """Code, message and hint of what went wrong; empty if nothing did."""
        return next((each["error"] for each in self.lines if "error" in each), [])

    @property
    def progress(self) -> list[list[Any]]:
        return [each["progress"] for each in self.lines if "progress" in each]


class Pulls:
    """The program, with a cache and a state of its own.

    Args:
        folder: where both lie.
        hub: whom it asks.
    """

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.shelf = Shelf(folder / "hub", REPO)
        self.manifests = Manifests(folder / "state")
        self._folder = folder
        self._hub = hub

    def begin(self, verb: Verb = Verb.PULL, parent: int = 0, **how: str) -> "subprocess.Popen[str]":
        """Starts the program.

        Args:
            parent: with whom it is to die; 0 for this process.
            how: `repo` and `revision`; all else are variables of its environment.
        """
        repo, revision = how.pop("repo", REPO), how.pop("revision", "")
        order = Order(verb, repo, revision, (), str(self.shelf.hub), str(self._folder / "state"), parent or os.getpid())
        argv = [sys.executable, "-m", "vllmd.engine.pulling", encode(order)]
        pipe, env = subprocess.PIPE, self.env(how)
        return subprocess.Popen(argv, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env)

    def run(self, verb: Verb = Verb.PULL, **how: str) -> Said:
        """The program, from its start to its end."""
        return outcome(self.begin(verb, 0, **how))

    def env(self, environ: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        quick = {
            "HF_HUB_DOWNLOAD_TIMEOUT": "20",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self._folder / "home"),
        }
        return {**kept, **quick, "HF_ENDPOINT": self._hub.url, **environ}

    def found(self, revision: str = "") -> dict[str, bytes]:
        """What the snapshot holds that was pulled."""
        manifest = self.manifests.find(REPO, revision)
        assert manifest is not None, "nothing was pulled"
        snapshot = self.shelf.snapshot(manifest.commit)
        files = [each for each in snapshot.rglob("*") if each.is_file()]
        return {str(each.relative_to(snapshot)): each.read_bytes() for each in files}


def outcome(process: "subprocess.Popen[str]") -> Said:
    """What a program has said, once it has ended."""
    try:
        output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    return Said(process.returncode, [_parsed(line) for line in output.splitlines()], output)


def _parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"line": line}
