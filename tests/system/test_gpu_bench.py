"""The script that measures vllmd on a GPU, tried on the fake engine: no lease of a GPU is to find its mistakes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/bench/gpu.py"


def test_it_measures_every_way_and_ends_vllmd(tmp_path: Path) -> None:
    """Four streams make no statement, but every figure of them is there."""
    words = ["--fake", "--streams", "1,4", "--singles", "2", "--rounds", "1", "--tokens", "12", "--tcp", "4", "--kill"]
    argv = [sys.executable, str(SCRIPT), *words, "--out", str(tmp_path)]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "vllmd ended with status 0" in ran.stdout
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(row["streams"], row["way"]): row for row in report["figures"]}
    assert rows.keys() == {(1, "direct"), (1, "unix"), (4, "direct"), (4, "unix"), (4, "tcp")}
    assert not any(row["failure"] for row in rows.values())
    assert all(row["first_p50"] > 0 and row["tokens_per_s"] > 0 for row in rows.values())
    assert report["kill"]["killed_at_character"] > 0
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(rows)
