"""vllmd as its package installs it, as a service of a machine's, on the fake engine."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_vllm
from asking import Door
from daemons import QUICK, toml
from system.machine import Machine
from waiting import processes_with_environ, until_sync

from vllmd.statuses import ModelStatus, Status

FAKE = "/srv/fake"
CONTROL = f"{FAKE}/control"
SOCKET = "/run/vllmd/vllmd.sock"
PORT = 8080
DROP_IN = "/run/systemd/system/vllmd.service.d/test.conf"


def model_table(**args: Any) -> dict[str, Any]:
    """The table of a model that the fake engine serves, with those flags."""
    return {
        "model": "models/tiny",
        "args": args,
        "env": {"FAKE_CONTROL": CONTROL, "FAKE_LIFE_S": "0", "HF_HUB_OFFLINE": "1"},
    }


@dataclass(frozen=True)
class InnerDoor(Door):
    """A TCP port of a machine's."""

    machine: Machine

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert isinstance(self.place, int)
        return await asyncio.open_connection(sock=await asyncio.to_thread(self.machine.connect, self.place))


class Service:
    """The service, in a machine in which the package is installed.

    Args:
        machine: where.

    Attributes:
        is_changed: whether it may run on another configuration or under another unit than usual.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        tests, there = Path(fake_vllm.__file__).parent, machine.path(FAKE)
        (there / "env/bin").mkdir(parents=True)
        shutil.copytree(tests / "fake_engine", there / "fake_engine", ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("fake_vllm.py", "virtual_gpus.py"):
            shutil.copy(tests / part, there)
        (there / "env/bin/python").symlink_to("/usr/bin/python3")
        (there / "env/bin/vllm").symlink_to(f"{FAKE}/fake_vllm.py")
        self.is_changed = False
        self.control()
        self.configure()

    # ── what it is told ──

    def control(self, **knobs: object) -> None:
        """Sets all knobs of the fake engine anew; without any it is harmless."""
        fake_vllm.control(self.machine.path(CONTROL), **knobs)

    def configure(self, path: str = "/etc/vllmd/vllmd.toml", **sections: Mapping[str, Any]) -> None:
        """Writes the configuration: that of most tests, and `sections` over it."""
        self.is_changed |= bool(sections)
        usual: dict[str, Mapping[str, Any]] = {
            "environment": {"path": f"{FAKE}/env"},
            "models": {"tiny": model_table()},
            **QUICK,
        }
        tables = {name: {**usual.get(name, {}), **sections.get(name, {})} for name in usual | sections}
        self.machine.write(path, "\n".join(toml(tables)))

    @contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """Lines for [Service] over those of the unit, until the end of the block."""
        self.is_changed = True
        self.machine.write(DROP_IN, f"[Service]\n{text}\n")
        self.machine("systemctl", "daemon-reload")
        try:
            yield
        finally:
            self.machine.path(DROP_IN).unlink()
            self.machine("systemctl", "daemon-reload")

    def start(self) -> None:
        """Returns with the first token."""
        self.machine("systemctl", "start", "vllmd")

    def begin(self) -> None:
        """Starts it, and waits for nothing."""
        self.machine("systemctl", "start", "--no-block", "vllmd")

    def stop(self) -> None:
        """Ends it; its sockets go on to listen."""
        self.machine("systemctl", "stop", "vllmd")

    def restart(self) -> None:
        """Returns with the first token."""
        self.machine("systemctl", "restart", "vllmd")

    # ── what it says ──

    def show(self, name: str) -> str:
        """A property of the unit's."""
        return self.machine.show("vllmd", name)

    @property
    def pid(self) -> int:
        """The main process, by its number in the machine; 0 if there is none."""
        return int(self.show("MainPID"))

    @property
    def unix(self) -> Door:
        return Door(self.machine.path(SOCKET))

    @property
    def tcp(self) -> Door:
        return InnerDoor(PORT, self.machine)

    def log(self) -> str:
        """What it and its engine have said since its present or last start."""
        return self.machine.journal(f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}")

    def model(self) -> ModelStatus:
        """What vllmctl says of the model."""
        said = self.machine.run("vllmctl", "status", "--json")  # its exit status says whether all is well
        assert said.stdout, said.stderr
        (model,) = Status.from_json(json.loads(said.stdout)).models
        return model

    def wait_for(self, name: str, value: str, deadline_s: float = 60.0) -> None:
        """Waits for a property of the unit's."""

        def is_so() -> bool:
            return self.show(name) == value

        try:
            until_sync(is_so, f"{name} to be {value}", deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.show(name)}\n{self.log()}") from None

    def engine(self) -> set[int]:
        """The processes of all engines and their guards, by their numbers here."""
        machine = os.readlink(f"/proc/{self.machine.leader}/ns/pid")
        return {pid for pid in processes_with_environ("FAKE_CONTROL", CONTROL) if _namespace(pid) == machine}


def _namespace(pid: int) -> str:
    """The PID namespace of a process; empty if it has gone."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""
