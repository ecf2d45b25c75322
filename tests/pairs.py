"""A real vllmd with two models on a virtual GPU that has room for one, for tests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import virtual_gpus
import virtual_models
from asking import Door, Exchange
from daemons import Daemon, running
from virtual_gpus import GIB

CHAT = "/v1/chat/completions"
GPU = 80 * GIB
WEIGHTS = GIB // 4
"""Of each: an engine sleeps only where the main memory of the machine, which is real, has room for twice as much."""

RESIDUE = 1 * GIB
"""What a fake engine holds while it sleeps, unless it is told otherwise."""


class Pair(Daemon):
    """A daemon with two models, `a` and `b`, on a GPU of 80 GiB, of which each wants 0.6.

    Args:
        models: model → keys of its table; also of more models than the two.
        of_all: keys of all.
        sections: of the configuration.
    """

    def __init__(
        self,
        models: Mapping[str, Any] | None = None,
        *,
        of_all: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        super().__init__(environ=environ)
        self.gpus = self.folder / "gpus"
        self._environ |= virtual_gpus.environ(self.gpus)
        virtual_gpus.make(self.gpus, GPU)
        (self.folder / "env/lib/python3.11/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
        tables = {"a": {}, "b": {}, **(models or {})}
        self.tables = {name: self.table(name, {**of_all, **keys}) for name, keys in tables.items()}
        self.sections = {"memory": {"turn_s": 3600}, **sections}
        self.configure({}, {**self.sections, "models": self.tables})

    def table(self, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        tiny, files = self.tiny({"gpu-memory-utilization": 0.6}), virtual_models.make(self.folder / name, WEIGHTS)
        return {**tiny, "model": str(files), "default": name == "a", **keys}

    def knobs(self, name: str, **knobs: object) -> None:
        """Knobs of one model's engines alone."""
        env = {**self.tables[name]["env"], **{f"FAKE_{key.upper()}": str(value) for key, value in knobs.items()}}
        self.tables[name]["env"] = env
        self.configure({}, {**self.sections, "models": self.tables})

    @property
    def states(self) -> dict[str, str]:
        return {each.name: each.state for each in self.status().models}

    @property
    def held(self) -> int:
        """The bytes of the GPU that are taken."""
        return GPU - virtual_gpus.free(self.gpus, 0)

    async def ask(self, model: str, door: Door | None = None, **more: Any) -> Exchange:
        """A whole answer of a model's, which comes however long it takes to bring it into memory."""
        answer = await (door or self.unix).ask(CHAT, {**said(model), **more})
        assert answer.status == 200, answer.body
        assert answer.json()["model"] == model
        return answer


def said(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def pair(*args: Any, **how: Any) -> Iterator[Pair]:
    """One that runs; its models are loaded on demand, and sleep when they have to go."""
    how = {"of_all": {"load": "demand", "sleep_level": 1}, **how}
    daemon = Pair(*args, **how)
    with running(daemon, ready=False):
        yield daemon
