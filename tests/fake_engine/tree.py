"""The processes below the API server: real forks that notice each other's death as vLLM's do."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LINGER_S = 0.5  # vLLM's worker takes 2.5 s to follow its EngineCore
CORE_EXIT_S = 0.3  # after SIGTERM; by then an API server that got it too has ended its streams


@dataclass(frozen=True)
class Tree:
    """EngineCore and Worker, or (0, 0) where there are none."""

    core: int = 0
    worker: int = 0

    def stopped(self) -> bool:
        """Whether one of them got SIGSTOP."""
        return bool(self.core) and (_stopped(self.core) or _stopped(self.worker))

    def fell(self) -> None:
        """Ends both at once."""
        for pid in filter(None, (self.core, self.worker)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def grow(life_s: int) -> Tree:
    """EngineCore and below it Worker. Each dies of the other's death; neither of the API server's."""
    for_worker, held_by_core = os.pipe()
    told, tell = os.pipe()

    def worker() -> int:
        os.close(held_by_core)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.read(for_worker, 1)  # returns when EngineCore is gone
        time.sleep(LINGER_S)
        return 0

    def leave(number: int, frame: object) -> None:
        time.sleep(CORE_EXIT_S)
        os._exit(0)

    def core() -> int:
        signal.signal(signal.SIGTERM, leave)
        os.write(tell, str(child := _fork("VLLM::Worker", life_s, worker)).encode())
        os.waitpid(child, 0)
        return 1

    core_pid = _fork("VLLM::EngineCor", life_s, core)
    worker_pid = int(os.read(told, 32))
    for descriptor in (for_worker, held_by_core, told, tell):
        os.close(descriptor)
    return Tree(core_pid, worker_pid)


def let_stray(life_s: int) -> None:
    """A process that has left the tree and the session, and does not go at SIGTERM."""

    def stray() -> int:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            signal.pause()

    def between() -> int:
        _fork("VLLM::Stray", life_s, stray)
        return 0

    os.waitpid(_fork("VLLM::Between", life_s, between), 0)


def _fork(name: str, life_s: int, run: Callable[[], int]) -> int:
    """A child with that name that does `run` and nothing else; returns its pid."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        Path("/proc/self/comm").write_text(name)
        signal.alarm(life_s)
        status = run()
    finally:
        os._exit(status)


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False
