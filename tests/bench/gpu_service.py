"""vllmd on a vLLM that lies in a folder, on the fake one, or on one in a virtual environment; started and ended."""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_vllm
from daemons import free_port, toml
from waiting import descendants, until_sync

from bench import asking
from vllmd.routes import STATUS
from vllmd.statuses import ModelStatus, Status

NAME = "qwen2-7b-instruct"
READY_WITHIN_S = 480.0
ENDS_WITHIN_S = 90.0
NS_PER_S = 1_000_000_000

ARGS = {
    "load-format": "dummy",  # the time per token is that of the real weights; the text is noise
    "max-model-len": 2048,
    "max-num-seqs": 512,
    "disable-uvicorn-access-log": True,
}
VARIABLES = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
FAKE = {
    "HF_HUB_OFFLINE": "1",
    "FAKE_TOKENS": "2000",
    "FAKE_TOKENS_PER_S": "200",
    "FAKE_TREE": "1",
    "FAKE_LIFE_S": "600",
    "FAKE_START_LOG": "none",
}

PYTHON = '#!/bin/sh\nexec "{python}" "$@"\n'
VLLM = """import os, sys
os.environ.update({variables})
os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *sys.argv[1:]])
"""


class Service:
    """A running vllmd.

    Args:
        folder: where its sockets and engines live.
        process: vllmd itself.
        port: its TCP door.
        log: what it writes.
    """

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.folder, self.process, self.port, self.log = folder, process, port, log
        self.began_at = time.monotonic()
        self._said = ""

    def address(self, way: str) -> str:
        """Where clients of that way connect: `direct`, `unix` or `tcp`."""
        if way == "direct":
            (found,) = self.folder.glob("run/*/api.sock")
            return f"unix:{found}"
        return f"unix:{self.folder / 'd.sock'}" if way == "unix" else f"tcp:{self.port}"

    def model(self, name: str = "") -> ModelStatus:
        """What vllmd says of a model; of its first one, where none is named."""
        models = Status.from_json(asking.ask(self.address("unix"), "GET", STATUS)[1]).models
        return next(each for each in models if name in ("", each.name))

    def cpu_s(self) -> float:
        """CPU seconds of vllmd's own process so far."""
        return cpu_s(self.process.pid)

    def core(self) -> int:
        """The process that vLLM calls EngineCore."""
        pids = descendants(self.model().pid or 0)
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
        found = [pid for pid, name in names.items() if name.startswith("VLLM::EngineCor")]
        if not found:
            raise SystemExit(f"there is no EngineCore among the engine's processes: {names}")
        return found[0]

    def wait_until_ready(self) -> None:
        """Tells each phase of the start with the seconds it began at, so that a killed run has told how far it came."""
        try:
            until_sync(self._is_ready, "vllmd to be ready", READY_WITHIN_S)
        except AssertionError as error:
            raise SystemExit(f"{error}; its log ends with:\n{self.last_words()}") from None

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"vllmd ended by itself; its log ends with:\n{self.last_words()}")
        with suppress(OSError):
            model = self.model()
            self._tell(model.summary)
            if model.state == "failed":
                raise SystemExit(f"{model.summary} ({model.hint}); the log ends with:\n{self.last_words()}")
            return model.state == "ready"
        return False

    def _tell(self, summary: str) -> None:
        if summary != self._said:
            print(f"{time.monotonic() - self.began_at:6.1f} s  {summary}", flush=True)
            self._said = summary

    def last_words(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process (proc(5), schedstat; a kernel without it has hundredths in stat)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    with suppress(OSError):
        if used := sum(int(thread.read_text().split()[0]) for thread in threads):
            return used / NS_PER_S
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@contextmanager
def running(wanted: argparse.Namespace, models: Mapping[str, Any] | None = None) -> Iterator[Service]:
    """vllmd, its first model ready; ended in good order whatever happens meanwhile.

    Args:
        models: name → table of each; one with `ARGS`, where none is given.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = wanted.work or Path(tempfile.mkdtemp(prefix="vg", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _started(folder, wanted, models or {NAME: table(wanted, ARGS)}) as service:
            service.wait_until_ready()
            yield service
    finally:
        if not wanted.work:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(folder: Path, wanted: argparse.Namespace, models: Mapping[str, Any]) -> Iterator[Service]:
    port, config, log = free_port(), folder / "vllmd.toml", wanted.out / "vllmd.log"
    config.write_text("\n".join(toml(_tables(folder, port, wanted, models))))
    argv = [sys.executable, "-m", "vllmd", "--config", str(config)]
    with log.open("wb") as out, subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process:
        service = Service(folder, process, port, log)
        try:
            yield service
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        status = process.wait(ENDS_WITHIN_S)
        print(f"vllmd ended with status {status}", flush=True)
    except subprocess.TimeoutExpired:
        process.kill()  # its guards end the engines
        print(f"vllmd had to be killed: it did not end in {ENDS_WITHIN_S:g} s", flush=True)


def table(wanted: argparse.Namespace, args: Mapping[str, object], **keys: object) -> dict[str, object]:
    """A model's table: flags of vLLM's under those of the command line, and other keys."""
    env = FAKE if wanted.fake else VARIABLES
    return {"model": str(wanted.model), "args": {**args, **wanted.args}, "env": env, **keys}


def _tables(folder: Path, port: int, wanted: argparse.Namespace, models: Mapping[str, Any]) -> dict[str, Any]:
    """vllmd.toml."""
    return {
        "listen": {"tcp": f"127.0.0.1:{port}", "unix": str(folder / "d.sock")},
        "paths": {"state": str(folder / "state"), "runtime": str(folder / "run"), "cache": str(folder / "cache")},
        "environment": {"path": str(wanted.environment or _environment(folder / "env", wanted))},
        "queue": {"limit": 4096},
        "relay": {"drain_s": 5},
        "models": models,
    }


def _environment(folder: Path, wanted: argparse.Namespace) -> Path:
    """What looks like a virtual environment: the fake engine's, or that of the packages in --vllm-site."""
    shutil.rmtree(folder, ignore_errors=True)
    binaries, packages = folder / "bin", folder / "lib/python3/site-packages"
    for each in (binaries, packages.parent):
        each.mkdir(parents=True)
    python, vllm = binaries / "python", binaries / "vllm"
    if wanted.fake:
        vllm.symlink_to(fake_vllm.PROGRAM)
        (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
    else:
        packages.symlink_to(wanted.vllm_site.resolve())  # by which vllmd knows what it was built for
        vllm.write_text(VLLM.format(variables={**VARIABLES, "PYTHONPATH": str(wanted.vllm_site)}))
    # No symbolic link: behind one, the Python of a virtual environment does not find its packages.
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    return folder
