"""A real vllmd process on the fake engine, for tests: configured, started, asked, and seen to its end."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_vllm
from asking import Door
from waiting import processes_with_environ, until_sync

from vllmd.statuses import ModelStatus, Status

MARK = "VLLMD_TEST"
"""A variable by which vllmd and all that it starts are known, wherever they are in the tree."""

ENDS_WITHIN_S = 30.0

WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from vllmd.daemon import main; main()"
LAUNCHERS = {"uvloop": ("-m", "vllmd"), "asyncio": ("-c", WITHOUT_UVLOOP)}
"""vllmd on either event loop: their transports differ."""

UGLY = re.compile(
    r"unforeseen error|internal error|Traceback|never retrieved|never awaited|Task was destroyed|Unhandled exception"
)
"""What never stands in the log of a daemon that does what it should."""

QUICK: dict[str, dict[str, Any]] = {
    # No probes of a ready engine, unless a test asks for them: its own requests are then the only ones.
    "supervision": {
        "probe_interval_s": 3600,
        "stop_timeout_s": 5,
        "stable_after_s": 0,
        "restart_limit": 2,
        "backoff_initial_s": 0.05,
        "backoff_max_s": 0.1,
    },
    "relay": {"drain_s": 10},
}


class Daemon:
    """A daemon in a folder of its own.

    Args:
        loop: `uvloop` or `asyncio`.
        launcher: other arguments for Python than `loop` means.
        environ: variables beside the usual ones.
        sections: tables of the configuration, over `QUICK`; `models` replaces the model `tiny`.
        args: flags of the model `tiny`.
        knobs: the fake engine's, as `control` sets them.
    """

    def __init__(
        self,
        *,
        loop: str = "uvloop",
        launcher: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        args: Mapping[str, Any] | None = None,
        knobs: Mapping[str, Any] | None = None,
        **sections: Mapping[str, Any],
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vd", dir="/tmp"))
        self.folder.chmod(0o755)
        self.loop = loop
        self._launcher = launcher
        self.port = free_port()
        self.socket = self.folder / "d.sock"
        self.process: subprocess.Popen[bytes] | None = None
        # No test asks a model hub, unless it brings one; and none looks into the models of whoever runs it.
        alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf")}
        self._environ = {**os.environ, **alone, MARK: str(self.folder), **(environ or {})}
        self._make_environment()
        self.control(**(knobs or {}))
        self.configure(args or {}, sections)

    # ── where it is ──

    @property
    def config(self) -> Path:
        return self.folder / "vllmd.toml"

    @property
    def unix(self) -> Door:
        return Door(self.socket)

    @property
    def tcp(self) -> Door:
        return Door(self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_socket(self) -> Path:
        """The private socket of the engine that lives now."""
        (found,) = self.folder.glob("r/*/api.sock")
        return found

    @property
    def engine(self) -> Door:
        """The way to the engine behind vllmd's back."""
        return Door(self.engine_socket)

    # ── what it does ──

    @property
    def pid(self) -> int:
        assert self.process is not None, "it was never started"
        return self.process.pid

    @property
    def engine_pid(self) -> int:
        """The engine's leader."""
        pid = self.model().pid
        assert pid is not None, "there is no engine"
        return pid

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_bytes().decode(errors="replace") if path.exists() else ""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def everybody(self) -> set[int]:
        """It, its guards, its engines and whatever came of them."""
        return processes_with_environ(MARK, str(self.folder))

    def control(self, **knobs: object) -> None:
        """Sets all knobs of the fake engine anew; without any it is harmless."""
        fake_vllm.control(self.folder / "control", **knobs)

    def journal(self, event: str = "") -> list[dict[str, Any]]:
        """What the fake engines saw and did since `forget`."""
        return fake_vllm.journal(self.folder / "journal", event)

    def requests(self) -> list[dict[str, Any]]:
        """The requests that reached an engine, without vllmd's own health checks."""
        return [each for each in self.journal("request") if each["body"].get("prompt") != "1"]

    def forget(self) -> None:
        """Empties the journal."""
        (self.folder / "journal").write_text("")

    def fetch(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Status and JSON body of a short answer over the Unix socket, for tests without a loop."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode())
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def status(self) -> Status:
        """`GET /api/status`."""
        return Status.from_json(self.fetch("/api/status")[1])

    def model(self, name: str = "tiny") -> ModelStatus:
        """What the status says of one model."""
        return next(each for each in self.status().models if each.name == name)

    def order(self, verb: str, name: str = "tiny", *, wait: bool = False) -> tuple[int, Any]:
        """load, unload or restart."""
        return self.fetch(f"/api/models/{name}/{verb}?wait={int(wait)}", "POST")

    # ── its life ──

    def configure(self, args: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the configuration."""
        tables: dict[str, Mapping[str, Any]] = {
            "listen": {"tcp": f"127.0.0.1:{self.port}", "unix": str(self.socket)},
            "paths": {"state": str(self.folder / "s"), "runtime": str(self.folder / "r"), "cache": "/nonexistent"},
            "environment": {"path": str(self.folder / "env")},
            "models": {"tiny": self.tiny(args)},
            **QUICK,
        }
        for name, table in sections.items():
            tables[name] = table if name == "models" else {**tables.get(name, {}), **table}
        self.config.write_text("\n".join(toml(tables)))

    def tiny(self, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The table of a model that the fake engine serves."""
        env = {
            "FAKE_CONTROL": str(self.folder / "control"),
            "FAKE_JOURNAL": str(self.folder / "journal"),
            "FAKE_LIFE_S": "7200",  # longer than all tests take: one daemon may serve many
        }
        return {"model": "models/tiny", "args": dict(args or {}), "env": env}

    def start(self, *before: str, ready: bool = True, pass_fds: Sequence[int] = ()) -> None:
        """Starts the process and waits for it.

        Args:
            before: words of the command line before Python's.
            ready: whether to wait for the first token; else for the doors.
            pass_fds: descriptors to keep open.
        """
        self.launch(*before, pass_fds=pass_fds)
        self.wait_for("ready" if ready else "")

    def start_in_vain(self) -> None:
        """Starts a process that cannot serve, and sees it exit as for a wrong command line."""
        self.launch()
        assert self.wait() == 2, self.log

    def launch(self, *before: str, pass_fds: Sequence[int] = ()) -> None:
        """Starts the process and waits for nothing."""
        argv = [*before, sys.executable, *(self._launcher or LAUNCHERS[self.loop]), "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    def wait_for(self, state: str, deadline_s: float = 30.0) -> None:
        """Waits for a state of the default model; the empty one is any."""

        def is_there() -> bool:
            assert self.alive, f"vllmd ended while it was to be {state or 'open'}:\n{self.log}"
            with suppress(OSError):
                return state in ("", self.status().state)
            return False

        try:
            until_sync(is_there, f"vllmd to be {state or 'open'}", deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, deadline_s: float = ENDS_WITHIN_S) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"vllmd has not ended in {deadline_s:g} s:\n{self.log}") from None

    def stop(self) -> int:
        """Ends it as systemd does; returns its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def see_to_its_end(self, *, sockets_stay: bool = False) -> None:
        """Stops it if it still runs, and asserts that it left nothing behind and was never surprised."""
        try:
            if self.alive:
                assert self.stop() == 0, self.log
                assert sockets_stay or not self.socket.exists(), "the socket is left"
                assert not list(self.folder.glob("r/*.*")), "a directory of an engine is left"
            until_sync(lambda: not self.everybody(), "every process of vllmd to be gone")
            ugly = UGLY.search(self.log)
            assert not ugly, f"{ugly[0] if ugly else ''}:\n{self.log}"
        finally:
            self._destroy()

    def _destroy(self) -> None:
        for pid in self.everybody():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_environment(self) -> None:
        binaries = self.folder / "env" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").symlink_to(sys.executable)
        (binaries / "vllm").symlink_to(fake_vllm.PROGRAM)


@contextmanager
def running(daemon: Daemon, *, ready: bool = True) -> Iterator[Daemon]:
    """Starts a daemon and sees it to its end."""
    try:
        daemon.start(ready=ready)
        yield daemon
    finally:
        daemon.see_to_its_end()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def free_port() -> int:
    """A TCP port that nobody had a moment ago.

    None of those that the kernel gives to whoever connects (ip(7), ip_local_port_range: from 32768 on): between this
    moment and the one in which somebody listens there, any connection could take it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")


def toml(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Tables of strings, numbers, truth values and lists of them, as lines of TOML."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = f"{path}.{json.dumps(key)}" if path else json.dumps(key)
            yield f"[{inner}]"
            yield from toml(value, inner)
