"""What it takes to change models on a real GPU: by sleep and wake at level 1 and 2, and by end and cold start.

    python tests/bench/gpu_swap.py --vllm-site /opt/site --model /opt/qwen2-7b-made [--levels 1,2,0] [--out DIR]
    python tests/bench/gpu_swap.py --fake --rounds 1 --tokens 8 --long 50                  (anywhere, to try it)

For each level a vllmd of its own serves two models, `a` (loaded at start) and `b` (on demand), from the same files,
each with a share of the GPU that leaves the other none. The files must hold weights, if only noise: gpu_weights.py
makes some. How vLLM, the model's shape and vllmd's packages get to a machine without a network: see gpu.py.

A pair takes 4 to 6 minutes, most of it starts of vLLM, whose caches lie in --work. DIR holds swap.json and swap.md
(both anew after every step), and each vllmd's log. At --deadline seconds all ends; what is known by then is there.

Times are what a client sees at vllmd's Unix socket, from its request to its first token. Before each swap the model
that has to go has been idle for as long as vllmd wants it to be. After each one, the model that came answers three
prompts: one that nobody has asked before (timed), the one that the other model was asked last (both have the same
weights, so that their likeliest tokens are the same), and one that was asked before anybody slept (a stale cache would
show).
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import virtual_gpus  # noqa: E402 (the script runs alone)
import virtual_models  # noqa: E402

from bench import gpu, gpu_memory, gpu_service  # noqa: E402
from bench.gpu_pair import Pair, Swap  # noqa: E402
from bench.gpu_swap_table import markdown  # noqa: E402

ARGS = {"max-model-len": 2048, "disable-uvicorn-access-log": True}


class Report:
    """What is known so far, in two files."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self._out = wanted.out
        self._found: dict[str, Any] = {"machine": gpu.facts(wanted), "pairs": {}}

    def note(self, level: int, what: str, value: Any) -> None:
        """Keeps a figure, and prints it."""
        pair = self._found["pairs"].setdefault(str(level), {})
        if isinstance(value, Swap):
            pair.setdefault(what, []).append(asdict(value))
        else:
            pair[what] = value
        print(f"level {level}, {what}: {value}", flush=True)
        (self._out / "swap.json").write_text(json.dumps(self._found, indent=1, ensure_ascii=False))
        (self._out / "swap.md").write_text(self.table() + "\n")

    def table(self) -> str:
        return markdown(self._found["pairs"])


def measure(wanted: argparse.Namespace, level: int, report: Report) -> None:
    """One pair: the first swaps, more of them where a swap is no start, then both at once."""
    report.note(level, "available_before", gpu_memory.look().available)
    apart = argparse.Namespace(**{**vars(wanted), "out": wanted.out / f"level-{level}"})
    apart.out.mkdir(exist_ok=True)
    with gpu_service.running(apart, tables(wanted, level)) as service:
        report.note(level, "ready_after_s", time.monotonic() - service.began_at)
        pair = Pair(wanted, service)
        report.note(level, "warm_first_s", statistics.median(pair.warm()))
        report.note(level, "start_beside", pair.swap())
        report.note(level, "first", pair.swap())
        if not level:
            return
        for _ in range(2 * wanted.rounds):
            report.note(level, "swaps", pair.swap())
        report.note(level, "alternating", pair.alternating(wanted.together))
        report.note(level, "beside", pair.beside())
        report.note(level, "unload", pair.unload())


def tables(wanted: argparse.Namespace, level: int) -> dict[str, Any]:
    """Two models with the same files."""
    args = {**ARGS, "gpu-memory-utilization": wanted.share}
    a = gpu_service.table(wanted, args, default=True, sleep_level=level)
    return {"a": a, "b": {**a, "default": False, "load": "demand"}}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-site", type=Path, help="a folder of packages with vLLM among them")
    parser.add_argument("--fake", action="store_true", help="the tests' engine on a virtual GPU in vLLM's place")
    parser.add_argument("--model", type=Path, help="a directory with weights")
    parser.add_argument("--args", type=json.loads, default={}, help="more flags of vLLM's, as a JSON object")
    parser.add_argument("--levels", type=gpu.numbers, default=(1, 2, 0), help="of sleep; 0: the other one is unloaded")
    parser.add_argument("--share", type=float, default=0.9, help="of the GPU, for each model")
    parser.add_argument("--rounds", type=int, default=4, help="swaps there and back")
    parser.add_argument("--singles", type=int, default=10, help="requests to the warm model")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--together", type=int, default=20, help="requests for both models at once")
    parser.add_argument("--long", type=int, default=600, help="tokens of the answer that is not to be cut")
    parser.add_argument("--deadline", type=int, default=1500, help="seconds after which all ends")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/out"))
    parser.add_argument("--work", type=Path, help="a short path for sockets and caches, which stays")
    wanted = parser.parse_args()
    if not (wanted.fake or (wanted.vllm_site and wanted.model)):
        parser.error("say where vLLM and the model are (--vllm-site, --model), or --fake")
    return argparse.Namespace(**vars(wanted), environment=None)


def pretend(wanted: argparse.Namespace) -> None:
    """A GPU and a model that take no room."""
    virtual_gpus.make(wanted.work / "gpus", 80 * virtual_gpus.GIB)
    seen = virtual_gpus.environ(wanted.work / "gpus")
    os.environ.update(seen, PYTHONPATH=f"{seen['PYTHONPATH']}:{os.environ.get('PYTHONPATH', '')}")
    sys.path.insert(0, str(TESTS / "fake_driver"))
    wanted.model = virtual_models.make(wanted.work / "model", virtual_gpus.GIB)


def main() -> None:
    """Measures pair after pair."""
    wanted = parse()
    wanted.out.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, frame: sys.exit(f"told to end: {signal.Signals(number).name}"))
    signal.alarm(wanted.deadline)
    with tempfile.TemporaryDirectory(prefix="vg", dir="/tmp") as folder:
        wanted.work = wanted.work or Path(folder)
        if wanted.fake:
            pretend(wanted)
        report = Report(wanted)
        for level in wanted.levels:
            measure(wanted, level, report)
    print(f"\n{report.table()}", flush=True)


if __name__ == "__main__":
    main()
