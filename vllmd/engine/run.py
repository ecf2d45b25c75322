"""One short command: its lines as they come, and nothing of it left behind, however it ends."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from vllmd.engine.redaction import without_secrets

SIGN_OF_LIFE_S = 10.0

Report = Callable[[str], None]


def gently(argv: Sequence[str]) -> list[str]:
    """The command at a low priority, nice(1): an engine may be serving beside it, and uv compiles on every core."""
    nice = shutil.which("nice")
    return [*([nice, "-n", "10"] if nice else []), *argv]


async def output(argv: Sequence[str]) -> tuple[int, list[str]]:
    """The exit status of a command and its lines; 127 and the reason when it cannot be run, as in a shell."""
    lines: list[str] = []
    try:
        return await run(argv, os.environ, lines.append), lines
    except OSError as error:
        return 127, [str(error)]


async def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    said: Report,
    inherited: Sequence[int] = (),
    alive: Report | None = None,
    secrets: Mapping[str, str] | None = None,
) -> int:
    """Run a command in a session of its own, and leave nothing of that session behind, however this ends.

    Args:
        argv: the command.
        environ: its whole environment, but for what is secret in it.
        said: called with each line that it prints.
        inherited: descriptors that it gets.
        alive: called when it was silent for `SIGN_OF_LIFE_S` and yet did something.
        secrets: variables that it gets though they are secret.

    Returns:
        The exit status; negative for the signal that killed it.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**without_secrets(environ), **(secrets or {})},
        start_new_session=True,
        pass_fds=inherited,
        limit=2**20,
    )
    try:
        async for line in _lines(process, alive):
            said(line)
        return await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _lines(process: asyncio.subprocess.Process, alive: Report | None) -> AsyncIterator[str]:
    assert process.stdout is not None
    moved = 0
    while True:
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_S if alive else None):
                raw = await process.stdout.readline()
        except TimeoutError:
            before, moved = moved, await asyncio.to_thread(bytes_moved, process.pid)
            if alive and moved != before:
                alive(f"still at work, {moved >> 20} MiB read and written so far")
            continue
        if not raw:
            return
        for line in raw.decode(errors="replace").replace("\r", "\n").splitlines():
            if line.strip():
                yield line.rstrip()


def bytes_moved(session: int) -> int:
    """How many bytes the living processes of a session have read and written, proc_pid_io(5); 0 if nobody counts."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == session:
                counters = dict(line.split(": ") for line in (entry / "io").read_text().splitlines())
                total += int(counters["rchar"]) + int(counters["wchar"])
    return total
