"""The scripts that measure vllmd on a GPU, tried on the fake engine: no lease of a GPU is to find their mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests/bench"


def run(script: str, *words: str) -> None:
    """Runs it to its end, which has to be a good one."""
    argv = [sys.executable, str(BENCH / script), *words]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "vllmd ended with status 0" in ran.stdout


def test_it_measures_every_way_and_ends_vllmd(tmp_path: Path) -> None:
    """Four streams make no statement, but every figure of them is there."""
    words = ["--fake", "--streams", "1,4", "--singles", "2", "--rounds", "1", "--tokens", "12", "--tcp", "4", "--kill"]
    run("gpu.py", *words, "--out", str(tmp_path))
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(row["streams"], row["way"]): row for row in report["figures"]}
    assert rows.keys() == {(1, "direct"), (1, "unix"), (4, "direct"), (4, "unix"), (4, "tcp")}
    assert not any(row["failure"] for row in rows.values())
    assert all(row["first_p50"] > 0 and row["tokens_per_s"] > 0 for row in rows.values())
    assert report["kill"]["killed_at_character"] > 0
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(rows)


def test_it_changes_models_by_sleep_and_by_end(tmp_path: Path) -> None:
    """Both pairs have all figures; answers after a swap are right, and a long answer is left alone."""
    words = ["--fake", "--levels", "2,0", "--rounds", "1", "--singles", "1", "--tokens", "8", "--long", "50"]
    run("gpu_swap.py", *words, "--together", "6", "--out", str(tmp_path))
    pairs = json.loads((tmp_path / "swap.json").read_text())["pairs"]
    sleeping, ending = pairs["2"], pairs["0"]
    swaps = [
        *sleeping["start_beside"],
        *sleeping["first"],
        *sleeping["swaps"],
        *ending["start_beside"],
        *ending["first"],
    ]
    assert [each["into"] for each in swaps] == ["b", "a", "b", "a", "b", "a"]
    assert all(each["agrees"] and each["remembers"] and each["first_s"] > 0 for each in swaps)
    assert [each["gpu_out"] for each in swaps] == [1024] * 4 + [0] * 2, "who has ended keeps nothing"
    assert sleeping["alternating"]["answered"] == 6
    assert 1 <= sleeping["alternating"]["swaps"] <= 2
    assert sleeping["beside"]["tokens"] == 50
    assert sleeping["beside"]["same_text"]
    assert (sleeping["unload"]["status"], sleeping["unload"]["gpu_mib"]) == (200, 1024)
    assert (tmp_path / "swap.md").read_text().count("\n") == 2 + 3
