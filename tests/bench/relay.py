"""What the relay costs: events per second and CPU per event, through vllmd and directly, side by side in one run.

`make bench`, or `python tests/bench/relay.py [--streams 64] [--seconds 5] [--rounds 3]`. The engine is the fake one.
Two loads: *paced* streams of 50 tokens a second, as a GPU serves them, whose figure is CPU seconds per million events
(of the vllmd process alone; of the engine's, for comparison), and *flat out*, whose figure is events per second.
Machines are shared and noisy: rounds alternate between the two ways, the median counts, and only ratios compare.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import fake_vllm  # noqa: E402 (the bench runs alone; pytest knows the path by itself)
from waiting import until_sync  # noqa: E402

PACE_TOKENS_PER_S = 50
NS_PER_S = 1_000_000_000


@dataclass
class Way:
    """One way to the engine: a socket, and the process whose CPU time is the price."""

    name: str
    socket: Path
    pid: int


@dataclass
class Figures:
    """What one round measured."""

    events: int
    wall_s: float
    cpu_s: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.wall_s

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_s / self.events * 1e6


class Stream(asyncio.Protocol):
    """One client: sends a request, counts events, and is done when the connection closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.events = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: {")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


def request(tokens: int) -> bytes:
    """A chat request for so many tokens, after which the server closes the connection."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


async def measure(way: Way, streams: int, tokens: int) -> Figures:
    """Runs so many streams at once; every event must arrive."""
    loop, began_at, cpu_before = asyncio.get_running_loop(), time.monotonic(), cpu_s(way.pid)
    clients = [
        (await loop.create_unix_connection(lambda: Stream(request(tokens)), str(way.socket)))[1] for _ in range(streams)
    ]
    await asyncio.gather(*(client.closed for client in clients))
    figures = Figures(
        sum(client.events for client in clients), time.monotonic() - began_at, cpu_s(way.pid) - cpu_before
    )
    expected = streams * (tokens + 1)  # vLLM's first event carries the role and no token
    if figures.events != expected:
        raise SystemExit(f"{way.name}: {figures.events} events came, {expected} were due")
    return figures


def cpu_s(pid: int) -> float:
    """CPU seconds that all threads of a process have used (proc(5), schedstat: nanoseconds on the CPU)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / NS_PER_S


@contextmanager
def vllmd_on_a_fake_engine() -> Iterator[tuple[Way, Way, Path]]:
    """A daemon with a fake engine; yields the way through it, the direct one, and the engine's control file."""
    with tempfile.TemporaryDirectory(prefix="vb") as name:
        directory = Path(name)
        binaries = directory / "env/bin"
        binaries.mkdir(parents=True)
        (binaries / "python").symlink_to(sys.executable)
        (binaries / "vllm").symlink_to(fake_vllm.PROGRAM)
        config = directory / "vllmd.toml"
        config.write_text(CONFIG.format(directory=directory))
        argv = [sys.executable, "-m", "vllmd", "--config", str(config)]
        with (directory / "log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as daemon:
            try:
                ctl = [sys.executable, "-m", "vllmd.ctl", "-H", str(directory / "d.sock")]
                subprocess.run([*ctl, "wait", "--timeout", "60"], check=True)
                status = json.loads(subprocess.check_output([*ctl, "status", "--json"]))
                (private,) = directory.glob("run/*/api.sock")
                through = Way("through vllmd", directory / "d.sock", daemon.pid)
                yield through, Way("direct", private, status["models"][0]["pid"]), directory / "control"
            finally:
                daemon.terminate()
                until_sync(lambda: daemon.poll() is not None, "vllmd to end", 60)


CONFIG = """
[listen]
tcp = ""
unix = "{directory}/d.sock"
[paths]
state = "{directory}/state"
runtime = "{directory}/run"
cache = "{directory}/cache"
[environment]
path = "{directory}/env"
[models.tiny]
model = "models/tiny"
[models.tiny.env]
FAKE_CONTROL = "{directory}/control"
FAKE_LIFE_S = "0"
FAKE_START_LOG = "none"
[models.tiny.args]
disable-uvicorn-access-log = true
"""


def rounds(ways: tuple[Way, Way], streams: int, tokens: int, times: int) -> dict[str, list[Figures]]:
    """Alternates between the two ways, so that both see the same noise."""
    found: dict[str, list[Figures]] = {way.name: [] for way in ways}
    for _ in range(times):
        for way in ways:
            found[way.name].append(asyncio.run(measure(way, streams, tokens)))
    return found


def report(load: str, found: dict[str, list[Figures]]) -> None:
    """A line for each way, and their ratio."""
    rates = {name: statistics.median(each.events_per_s for each in figures) for name, figures in found.items()}
    costs = {name: statistics.median(each.cpu_s_per_million for each in figures) for name, figures in found.items()}
    for name in found:
        whose = "vllmd" if name == "through vllmd" else "engine"
        print(
            f"{load:9} {name:14} {rates[name]:10,.0f} events/s   {costs[name]:7.1f} CPU s per million events ({whose})"
        )
    print(f"{load:9} through ÷ direct: {rates['through vllmd'] / rates['direct']:.2f} of the events/s, ", end="")
    print(f"vllmd's CPU is {costs['through vllmd'] / costs['direct']:.1f} times the engine's\n")


def main() -> None:
    """Runs both loads and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=5, help="how long a paced round lasts")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with vllmd_on_a_fake_engine() as (through, direct, control):
        for load, pace, tokens in (
            ("paced", PACE_TOKENS_PER_S, wanted.seconds * PACE_TOKENS_PER_S),
            ("flat out", 0, 2000),
        ):
            fake_vllm.control(control, tokens=tokens + 1, tokens_per_s=pace)
            report(load, rounds((through, direct), wanted.streams, tokens, wanted.rounds))


if __name__ == "__main__":
    main()
