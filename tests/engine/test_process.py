"""Engines as asyncio sees them, with real processes: their lines, their ends, and nobody left behind."""

import asyncio
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from programs import FOREVER, python
from waiting import alive, descendants, processes_with_environ, until

from vllmd.engine import tree
from vllmd.engine.output import LINE_CHARACTERS, Lines, Log
from vllmd.engine.process import Command, Process, spawn
from vllmd.engine.verdict import Exit
from vllmd.errors import EngineError

MARK = "TEST_PROCESS"
DIES_WITHIN_S = 30.0


def marked(code: str, mark: str = "") -> Command:
    """A command that runs `code`, whose processes bear a mark."""
    environ = {**os.environ, MARK: mark or uuid.uuid4().hex}
    return Command(python(code), environ)


def left(command: Command) -> set[int]:
    """The living processes that come of a command, wherever they are; its guard is one."""
    return processes_with_environ(MARK, command.env[MARK])


@asynccontextmanager
async def spawned(code: str) -> AsyncIterator[tuple[Process, list[str]]]:
    """A running command and the lines that it prints; afterwards nothing of it may be left."""
    lines: list[str] = []
    command = marked(code)
    try:
        async with spawn(command, lines.append) as process:
            yield process, lines
        assert left(command) == set()
    finally:
        for pid in left(command):
            os.kill(pid, signal.SIGKILL)


async def run(code: str) -> tuple[Exit, list[str]]:
    """Runs a command to its end."""
    async with spawned(code) as (process, lines):
        return await process.wait(), lines


# ── ends ──


@pytest.mark.parametrize(
    ("end", "exit"),
    [
        ("sys.exit(0)", Exit(0, None)),
        ("sys.exit(3)", Exit(3, None)),
        ("sys.exit(255)", Exit(255, None)),
        ("os.kill(os.getpid(), signal.SIGKILL)", Exit(None, 9)),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Exit(None, 11)),
    ],
)
async def test_how_it_ended(end: str, exit: Exit) -> None:
    assert (await run(end))[0] == exit


async def test_terminate_reaches_the_leader() -> None:
    async with spawned("signal.signal(15, lambda *_: sys.exit(7)); say('up')" + FOREVER) as (process, lines):
        await until(lambda: lines, "the first line")
        process.terminate()
        assert await process.wait() == Exit(7, None)
        process.terminate()
        process.kill()


async def test_kill_ends_what_terminate_does_not() -> None:
    async with spawned("signal.signal(15, signal.SIG_IGN); daemon(); say('up')" + FOREVER) as (process, lines):
        await until(lambda: len(lines) == 2, "both lines")
        process.terminate()
        process.kill()
        process.kill()
        assert await process.wait() == Exit(None, 9)


async def test_the_pids_are_those_of_guard_and_leader() -> None:
    async with spawned("say(os.getppid(), os.getpid())" + FOREVER) as (process, lines):
        await until(lambda: lines, "the first line")
        assert lines == [f"{process.pid} {process.leader}"]


async def test_the_leader_dies_and_its_orphans_with_it() -> None:
    code = "daemon()\nfor _ in range(3):\n if os.fork() == 0: os.setsid(); break\nsay('up')" + FOREVER
    async with spawned(code) as (process, lines):
        await until(lambda: len(lines) == 5, "all five processes")
        below = descendants(process.pid)
        assert len(below) == 5
        os.kill(process.leader or 0, signal.SIGKILL)
        assert await process.wait() == Exit(None, 9)
        assert not any(map(alive, below))


async def test_leaving_the_context_ends_it() -> None:
    async with spawned("daemon(); say('up')" + FOREVER) as (process, lines):
        await until(lambda: len(lines) == 2, "both lines")
    assert await process.wait() == Exit(None, 9)


async def test_an_error_in_the_context_ends_it_and_goes_on() -> None:
    with pytest.raises(ZeroDivisionError):
        async with spawned(FOREVER):
            1 / 0  # noqa: B018


@pytest.mark.parametrize("times", [1, 5])
async def test_cancellation_waits_for_the_end(times: int) -> None:
    command, started = marked("daemon(); say('up')" + FOREVER), asyncio.Event()

    async def live() -> None:
        async with spawn(command, lambda line: started.set() if line == "up" else None) as process:
            await process.wait()

    task = asyncio.create_task(live())
    await started.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(command) == set()


async def test_cancellation_while_it_starts() -> None:
    command = marked(FOREVER)

    async def live() -> None:
        async with spawn(command, print):
            pytest.fail("it was cancelled before")

    for turns in range(6):
        task = asyncio.create_task(live())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left(command) == set()


async def test_whoever_waits_may_give_up() -> None:
    async with spawned(FOREVER) as (process, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        assert alive(process.pid)
        process.kill()
        assert tuple(await asyncio.gather(process.wait(), process.wait())) == (Exit(None, 9), Exit(None, 9))


# ── starts that fail ──


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("/nowhere/bin/python", "-c", ""), "cannot start /nowhere/bin/python: No such file or directory"),
        (("/etc/passwd",), "cannot start /etc/passwd: Permission denied"),
        (("/etc",), "cannot start /etc: Permission denied"),
        (("no-such-program",), "cannot start no-such-program: No such file or directory"),
        (("/bin/echo", "\0"), "cannot start /bin/echo: embedded null byte"),
    ],
)
async def test_a_program_that_cannot_be_run(argv: tuple[str, ...], named: str) -> None:
    with pytest.raises(EngineError) as caught:
        async with spawn(Command(argv, os.environ), lambda _: None):
            pytest.fail("it cannot have started")
    assert caught.value.message == named
    assert caught.value.hint


async def test_a_script_whose_interpreter_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/nowhere/bin/python\n")
    script.chmod(0o755)
    with pytest.raises(EngineError, match="No such file") as caught:
        async with spawn(Command((str(script),), os.environ), lambda _: None):
            pytest.fail("it cannot have started")
    assert "interpreter" in caught.value.hint


async def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        async with spawn(Command(("/bin/true",), {}, tmp_path / "nowhere"), lambda _: None):
            pytest.fail("it cannot have started")


async def test_the_place_that_it_is_given(tmp_path: Path) -> None:
    lines: list[str] = []
    command = Command(("env",), {"PATH": "/usr/bin:/bin", "ONE": "1", "SPT_NOENV": ""}, tmp_path)
    async with spawn(command, lines.append) as process:
        await process.wait()
    environ = dict(line.split("=", 1) for line in lines)
    assert environ["ONE"] == "1"
    assert environ["SPT_NOENV"] == "", "the command has the last word"
    assert re.fullmatch("[0-9a-f]{32}", environ["VLLMD_ENGINE"])
    async with spawn(Command(("/bin/pwd",), {"PWD": ""}, tmp_path), lines.append) as process:
        await process.wait()
    assert lines[-1] == str(tmp_path)


# ── killing those who watch ──


HOLDER = """
import asyncio, os, sys
from vllmd.engine.process import Command, spawn

async def main():
    command = Command(tuple(sys.argv[1:]), dict(os.environ))
    async with spawn(command, lambda line: print(line, flush=True)) as process:
        await process.wait()

asyncio.run(main())
"""


async def test_kill_9_of_vllmd_ends_the_engine() -> None:
    command = marked("daemon(); os.fork(); say('up')" + FOREVER)
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, *command.argv, env=command.env, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout
    for _ in range(3):
        await holder.stdout.readline()
    assert len(left(command)) == 5, "vllmd, its guard, the engine, its child and its daemon"
    holder.kill()
    await until(lambda: not left(command), "the engine to follow vllmd", DIES_WITHIN_S)
    await holder.communicate()


async def test_kill_9_of_the_guard_ends_the_engine() -> None:
    async with spawned("daemon(); os.fork(); say('up')" + FOREVER) as (process, lines):
        await until(lambda: len(lines) == 3, "all three processes")
        below = descendants(process.pid)
        assert len(below) == 3
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(DIES_WITHIN_S):
            assert await process.wait() == Exit(None, 9)
        assert not any(map(alive, below))


async def test_a_guard_that_somebody_has_stopped_still_kills() -> None:
    async with spawned("say('up')" + FOREVER) as (process, lines):
        await until(lambda: lines, "the engine")
        os.kill(process.pid, signal.SIGSTOP)
        process.kill()
        async with asyncio.timeout(DIES_WITHIN_S):
            assert await process.wait() == Exit(None, 9)


async def test_kill_9_of_the_guard_during_a_fork_storm() -> None:
    comet = (
        "end = time.monotonic() + 20\nwhile time.monotonic() < end:\n os.setsid() if os.fork() == 0 else os._exit(0)"
    )
    code = f"for _ in range(4):\n if os.fork() == 0:\n  exec({comet!r})\nsay('up')" + FOREVER
    async with spawned(code) as (process, lines):
        await until(lambda: lines, "the storm")
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(3 * DIES_WITHIN_S):
            await process.wait()


def test_a_sweep_reports_how_many_it_killed() -> None:
    assert tree.sweep(f"{MARK}={uuid.uuid4().hex}") == 0


async def test_what_is_in_the_pipe_arrives_though_somebody_still_holds_it() -> None:
    lines: list[str] = []
    read_end, write_end = os.pipe()
    os.write(write_end, b"line\n" * 12_000 + b"last")
    log = Log(read_end, lines.append)
    await log.drain()
    log.close()
    os.close(write_end)
    assert lines == ["line"] * 12_000 + ["last"]


# ── lines ──


async def test_a_burst_of_lines_starves_nobody() -> None:
    turns = 0

    async def everybody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(everybody_else())
    exit, lines = await run("sys.stdout.writelines(f'line {n}\\n' for n in range(100_000))")
    others.cancel()
    assert exit == Exit(0, None)
    assert lines == [f"line {n}" for n in range(100_000)]
    assert turns > sum(map(len, lines)) // (16 * 1024), "a turn for others after each read"


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"no end", ["no end"]),
        (b"a\n\n\n  \nb\r\n", ["a", "  ", "b"]),
        (b"\r 0%|   \r 50%|#  \r100%|###\n", [" 0%|   ", " 50%|#  ", "100%|###"]),
        (b"\xff\xfe bad \xc3\n\xe2\x96", ["\ufffd\ufffd bad \ufffd", "\ufffd"]),
        ("▀▄\u2028\x0b\x85 one line\n".encode(), ["▀▄\u2028\x0b\x85 one line"]),
    ],
)
async def test_what_counts_as_a_line(written: bytes, lines: list[str]) -> None:
    assert (await run(f"os.write(1, {written!r}); os.write(2, b'')"))[1] == lines


async def test_stdout_and_stderr_come_in_the_order_in_which_they_were_written() -> None:
    assert (await run("for n in range(9): os.write(1 + n % 2, b'%d\\n' % n)"))[1] == list("012345678")


async def test_a_line_without_end_takes_no_memory() -> None:
    _, lines = await run("sys.stdout.write('x' * 5_000_000)")
    assert max(map(len, lines)) <= LINE_CHARACTERS
    assert sum(map(len, lines)) == 5_000_000


async def test_a_line_arrives_when_it_is_written() -> None:
    async with spawned("say('early')" + FOREVER) as (process, lines):
        await until(lambda: lines == ["early"], "the line")
        assert alive(process.pid)


@given(st.binary(max_size=300), st.lists(st.integers(1, 9), max_size=100))
def test_how_the_bytes_come_does_not_matter(data: bytes, sizes: list[int]) -> None:
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    lines = Lines()
    found = [line for piece in filter(None, [*pieces, rest]) for line in lines.feed(piece)]
    assert [*found, *lines.feed(b"")] == [line for line in re.split("[\r\n]", data.decode(errors="replace")) if line]


# ── over and over ──


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_fifty_lives_leave_no_descriptor_and_no_zombie() -> None:
    await run("sys.exit(0)")
    files, before = open_files(), children()
    for number in range(50):
        end = ("sys.exit(0)", "os.kill(os.getpid(), 9)", "daemon(); sys.exit(1)", "say('x')", FOREVER)[number % 5]
        async with spawned(end) as (process, _):
            if end is not FOREVER:
                await process.wait()
        with suppress(EngineError):
            async with spawn(Command(("/nowhere",), {}), lambda _: None):
                pytest.fail("it cannot have started")
    assert open_files() == files
    assert children() == before


async def test_many_at_once() -> None:
    ends = await asyncio.gather(*(run(f"daemon(); say('up'); sys.exit({n})") for n in range(20)))
    assert [exit for exit, _ in ends] == [Exit(n, None) for n in range(20)]


def test_on_uvloop() -> None:
    async def main() -> None:
        await test_a_burst_of_lines_starves_nobody()
        await test_kill_9_of_the_guard_ends_the_engine()
        await test_cancellation_waits_for_the_end(3)
        await test_cancellation_while_it_starts()
        await test_kill_ends_what_terminate_does_not()
        await test_fifty_lives_leave_no_descriptor_and_no_zombie()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_asyncios_own_children_are_not_disturbed() -> None:
    async with spawned("daemon(); say('up')" + FOREVER) as (process, lines):
        await until(lambda: len(lines) == 2, "both lines")
        other = await asyncio.create_subprocess_exec("/bin/sh", "-c", "sleep 0.2; exit 5")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert await other.wait() == 5


async def test_how_long_an_end_takes() -> None:
    async with spawned("for _ in range(20): daemon()\nsay('up')" + FOREVER) as (process, lines):
        await until(lambda: len(lines) == 21, "all processes")
        begun = time.monotonic()
        process.kill()
        await process.wait()
        assert time.monotonic() - begun < DIES_WITHIN_S
