"""GPUs that exist only in a folder: vllmd sees them as real ones, and what fake engines hold there is missing."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import virtual_gpus
import virtual_models
from daemons import Daemon
from virtual_gpus import GIB
from waiting import until_sync

from vllmd.engine.fit import Answer


@pytest.fixture
def gpus(tmp_path: Path) -> Path:
    """Two cards: the model is to use the second, of 80 GiB."""
    virtual_gpus.make(tmp_path / "gpus", 24 * GIB, 80 * GIB)
    return tmp_path / "gpus"


@pytest.fixture
def other(gpus: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """An engine that is not vllmd's; it holds 50 GiB of the second card."""
    knobs = {"gpus": gpus, "memory": 50 * GIB, "life_s": 120}
    environ = {**fake_vllm.environ(**knobs), "CUDA_VISIBLE_DEVICES": "GPU-1"}
    with subprocess.Popen(fake_vllm.command(tmp_path / "uds"), env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            until_sync(lambda: virtual_gpus.held(gpus), "the other engine to hold memory")
            yield process
        finally:
            process.kill()


@pytest.fixture
def daemon(gpus: Path, tmp_path: Path) -> Iterator[Daemon]:
    """One that serves a model of 60 GiB on the second card; it is not started."""
    daemon = Daemon(environ=virtual_gpus.environ(gpus))
    (daemon.folder / "env/lib/python3.11/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
    tiny, model = daemon.tiny(), virtual_models.make(tmp_path / "model", 60 * GIB)
    env = {**tiny["env"], "CUDA_VISIBLE_DEVICES": "1"}
    daemon.configure({}, {"models": {"tiny": {**tiny, "model": str(model), "env": env}}})
    yield daemon
    daemon.see_to_its_end()


def fit_of(daemon: Daemon) -> dict[str, Any]:
    """What `vllmctl plan tiny --json` says."""
    answer: dict[str, Any] = daemon.fetch("/api/models/tiny/fit")[1]
    return answer


def test_a_model_waits_for_memory_that_another_engine_holds(
    daemon: Daemon, gpus: Path, other: "subprocess.Popen[bytes]"
) -> None:
    daemon.start(ready=False)
    reason = "the weights take 60.00 GiB; of the GPU's memory are free now: 30.00 GiB of 80.00 GiB"
    waits = f"memory is waited for: the model does not fit: {reason}"
    until_sync(lambda: waits in daemon.log, "vllmd to wait for memory")
    assert daemon.order("unload", wait=True)[0] == 200
    fit = fit_of(daemon)
    assert (fit["verdict"], fit["device"], fit["permanent"]) == (Answer.NO, "GPU", False)
    assert (fit["total_bytes"], fit["free_bytes"], fit["weights_bytes"]) == (80 * GIB, 30 * GIB, 60 * GIB)

    other.kill()  # its entry is left
    other.wait()
    alone = fit_of(daemon)
    assert (alone["verdict"], alone["free_bytes"]) == (Answer.YES, 80 * GIB)
    assert daemon.order("load", wait=True)[0] == 200
    (holding,) = virtual_gpus.held(gpus)
    assert (holding.pid, holding.card) == (daemon.engine_pid, 1)
    assert holding.bytes == fit["allowed_bytes"], "vllmd and the engine mean the same share"
