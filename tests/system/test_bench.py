"""`make bench` in short: it runs, loses nothing, and says all that runs are compared by. How fast is not asked here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
RELAYS = {"direct", "floor", "aiohttp", "vllmd", "vllmd-unix", "vllmd-prompt"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a short run writes; nginx is left out, since it may have to be fetched."""
    if not (shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("the bench needs a C compiler")
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    argv = [sys.executable, str(BENCH), "--quick", "--seconds", "0.3", "--only", "s64,churn,faults"]
    argv += ["--relays", "floor,aiohttp,vllmd", "--json", str(path)]
    ran = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.timeout(300)
def test_no_token_is_lost(figures: dict[str, Any]) -> None:
    assert set(figures["scenarios"]["s64"]) == RELAYS
    assert set(figures["scenarios"]["churn"]) == RELAYS - {"vllmd-unix", "vllmd-prompt"}
    assert all(each["is_whole"] for ways in figures["scenarios"].values() for each in ways.values())


def test_every_figure_is_there(figures: dict[str, Any]) -> None:
    for ways in figures["scenarios"].values():
        for each in ways.values():
            assert each["cpu_s_per_million_events"] > 0
            assert each["events_per_s"] > 0
            assert each["latency_us"]["p99"] >= each["latency_us"]["p50"] > 0
            assert "kib_per_stream" in each
    assert figures.keys() >= {"revision", "python", "aiohttp", "uvloop", "nproc"}


def test_faults_are_measured(figures: dict[str, Any]) -> None:
    assert figures["faults"]["vllmd"].keys() == {"stalled", "gone_mid_stream", "gone_in_prefill", "engine_killed"}


def test_targets_are_judged(figures: dict[str, Any]) -> None:
    judged = {each["what"]: each["verdict"] for each in figures["targets"]}
    assert judged["CPU per event, vllmd ÷ nginx: s64"] == "not measured"
    assert judged["CPU per event, vllmd ÷ aiohttp: s64"] != "not measured"
