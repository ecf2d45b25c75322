"""ruff and mypy, as pyproject.toml sets them up, have nothing to say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("linter", ["ruff check", "ruff format --check --diff", "mypy"])
def test_linter_is_content(linter: str) -> None:
    argv = [sys.executable, "-m", *linter.split()]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
