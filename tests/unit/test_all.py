"""tests/all.sh and what it gives to whom: what fails is looked at once more, alone, and named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sharing import SYSTEM, longest_first, unit_of

ALL = Path(__file__).parents[1] / "all.sh"

TESTS = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("name", {flaky})
def test_flaky(name):
    tried = Path(name)
    passes = tried.exists()
    tried.touch()
    assert passes

def test_sound():
    Path("sound").open("a").write("x")

@pytest.mark.parametrize("name", {broken})
def test_broken(name):
    assert False
"""


@pytest.mark.parametrize(
    ("flaky", "broken", "status", "looks"),
    [(["a b", "::"], [], 0, 2), (["a"], ["b"], 1, 2), ([*"abcdef"], [], 1, 1)],
    ids=["accidents", "a failure", "too many accidents"],
)
def test_an_accident_is_named_and_a_failure_stays_one(
    tmp_path: Path, flaky: list[str], broken: list[str], status: int, looks: int
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p xdist.plugin\n")
    (tmp_path / "test_these.py").write_text(TESTS.format(flaky=flaky, broken=broken))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # it starts in no time
    argv = [str(ALL), sys.executable]
    ran = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110, check=False)
    said = ran.stdout + ran.stderr
    assert ran.returncode == status, said
    assert said.count("test session starts") == looks, said
    assert (tmp_path / "sound").read_text() == "x", "what passes runs once"
    _, _, named = ran.stderr.partition("PASSED ONLY WHEN RUN AGAIN, to be mended:\n")
    assert named.splitlines() == [f"test_these.py::test_flaky[{name}]" for name in flaky if not status], said


def test_what_a_machine_has_but_once_goes_to_one_worker_and_first() -> None:
    files = ["tests/ctl/test_x.py::test_a[/::b]", "tests/ctl/test_x.py::test_b", "tests/unit/test_x.py::test_c"]
    system = [f"{SYSTEM}test_x.py::test_a", f"{SYSTEM}test_y.py::test_b"]
    units = [unit_of(each) for each in sorted([*files, *system], key=longest_first)]
    assert units == [SYSTEM, SYSTEM, "tests/ctl/test_x.py", "tests/ctl/test_x.py", "tests/unit/test_x.py"]
