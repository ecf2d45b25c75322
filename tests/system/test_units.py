"""The unit files, read by systemd's own tools."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT RUN: there is no systemd-analyze here to read the unit files with; install the package systemd",
)


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in ("vllmd.service", "vllmd.socket"):
        # The commands must exist to be accepted, and /usr/bin/vllmd does not here.
        (tmp_path / name).write_text(
            re.sub("/usr/bin/vllm(d|ctl)", shutil.which("true") or "", (UNITS / name).read_text())
        )
    argv = ["systemd-analyze", "verify", str(tmp_path / "vllmd.service"), str(tmp_path / "vllmd.socket")]
    verdict = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (verdict.returncode, verdict.stderr) == (0, "")


@needs_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="NOT RUN: only root may make users, even in a scratch directory")
def test_sysusers_makes_the_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    argv = ["systemd-sysusers", f"--root={tmp_path}", "-"]
    said = subprocess.run(
        argv, input=(UNITS / "vllmd.sysusers").read_text(), capture_output=True, text=True, timeout=100, check=False
    )
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "etc/passwd").read_text().startswith("vllmd:")
    members = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert (members["video"], members["render"]) == ("vllmd", "vllmd")


def test_the_units_and_the_code_agree() -> None:
    """The unit's timeouts must leave room for what the daemon does in its defaults."""
    from vllmd.config import Config

    config = Config()
    service = (UNITS / "vllmd.service").read_text()
    stop_s = int(service.split("TimeoutStopSec=")[1].split("s")[0])
    assert stop_s > config.relay.drain_s + config.supervision.stop_timeout_s
    assert f"ListenStream={config.listen.tcp}\n" in (UNITS / "vllmd.socket").read_text()
