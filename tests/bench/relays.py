"""The relays that are measured, each started afresh, and the ways through them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from daemons import free_port
from waiting import descendants, until_sync

from bench import asking, nginx
from bench.compiled import program
from bench.machine import Cores, Memory, running

HERE = Path(__file__).parent
NAMES = ("direct", "floor", "nginx", "aiohttp", "vllmd", "vllmd-unix", "vllmd-prompt")
READY_WITHIN_S = 60.0


@dataclass(frozen=True)
class Way:
    """One way to an engine.

    Args:
        name: one of `NAMES`.
        address: where clients connect: `tcp:PORT` or `unix:PATH`.
        pids: the processes whose CPU time and memory are the price.
        engine: the address of the engine behind, which may change when that is replaced.
        door: `v1`, or `prompt` for vllmd's simple door.
        key: what clients show.
        idle: the memory of the processes before their first load; None where another way shares them.
    """

    name: str
    address: str
    pids: tuple[int, ...]
    engine: Callable[[], str]
    door: str = "v1"
    key: str = ""
    idle: Memory | None = field(default=None)


@dataclass(frozen=True)
class Setting:
    """What all relays are started with.

    Args:
        folder: a short path for sockets, logs and configurations.
        product: the directory whose `vllmd` is measured.
        more_config: TOML added to vllmd's configuration.
        key: the API key that this configuration asks for.
    """

    folder: Path
    cores: Cores
    product: Path
    more_config: str = ""
    key: str = ""

    @property
    def engine_socket(self) -> Path:
        """Where the engine of all but vllmd listens; vllmd starts one of the same kind itself."""
        return self.folder / "engine.sock"

    @property
    def engine_environ(self) -> dict[str, str]:
        return {"BENCH_ENGINE": str(program("engine")), "BENCH_ENGINE_CORE": str(self.cores.engine)}


@contextmanager
def started(setting: Setting, wanted: Callable[[str], bool]) -> Iterator[list[Way]]:
    """Starts every wanted relay; yields the ways through them, the direct one first."""
    with ExitStack() as stack:
        ways = [stack.enter_context(_direct(setting))]
        for name, start in (("floor", _floor), ("nginx", _nginx), ("aiohttp", _aiohttp)):
            if wanted(name):
                ways += stack.enter_context(start(setting))
        if any(wanted(name) for name in NAMES if name.startswith("vllmd")):
            ways += [each for each in stack.enter_context(vllmd(setting)) if wanted(each.name)]
        yield ways


@contextmanager
def _direct(setting: Setting) -> Iterator[Way]:
    argv: list[str | Path] = [program("engine"), "--uds", setting.engine_socket]
    with running(argv, setting.folder / "engine.log", setting.cores.engine, env=setting.engine_environ) as process:
        address = f"unix:{setting.engine_socket}"
        _until_it_answers(process, Way("direct", address, (), lambda: address), setting.folder / "engine.log")
        yield Way("direct", address, (process.pid,), lambda: address)


@contextmanager
def _relay(setting: Setting, name: str, port: int, argv: list[str | Path]) -> Iterator[list[Way]]:
    """A relay in front of the shared engine."""
    log, engine, address = setting.folder / f"{name}.log", f"unix:{setting.engine_socket}", f"tcp:{port}"
    with running(argv, log, setting.cores.relay) as process:
        _until_it_answers(process, Way(name, address, (), lambda: engine), log)
        pids = (process.pid, *descendants(process.pid))
        yield [Way(name, address, pids, lambda: engine, idle=Memory.of(pids))]


@contextmanager
def _floor(setting: Setting) -> Iterator[list[Way]]:
    port = free_port()
    argv: list[str | Path] = [program("floor"), f"tcp:{port}", f"unix:{setting.engine_socket}"]
    with _relay(setting, "floor", port, argv) as ways:
        yield ways


@contextmanager
def _aiohttp(setting: Setting) -> Iterator[list[Way]]:
    port = free_port()
    argv: list[str | Path] = [sys.executable, HERE / "plain_relay.py", str(port), setting.engine_socket]
    with _relay(setting, "aiohttp", port, argv) as ways:
        yield ways


@contextmanager
def _nginx(setting: Setting) -> Iterator[list[Way]]:
    found, port = nginx.find(), free_port()
    if found is None:
        yield []
        return
    argv = nginx.command(found, setting.folder, port, setting.engine_socket)
    with _relay(setting, "nginx", port, argv) as ways:
        yield ways


@contextmanager
def vllmd(setting: Setting, name: str = "vllmd", replays: int = 2) -> Iterator[list[Way]]:
    """A daemon with an engine of its own; yields the ways through its TCP door, its Unix socket, its simple door.

    Args:
        name: of its folder; several may run.
        replays: times that a request is sent again, or continued, when its engine dies.
    """
    folder, port = setting.folder / name, free_port()
    _make_environment(folder / "env/bin")
    (folder / "vllmd.toml").write_text(_config(setting, folder, port, replays))
    argv: list[str | Path] = [sys.executable, "-m", "vllmd", "--config", folder / "vllmd.toml"]
    product = {"PYTHONPATH": str(setting.product)}
    with running(argv, folder / "log", setting.cores.relay, env=product, cwd=setting.product) as process:

        def engine() -> str:
            (found,) = folder.glob("run/*/api.sock")
            return f"unix:{found}"

        pids, tcp = (process.pid,), f"tcp:{port}"
        _until_it_answers(process, Way("vllmd", tcp, pids, engine, key=setting.key), folder / "log")
        yield [
            Way("vllmd", tcp, pids, engine, key=setting.key, idle=Memory.of(pids)),
            Way("vllmd-unix", f"unix:{folder}/d.sock", pids, engine, key=setting.key),
            Way("vllmd-prompt", tcp, pids, engine, "prompt", setting.key),
        ]


def _make_environment(binaries: Path) -> None:
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "vllm").symlink_to(HERE / "vllm_stub.py")


def _config(setting: Setting, folder: Path, port: int, replays: int) -> str:
    environ = setting.engine_environ
    lines = [CONFIG.format(folder=folder, port=port, replays=replays)]
    lines += [f"{name} = {json.dumps(value)}" for name, value in environ.items()]
    # nginx's access_log is off as well. An earlier vllmd, measured for comparison, has no such key.
    is_later = (setting.product / "vllmd/server/requestlog.py").exists()
    return "\n".join([*lines, "[log]\nrequests = false" if is_later else "", setting.more_config, ""])


CONFIG = """
[listen]
tcp = "127.0.0.1:{port}"
unix = "{folder}/d.sock"
[paths]
state = "{folder}/state"
runtime = "{folder}/run"
cache = "{folder}/cache"
[environment]
path = "{folder}/env"
[supervision]
backoff_initial_s = 0.05
stable_after_s = 0
[queue]
limit = 4096
[relay]
drain_s = 1
[replay]
limit = {replays}
[models.tiny]
model = "models/tiny"
[models.tiny.args]
max-num-seqs = 4096
[models.tiny.env]
HF_HUB_OFFLINE = "1"
"""


def answers(way: Way) -> bool:
    """Whether a request for one token gets it."""
    try:
        body = asking.chat("", 1, stream=False)
        return asking.ask(way.address, "POST", "/v1/chat/completions", body, way.key)[0] == 200
    except (OSError, ValueError):
        return False


def _until_it_answers(process: subprocess.Popen[bytes], way: Way, log: Path) -> None:
    """Raises SystemExit with the end of its log if it ends before, or takes too long."""

    def has_answered() -> bool:
        assert process.poll() is None, f"{way.name} ended with status {process.returncode}"
        return answers(way)

    try:
        until_sync(has_answered, f"{way.name} to answer", READY_WITHIN_S)
    except AssertionError as error:
        raise SystemExit(f"bench: {error}\n{log.read_text(errors='replace')[-4000:]}") from None


def told(engine: str) -> Mapping[str, int]:
    """What the engine's GET /bench tells: its process, open streams, aborted ones, tokens and bytes sent."""
    answer: dict[str, int] = asking.ask(engine, "GET", "/bench")[1]
    return answer
