"""vllmctl as a user meets it: a process of its own, with pipes or a terminal around it."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waiting import until_sync

DEADLINE_S = 60.0
CTRL_C, CTRL_D = "\x03", "\x04"
Process = subprocess.Popen[bytes]
VLLMCTL = (sys.executable, "-m", "vllmd.ctl")


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Shell:
    """Starts vllmctl in a clean environment.

    Args:
        environ: what it holds besides PATH, LANG and TERM.
        before: a command that starts vllmctl in its turn.
    """

    environ: Mapping[str, str]
    before: tuple[str, ...] = ()

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None, **popen: Any) -> Process:
        """A running vllmctl; stdin is /dev/null and the outputs are pipes unless told otherwise."""
        return self._start([*self.before, *VLLMCTL, *arguments], environ or {}, popen)

    def run(self, *arguments: str, stdin: bytes | None = None, **rest: Any) -> Result:
        """Runs vllmctl to its end; with `stdin` that comes through a pipe."""
        if stdin is not None:
            rest["stdin"] = subprocess.PIPE
        return _result(self.start(*arguments, **rest), stdin)

    def script(self, text: str) -> Result:
        """Runs a line of bash in which `"$@"` is vllmctl."""
        return _result(self._start(["bash", "-c", text, "bash", *VLLMCTL], {}, {}))

    def _start(self, command: list[str], environ: Mapping[str, str], popen: Mapping[str, Any]) -> Process:
        base = {"PATH": os.environ["PATH"], "LANG": "C", "TERM": "xterm"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env={**base, **self.environ, **environ}, **{**pipes, **popen})


def _result(process: Process, stdin: bytes | None = None) -> Result:
    with process:
        out, err = process.communicate(stdin, DEADLINE_S)
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


class Screen:
    """A terminal that vllmctl writes to, and everything it has written."""

    def __init__(self, controller: int, process: Process) -> None:
        self._controller = controller
        self.process = process
        self.written = b""
        self._seen = 0

    def read_until(self, text: str) -> None:
        """Reads on until `text` has been written since the last time."""

        def is_there() -> bool:
            goes_on = self._read(0.1)
            found = self.written.find(text.encode(), self._seen)
            assert goes_on or found >= 0, f"{text!r} never came: {self.written!r}"
            self._seen = self._seen if found < 0 else found + len(text.encode())
            return found >= 0

        until_sync(is_there, f"{text!r} on the terminal", DEADLINE_S)

    def read_prompt(self, text: str) -> None:
        """Reads on until a prompt has been written and a key is waited for: between the two, readline is deaf to Ctrl-C
        until the next key comes."""
        self.read_until(text)
        until_sync(self._is_asleep, "a key to be waited for", DEADLINE_S)

    def _is_asleep(self) -> bool:
        return self.state == "S"

    @property
    def state(self) -> str:
        """The process's, as in proc(5): `S` asleep, `T` stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    @property
    def is_cooked(self) -> bool:
        """Whether the terminal collects lines and shows what is typed, as it does for a shell."""
        wanted = termios.ICANON | termios.ECHO
        return bool(termios.tcgetattr(self._controller)[3] & wanted == wanted)

    def type(self, text: str) -> None:
        """Presses keys; `\x03` is Ctrl-C, `\\x04` is Ctrl-D."""
        os.write(self._controller, text.encode())

    def end(self) -> int:
        """Reads to the end; returns the exit status."""
        until_sync(lambda: not self._read(0.1), "vllmctl to end", DEADLINE_S)
        return self.process.wait(DEADLINE_S)

    @property
    def lines(self) -> list[str]:
        """What a person sees in the end: later text over earlier text, line by line."""
        return [_overwritten(line) for line in self.written.decode().replace("\r\n", "\n").split("\n")]

    def _read(self, wait_s: float) -> bool:
        """Takes what there is; False once nobody has the terminal open any more."""
        if not select.select([self._controller], [], [], wait_s)[0]:
            return True
        try:
            data = os.read(self._controller, 65536)
        except OSError:  # EIO: the last of the other side has closed it (pty(7))
            return False
        self.written += data
        return bool(data)


def _overwritten(line: str) -> str:
    shown = ""
    for part in re.split("\r", line):
        shown = part + shown[len(part) :]
    return shown.rstrip()


@contextmanager
def screen(
    shell: Shell, *arguments: str, size: tuple[int, int] = (24, 80), keys: bool = False, **popen: Any
) -> Iterator[Screen]:
    """vllmctl with a terminal as stdout and stderr (or what is given for them).

    Args:
        size: rows and columns of the terminal.
        keys: whether stdin is the terminal, too, and Ctrl-C a key on it.
    """
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, size)
    streams = {"stdout": terminal, "stderr": terminal, **({"stdin": terminal} if keys else {}), **popen}
    its_own = replace(shell, before=("setsid", "--ctty", *shell.before)) if keys else shell
    try:
        with its_own.start(*arguments, **streams) as process:
            os.close(terminal)
            yield Screen(controller, process)
            process.kill()
    finally:
        os.close(controller)
