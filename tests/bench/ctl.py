"""What vllmctl costs, beside curl: CPU until its request is on the wire, tokens per second, memory.

`make bench BENCH="--only ctl"`; or `python tests/bench/ctl.py [--runs 20] [--tokens 1000000] [--vllmctl PATH]`. The
daemon is a stub on a Unix socket that reads a request and then the CPU time of whoever sent it (SO_PEERCRED,
/proc/PID/schedstat), so that figure ends exactly where the request arrives. Streams are sent as fast as they are
taken, an event a chunk as vllmd sends them, into a pipe that is read at once. Nothing is asserted: machines are noisy,
and runs alternate so that ratios compare.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
NS_PER_MS = 1_000_000
URL = "http://localhost/v1/chat/completions"
VLLMCTL = str(Path(sys.executable).with_name("vllmctl"))
BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True})


def event(text: str, finish: str | None = None) -> bytes:
    """A chunk of a chat completion as vLLM writes it, in an HTTP chunk of its own."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish, "token_ids": None}
    facts = {"id": f"chatcmpl-{'0' * 32}", "object": "chat.completion.chunk", "created": 1763921535, "model": "tiny"}
    data = f"data: {json.dumps({**facts, 'choices': [choice]}, separators=(',', ':'))}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Stub:
    """Answers one request after the other with `tokens` events.

    Args:
        together: how many events are written at once.
        cpu_ms: CPU time that each client had used when its request had arrived.
        peak_mib: the most memory that the last client had needed when nearly all was sent.
    """

    path: Path
    tokens: int = 1
    together: int = 64
    cpu_ms: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def start(self) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(self.path))
        server.listen(64)
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    def _serve(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                self.cpu_ms.append(_cpu_of_peer_ms(connection))
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.sendall(HEAD)
        block = event(" token") * self.together
        for _ in range(self.tokens // self.together):
            connection.sendall(block)
        self.peak_mib = _peak_of_peer_mib(connection)
        connection.sendall(event(" token") * (self.tokens % self.together) + event("", "stop") + END)


def _cpu_of_peer_ms(connection: socket.socket) -> float:
    return int(Path(f"/proc/{_peer(connection)}/schedstat").read_text().split()[0]) / NS_PER_MS


def _peak_of_peer_mib(connection: socket.socket) -> float:
    status = Path(f"/proc/{_peer(connection)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _peer(connection: socket.socket) -> int:
    """The process at the other end (unix(7): SO_PEERCRED)."""
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def cpu_of(command: list[str]) -> float:
    """CPU time of a command from beginning to end, milliseconds."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return (usage.ru_utime + usage.ru_stime) * 1000


@dataclass
class Stream:
    """How one client took a stream."""

    seconds: float
    cpu_s: float


def stream(command: list[str]) -> Stream:
    """Runs a client into a pipe that is read at once."""
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while os.read(process.stdout.fileno(), 1 << 16):
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0, f"{command[0]} ended with {status}"
    return Stream(time.monotonic() - began, usage.ru_utime + usage.ru_stime)


def startup(stub: Stub, clients: dict[str, list[str]], runs: int) -> None:
    """Prints the CPU time until the request has arrived, beside that of an interpreter that does nothing.

    They alternate, and each is set against the interpreter just before it: times alone mean little on shared machines.
    """
    found: dict[str, list[float]] = {name: [] for name in clients}
    bare = []
    for command in clients.values():
        cpu_of(command)
    for _ in range(runs):
        bare.append(cpu_of([sys.executable, "-c", "pass"]))
        for name, command in clients.items():
            cpu_of(command)
            found[name].append(stub.cpu_ms[-1])
    print(f"CPU until the request has arrived, {runs} runs each: median, least, and times the bare interpreter's")
    for name, figures in {"python": bare, **found}.items():
        ratio = statistics.median(one / other for one, other in zip(figures, bare, strict=True))
        above = statistics.median(figures) - statistics.median(bare)
        print(
            f"  {name:<8} {statistics.median(figures):6.1f} ms {min(figures):6.1f} ms {ratio:6.2f} x  ({above:+.1f} ms)"
        )
    one, other = found.values()
    print(f"  {' / '.join(found)}: {statistics.median(a / b for a, b in zip(one, other, strict=True)):.1f}")


def flow(stub: Stub, clients: dict[str, list[str]], tokens: int) -> None:
    """Prints how fast streams of several lengths are taken, and in how much memory."""
    print("streams as fast as they are taken, an event a chunk")
    for together in (1, 64):
        for length in (tokens // 10, tokens):
            stub.tokens, stub.together = length, together
            for name, command in clients.items():
                took = stream(command)
                print(
                    f"  {name:<8} {length:>8} tokens, {together:>2} a write: {length / took.seconds:>9,.0f} tokens/s, "
                    f"{took.cpu_s / length * 1e6:5.2f} us CPU each, {stub.peak_mib:5.1f} MiB at most"
                )


def measure(vllmctl: str, runs: int, tokens: int) -> None:
    """Measures and prints all of it."""
    with tempfile.TemporaryDirectory(prefix="vllmctl-") as folder:
        # Compiled modules, as an installed vllmctl has them, also where the source was just edited.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        stub = Stub(Path(folder, "s"))
        stub.start()
        clients = {
            "vllmctl": [vllmctl, "chat", "hi", "-H", str(stub.path)],
            "curl": ["curl", "-sN", "--unix-socket", str(stub.path), URL, "-d", BODY],
        }
        startup(stub, clients, runs)
        flow(stub, clients, tokens)
    print(f"the bench itself: {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.1f} s of CPU")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--vllmctl", default=VLLMCTL)
    given = parser.parse_args()
    measure(given.vllmctl, given.runs, given.tokens)


if __name__ == "__main__":
    main()
