"""What vllmd costs in front of a real vLLM on a real GPU: direct and through vllmd, in turns, in one session.

    python tests/bench/gpu.py --vllm-site /opt/site --model /opt/qwen2-7b [--kill] [--out DIR] [--work DIR]
    python tests/bench/gpu.py --fake --streams 1,8 --singles 3 --rounds 1 --tokens 16      (anywhere, to try it)

vLLM in /opt/site and the model in /opt/qwen2-7b are what `pack-vllm.sh` packs: CUDA packages for a Python that has
torch, and Qwen2-7B-Instruct's shape with dummy weights. Steps on a GPU machine with Python 3.12 and no network:

1. Here: the wheels of what packaging/requirements.lock names, without uv, for Python 3.12 (`pip download --no-deps
   --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --only-binary=:all:`;
   sdnotify, which has none, by `pip wheel`). Carry them and the parts there.
2. There, the wheels: python3 -m pip install --no-index --no-deps --target /tmp/wheels WHEELS/*.whl
   and the parts: cat PARTS/part_* | xz -dc -T8 | tar x -C /opt; xz -dc PARTS/qwen.tar.xz | tar x -C /opt
3. There, in the repository's root:
   PYTHONPATH=/tmp/wheels:$PWD python3 -u tests/bench/gpu.py --vllm-site /opt/site --model /opt/qwen2-7b --kill

It takes 2 minutes until vLLM is ready and as many to measure, printing how far it is; --kill takes another start. DIR
holds gpu.json and table.md (anew after every group of rounds) and vllmd.log. The caches of vLLM lie in --work; where
that stays, a second start is quicker.

Ways: `direct` is vLLM's own Unix socket, `unix` and `tcp` are vllmd's doors. Times count from the sending of a request
on an open connection. All streams of a round begin at once; tokens are counted by usage, for vLLM merges them when its
consumer lags. With one stream, requests of the ways take turns one by one. The rate is the median of the rounds; times
are those of all streams together. CPU is that of vllmd's process, in rounds through it.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench import gpu_kill, gpu_service, gpu_table, machine  # noqa: E402 (the script runs alone)
from bench.gpu_load import Clients, request  # noqa: E402

WARM_TOKENS = 32
SINGLE_TOKENS = 64
GPU_FACTS = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"


class Bench:
    """Rounds of requests, each with a prompt of its own."""

    def __init__(self, wanted: argparse.Namespace, service: gpu_service.Service, clients: Clients) -> None:
        self._wanted, self._service, self._clients = wanted, service, clients
        self._numbers = count(1)
        self.rows: list[gpu_table.Figures] = []
        self.added: dict[str, list[float]] = {}

    def group(self, streams: int) -> None:
        """All rounds of so many streams, the ways in turns; tells its figures."""
        ways = ["direct", "unix", *(["tcp"] if streams in self._wanted.tcp else [])]
        alone = streams == 1
        times = self._wanted.singles if alone else self._wanted.rounds
        tokens = min(self._wanted.tokens, SINGLE_TOKENS) if alone else self._wanted.tokens
        found: dict[str, list[gpu_table.Round]] = {way: [] for way in ways}
        for way in ways:
            self.play(way, streams, min(tokens, WARM_TOKENS))
        for number in range(times):
            for way in ways if number % 2 == 0 else reversed(ways):
                found[way].append(self.play(way, streams, tokens))
        self._tell(streams, found)

    def play(self, way: str, streams: int, tokens: int) -> gpu_table.Round:
        """One round of one way."""
        requests = [request(next(self._numbers), tokens, gpu_service.NAME) for _ in range(streams)]
        engine = self._service.model().pid or 0
        vllmd_s, engine_s = self._service.cpu_s(), gpu_service.cpu_s(engine)
        played = self._clients.play(self._service.address(way), requests)
        return gpu_table.Round(played, self._service.cpu_s() - vllmd_s, gpu_service.cpu_s(engine) - engine_s)

    def _tell(self, streams: int, found: dict[str, list[gpu_table.Round]]) -> None:
        rows = gpu_table.compare(streams, found)
        self.rows += rows
        print("\n".join(row.row() for row in rows), flush=True)
        for row in rows:
            if row.failure:
                print(f"{row.way}: {row.failed_streams} streams failed, the first one with {row.failure}", flush=True)
        if streams == 1:
            through = [way for way in found if way != "direct"]
            self.added = {way: gpu_table.added_ms(found["direct"], found[way]) for way in through}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-site", type=Path, help="a folder of packages with vLLM among them")
    parser.add_argument("--environment", type=Path, help="a virtual environment with vLLM, in place of --vllm-site")
    parser.add_argument("--fake", action="store_true", help="the tests' engine in place of vLLM")
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--args", type=json.loads, default={}, help="more flags of vLLM's, as a JSON object")
    parser.add_argument("--streams", type=numbers, default=(1, 64, 256, 512))
    parser.add_argument("--tcp", type=numbers, default=(1, 256), help="at which of them TCP is measured as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=30, help="rounds with one stream")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--kill", action="store_true", help="kill EngineCore in mid-answer at the end")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/out"))
    parser.add_argument("--work", type=Path, help="a short path for sockets and caches, which stays")
    wanted = parser.parse_args()
    if not (wanted.fake or wanted.environment or wanted.vllm_site):
        parser.error("say where vLLM is: --vllm-site, --environment or --fake")
    return wanted


def numbers(text: str) -> tuple[int, ...]:
    """What stands between commas."""
    return tuple(int(each) for each in text.split(",") if each)


def main() -> None:
    """Starts vllmd, measures, and leaves the table."""
    wanted = parse()
    wanted.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("told to end"))
    report: dict[str, Any] = {"machine": facts(wanted)}
    print(json.dumps(report["machine"]), flush=True)
    with gpu_service.running(wanted) as service, Clients() as clients:
        report["ready_after_s"] = round(time.monotonic() - service.began_at, 1)
        bench = Bench(wanted, service, clients)
        for streams in wanted.streams:
            bench.group(streams)
            report.update(figures=gpu_table.as_json(bench.rows), first_token_added_ms=bench.added)
            save(wanted.out, report, bench)
        conclude(bench)
        if wanted.kill:
            report["kill"] = gpu_kill.outlives(service, 2 * wanted.tokens)
            save(wanted.out, report, bench)


def save(out: Path, report: dict[str, Any], bench: Bench) -> None:
    """Writes what is known so far."""
    (out / "gpu.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    (out / "table.md").write_text(gpu_table.markdown(bench.rows) + "\n")


def conclude(bench: Bench) -> None:
    """Prints the whole table, and what the targets ask for."""
    print(f"\n{gpu_table.markdown(bench.rows)}\n")
    for way, (low, middle, high) in bench.added.items():
        print(f"{way}: {middle:+.2f} ms to the first token of one stream (middle half {low:+.2f} to {high:+.2f})")
    for row in bench.rows:
        merged = f"{row.tokens_per_event:.2f} tokens an event, vLLM's API server {row.engine_percent:.0f} %"
        clients = f"busiest client {row.busiest_client_percent:.0f} %, longest gap {row.gap_max:.0f} ms"
        print(f"{row.streams:4} {row.way:6} {merged}, {clients}, rates {row.rates[:6]}", flush=True)


def facts(wanted: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = machine.facts(TESTS.parent)
    sites = [wanted.vllm_site] if wanted.vllm_site else (wanted.environment or TESTS).glob("lib/python*/site-packages")
    found["vllm"] = [path.name.removesuffix(".dist-info") for site in sites for path in site.glob("vllm*.dist-info")]
    try:
        found["torch"] = version("torch")
    except PackageNotFoundError:
        found["torch"] = None
    try:
        found["gpu"] = subprocess.check_output(["nvidia-smi", GPU_FACTS, "--format=csv,noheader"], text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        found["gpu"] = f"none ({error})"
    return {**found, "wanted": {key: str(value) for key, value in vars(wanted).items()}}


if __name__ == "__main__":
    main()
