"""The installed service as systemd sees it: its units, its user, its directories, its secrets, its confinement."""

import os
import stat
from pathlib import Path

import pytest
from system.machine import Machine
from system.service import Service, model_table
from waiting import until_sync

pytestmark = pytest.mark.timeout(1800)

UNITS = Path(__file__).parents[2] / "systemd"
TOKEN = "/etc/credstore/vllmd.hub-token"


def environ_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def complaints(machine: Machine, *words: str) -> str:
    """What systemd finds wrong with units. It says nothing of a unit without fault."""
    verdict = machine.run("env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "--man=no", "verify", *words)
    return verdict.stdout + verdict.stderr


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    for scope, folder in (("--system", "/lib/systemd/system"), ("--user", "/usr/lib/systemd/user")):
        units = [f"{folder}/{each.name}" for each in machine.path(folder).glob("vllmd*") if each.is_file()]
        assert len(units) >= 2
        assert complaints(machine, scope, *units) == ""


def test_systemd_finds_nothing_wrong_with_the_drop_ins(machine: Machine) -> None:
    drop_ins = {each.name: each.read_text() for each in (UNITS / "drop-ins").glob("*.conf")}
    assert len(drop_ins) == (UNITS / "drop-ins/README.md").read_text().count(".conf` |")
    for name, text in {**drop_ins, "wrong.conf": "[Service]\nNoSuchKey=1"}.items():
        unit = "vllmd.socket" if "[Socket]" in text else "vllmd.service"
        inside = f"/run/systemd/system/{unit}.d/{name}"
        machine.write(inside, text)
        said = complaints(machine, f"/lib/systemd/system/{unit}")
        machine.path(inside).unlink()
        assert (name in said) is (name == "wrong.conf"), said


def test_the_exposure_is_below_three(machine: Machine) -> None:
    said = machine("systemd-analyze", "security", "--no-pager", "--threshold=29", "vllmd.service")
    assert "vllmd.service: 2." in said


def test_its_user_reaches_gpus_by_its_groups_and_no_device_is_closed(service: Service) -> None:
    groups = set(service.machine("id", "--name", "--groups", "vllmd").split())
    assert groups == {"vllmd", "video", "render"}
    assert (service.show("DevicePolicy"), service.show("DeviceAllow")) == ("auto", "")


def test_its_directories_are_its_own(service: Service) -> None:
    uid = int(service.machine("id", "--user", "vllmd"))
    own = ("/var/lib/vllmd", "/var/cache/vllmd", "/var/log/vllmd", "/run/vllmd/engines")
    for folder in own:
        found = service.machine.path(folder).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, 0o700), folder
    for folder in ("/etc/vllmd", "/run/vllmd"):
        found = service.machine.path(folder).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o755), folder


def test_the_caches_of_the_engine_are_in_the_cache_directory(service: Service) -> None:
    environ = environ_of(max(service.engine()))
    caches = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "XDG_CACHE_HOME")
    for name in (*caches, "UV_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH"):
        assert environ[name].startswith("/var/cache/vllmd"), name


def test_the_engine_is_confined_as_vllmd_is(service: Service) -> None:
    vllmd = service.show("ControlGroup")
    for pid in service.engine():
        said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert (said["NoNewPrivs"], said["Seccomp"], int(said["CapBnd"], 16)) == ("1", "2", 0)
        assert vllmd in Path(f"/proc/{pid}/cgroup").read_text()
        inside = Path(f"/proc/{pid}/root")
        assert not os.statvfs(inside / "var/lib/vllmd").f_flag & os.ST_RDONLY
        assert os.statvfs(inside / "usr").f_flag & os.ST_RDONLY
        assert os.statvfs(inside / "etc").f_flag & os.ST_RDONLY
        assert not (inside / "tmp").samefile(service.machine.path("/tmp"))
        assert stat.S_IMODE((inside / "root").stat().st_mode) == 0


def test_the_hub_s_token_reaches_the_engine_and_nobody_else(service: Service) -> None:
    # Every other test shows that it starts without one.
    service.machine.write(TOKEN, "hf_secret")
    service.machine.path(TOKEN).chmod(0o600)
    try:
        service.stop()
        service.start()
        place = environ_of(max(service.engine()))["HF_TOKEN_PATH"]
        assert service.machine("setpriv", "--reuid=vllmd", "--clear-groups", "cat", place) == "hf_secret"
        assert service.machine.run("cat", place, user="nobody").returncode != 0
        everybody = [*service.engine(), *map(int, Path("/proc/thread-self/children").read_text().split())]
        assert not any("hf_secret" in str(environ_of(pid)) for pid in everybody)
    finally:
        service.machine.path(TOKEN).unlink()


def test_another_model_is_a_drop_in_away(service: Service) -> None:
    service.stop()
    service.configure("/etc/vllmd/other.toml", models={"tiny": {**model_table(), "model": "models/another"}})
    with service.drop_in((UNITS / "drop-ins/model.conf").read_text().replace("[Service]", "")):
        service.start()
        until_sync(lambda: "model_tag': 'models/another'" in service.log(), "the other model")
