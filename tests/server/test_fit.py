"""A model that cannot fit is refused before anything is started, and `vllmctl plan MODEL` shows the sum."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import Daemon

PROMPT = "/api/prompt"
ABSURD = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 100_000,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}


def ctl(daemon: Daemon, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "vllmd.ctl", "-H", str(daemon.socket), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def table(daemon: Daemon, **keys: Any) -> dict[str, Any]:
    """The model's table: a KV cache of 1 GiB in main memory."""
    tiny = daemon.tiny()
    env = {**tiny["env"], "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {"models": {"tiny": {**tiny, "model": str(daemon.folder / "absurd"), "env": env, **keys}}}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One that serves a model of absurd size on a CPU; it is not started."""
    daemon = Daemon()
    (daemon.folder / "env/lib/python3.11/site-packages/vllm-0.32.0+cpu.dist-info").mkdir(parents=True)
    (daemon.folder / "absurd").mkdir()
    (daemon.folder / "absurd/config.json").write_text(json.dumps(ABSURD))
    daemon.configure({}, table(daemon))
    yield daemon
    daemon.see_to_its_end()


def test_what_cannot_fit_is_refused_at_once_unless_that_is_switched_off(daemon: Daemon) -> None:
    daemon.start(ready=False)
    daemon.wait_for("failed")
    model = daemon.model()
    assert (model.cause, model.restarts, model.generation) == ("does not fit", 0, 1), "it is not tried again"
    status, body = daemon.fetch(PROMPT, "POST", {"prompt": "x"})
    assert (status, body["error"]["code"]) == (503, "engine_failed")
    assert "the model does not fit: one sequence of 4096 tokens needs a KV cache of" in body["error"]["message"]
    assert "VLLM_CPU_KVCACHE_SPACE" in body["error"]["hint"]

    plan = ctl(daemon, "plan", "tiny")
    assert (plan.returncode, plan.stderr) == (1, "")
    assert "tiny: it does not fit" in plan.stdout
    assert "KV cache set aside" in plan.stdout
    assert "1.00 GiB" in plan.stdout
    short = ctl(daemon, "plan", "tiny", "--max-model-len", "1", "--json")
    answer = json.loads(short.stdout)
    assert (answer["verdict"], answer["kv_token_bytes"]) == ("no", 100_000 * 2 * 4096 * 2), "one token is 1.5 GiB"
    assert daemon.journal() == [], "an engine was started"

    daemon.configure({}, table(daemon, fit="warn"))
    assert ctl(daemon, "reload").returncode == 0
    assert ctl(daemon, "load").returncode == 0
    assert "the model will not fit: one sequence of 4096 tokens" in daemon.log
    assert daemon.journal() != []
    assert json.loads(ctl(daemon, "plan", "tiny", "--json").stdout)["free_bytes"] is None, "its engine holds memory"


def test_a_model_that_is_not_here_yet_is_started(daemon: Daemon) -> None:
    (daemon.folder / "absurd/config.json").unlink()
    daemon.start()
    answer = ctl(daemon, "plan", "tiny")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "it cannot be judged" in answer.stdout
    assert "its files are not here yet" in answer.stdout
    status, body = daemon.fetch("/api/models/nobody/fit")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert daemon.fetch("/api/models/tiny/fit?max_model_len=x")[0] == 400
