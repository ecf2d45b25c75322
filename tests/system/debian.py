"""Debian for tests: root file systems of its releases, made on first use, and the packages that making them needs."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllmd/system"
PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,udev,python3"

QUIET = """
for unit in getty@.service console-getty.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
        e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service systemd-udevd.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
: > "$1/etc/machine-id"
rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
mkdir -p "$1/etc/systemd/journald.conf.d"
printf '[Journal]\\nStorage=volatile\\nRateLimitBurst=0\\n' > "$1/etc/systemd/journald.conf.d/tests.conf"
"""
"""Nothing happens in the machine but what tests do. $1: the root file system."""


def root_of(suite: str) -> Path:
    """The root file system of a release. Skips the test where it cannot be made."""
    need("systemd-container", "mmdebstrap")
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / f"{suite}-{hashlib.sha256((PACKAGES + QUIET).encode()).hexdigest()[:8]}"
    with (CACHE / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _make(suite, root)
    return root


def _make(suite: str, root: Path) -> None:
    draft = root.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    options = ["--mode=root", "--format=directory", "--variant=minbase", "--dpkgopt=force-unsafe-io"]
    contents = [f"--include={PACKAGES}", f"--customize-hook={QUIET}"]
    argv = ["mmdebstrap", "--quiet", *options, *contents, suite, str(draft)]
    made = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"mmdebstrap could not make {suite}:\n{made.stderr[-4000:]}"
    draft.rename(root)


def need(*packages: str) -> None:
    """Installs Debian packages that are missing here. Skips the test where that cannot be."""
    if os.getuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("NOT RUN: these tests boot a systemd, and need root on a Debian for it")
    status = ["dpkg-query", "-W", "-f=${db:Status-Status}\n", *packages]
    states = subprocess.run(status, capture_output=True, text=True, check=False).stdout.split()
    if states == ["installed"] * len(packages):
        return
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *argv]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"NOT RUN: {' '.join(packages)} cannot be installed: {ran.stderr[-500:]}")
