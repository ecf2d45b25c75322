"""A vllmd on the real vLLM for CPU with the demo's model, for tests."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demo
import prepare
from daemons import UGLY, Daemon
from waiting import until

from vllmd.engine.environment import ensure

STARTS_WITHIN_S = 900.0

_ENGINE_S = re.compile("^ {4}| tiny: ")


class RealDaemon(Daemon):
    """A daemon whose engine prints tracebacks of its own: set in, where they are not the first line of an entry."""

    @property
    def log(self) -> str:
        return "\n".join(
            line for line in super().log.splitlines() if not (UGLY.search(line) and _ENGINE_S.search(line))
        )


@contextmanager
def real_daemon(args: Mapping[str, Any] | None = None, **sections: Any) -> Iterator[Daemon]:
    """A running one.

    Args:
        args: flags of vLLM's beside the demo's.
        sections: tables of the configuration.
    """
    model = asyncio.run(prepare.prepare(demo.STATE, print))
    environment = asyncio.run(ensure(prepare.ENGINE, demo.STATE / "environments", "", print))
    daemon = RealDaemon(
        models={"tiny": _table(model, args or {})},
        environment={"path": str(environment.root)},
        paths={"cache": str(demo.STATE / "cache")},
        **sections,
    )
    try:
        daemon.launch()
        daemon.wait_for("ready", STARTS_WITHIN_S)
        yield daemon
    finally:
        daemon.see_to_its_end()


def _table(model: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's table."""
    return {
        "model": str(model),
        "args": {"dtype": "float32", "max-model-len": 2048, "enforce-eager": True, **args},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    }


async def engine_counts(daemon: Daemon, name: str = "num_requests_running") -> float:
    """A number of vLLM's own, read behind vllmd's back."""
    page = (await daemon.engine.ask("/metrics")).body.decode()
    return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", page, re.MULTILINE)))


async def until_engine_works_on(daemon: Daemon, count: int, deadline_s: float = 30.0) -> None:
    """Waits until vLLM says that it works on so many requests."""

    async def is_so() -> bool:
        return await engine_counts(daemon) == count

    await until(is_so, f"the engine to work on {count} requests", deadline_s)
