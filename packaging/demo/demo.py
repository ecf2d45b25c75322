"""The demo: a real vLLM on the CPU with a small real model, behind a vllmd of its own.

`demo.py chat PROMPT` prepares what is missing, starts vllmd unless it runs, and streams an answer; `demo.py stop` ends
it all. What was downloaded and built stays in the cache directory, so that the second time takes seconds.
"""

import argparse
import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from prepare import ENGINE, MODEL, prepare

from vllmd.address import UnixAddress
from vllmd.ctl.client import Client
from vllmd.ctl.wait import watch
from vllmd.engine.runtime import make_private
from vllmd.errors import DaemonUnreachable, VllmdError
from vllmd.statuses import ModelStatus

STATE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllmd/demo"
RUNTIME = Path(f"/tmp/vllmd-demo-{os.getuid()}")
"""Short, because the paths of Unix sockets are."""

SOCKET = RUNTIME / "vllmd.sock"
CONFIG = STATE / "vllmd.toml"
LOG = STATE / "vllmd.log"
PID_FILE = STATE / "vllmd.pid"

LONGEST_TOKENS = "200"

TEMPERATURE = "0"
"""Such a small model rambles at any other, and so the answer is the same each time."""

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 120.0


def configuration(model: Path, *, state: Path, runtime: Path, port: int) -> str:
    """A vllmd.toml that serves the demo's model; `port` 0 leaves TCP out."""
    tcp = f"127.0.0.1:{port}" if port else ""
    return f"""# Written by `make demo`.
[listen]
tcp = "{tcp}"
unix = "{runtime}/vllmd.sock"

[paths]
state = "{state}"
runtime = "{runtime}/engines"
cache = "{state}/cache"

[environment]
requirement = "{ENGINE}"

[models.{MODEL}]
model = "{model}"

[models.{MODEL}.args]
dtype = "float32"         # in bfloat16 this model talks nonsense
max-model-len = 2048
enforce-eager = true      # compiling takes two minutes and gains little here

[models.{MODEL}.env]
VLLM_CPU_KVCACHE_SPACE = "1"
HF_HUB_OFFLINE = "1"
TRANSFORMERS_OFFLINE = "1"
"""


def say(text: str) -> None:
    """A line of progress; stdout belongs to the answer."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def say_shortly(text: str) -> None:
    """A line of the installer's, unless it is one of the 150 that name a package."""
    if not text.lstrip().startswith("+ "):
        say(text)


def chat(prompt: str, port: int) -> int:
    """Answers `prompt`, from whatever is there already; returns vllmctl's exit status."""
    started = start(port) if running_pid() is None else None
    wait_until_ready(started)
    words = ["-H", str(UnixAddress(str(SOCKET))), "chat", "--no-stdin", "-t", TEMPERATURE, "-n", LONGEST_TOKENS, prompt]
    say(f"$ vllmctl {shlex.join(words)}")
    status = subprocess.run([sys.executable, "-m", "vllmd.ctl", *words], check=False).returncode
    if status == 0:
        show_doors()
    return status


def start(port: int) -> "subprocess.Popen[bytes]":
    """Starts vllmd in the background."""
    model = asyncio.run(prepare(STATE, say_shortly))
    make_private(RUNTIME)
    CONFIG.write_text(configuration(model, state=STATE, runtime=RUNTIME, port=port))
    argv = [sys.executable, "-m", "vllmd", "--config", str(CONFIG)]
    with LOG.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    PID_FILE.write_text(str(process.pid))
    say(f"started vllmd (pid {process.pid}), its log is {LOG}")
    return process


def wait_until_ready(started: "subprocess.Popen[bytes] | None") -> None:
    """Tells each phase of the start. Raises VllmdError if it does not come to its end."""
    said = ""
    for news in watch(Client(UnixAddress(str(SOCKET)), {}, say), None, time.monotonic() + START_TIMEOUT_S):
        summary = news.summary if isinstance(news, ModelStatus) else ""
        if summary and summary != said:
            say(f"{MODEL}: {summary}")
            said = summary
        if summary == "ready":
            return
        is_dead = started.poll() is not None if started else running_pid() is None
        if summary.startswith("failed") or (is_dead and isinstance(news, DaemonUnreachable)):
            raise VllmdError(f"vllmd did not start; its log ends with:\n{tail(LOG)}", f"the whole log is {LOG}")
    raise VllmdError(f"not ready after {START_TIMEOUT_S:g} s", f"see {LOG}")


def show_doors() -> None:
    """What to try next."""
    say("vllmd keeps running; try for instance:")
    say(f'  curl -N --unix-socket {SOCKET} http://localhost/api/prompt -d \'{{"prompt":"hi"}}\'')
    say(f"  export VLLMD_HOST={UnixAddress(str(SOCKET))}; .venv/bin/vllmctl status")
    say("  make stop")


def stop() -> int:
    """Ends the demo's vllmd and with it its engine."""
    pid = running_pid()
    if pid is None:
        say("vllmd is not running")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while running_pid() == pid:
        if time.monotonic() > deadline:
            raise VllmdError(f"vllmd (pid {pid}) does not end", f"see {LOG}")
        time.sleep(0.1)
    PID_FILE.unlink(missing_ok=True)
    say("vllmd and its engine have ended")
    return 0


def running_pid() -> int | None:
    """The process that serves the demo's configuration; None if there is none, or it is a zombie."""
    try:
        pid = int(PID_FILE.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(CONFIG).encode() in words else None


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


def main() -> int:
    """Does what the arguments say, and tells in words what went wrong."""
    parser = argparse.ArgumentParser(description="vLLM behind vllmd, on the CPU, with a small model.")
    parser.add_argument("--port", type=int, default=8080, help="TCP port of the door; 0: none")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("chat").add_argument("prompt")
    verbs.add_parser("stop")
    arguments = parser.parse_args()
    STATE.mkdir(parents=True, exist_ok=True)
    try:
        return chat(arguments.prompt, arguments.port) if arguments.verb == "chat" else stop()
    except VllmdError as error:
        say(f"error: {error.message}\n      {error.hint}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
