"""The list of verbs, their help, the shared options, and what is imported for them."""

import subprocess
import sys

import click
import pytest
from ctl.shell import Shell
from ctl.stub_daemon import StubDaemon, chat, reply, stream

from vllmd import __version__
from vllmd.ctl.commands import VERBS, Verb
from vllmd.ctl.examples import examples_of
from vllmd.ctl.run import vllmctl

CHAT = "POST /v1/chat/completions"
CONTEXT = click.Context(vllmctl)


def test_version(shell: Shell) -> None:
    result = shell.run("--version")
    assert (result.status, result.stdout, result.stderr) == (0, f"vllmctl {__version__}\n", "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_stdout_and_lists_every_verb(shell: Shell, flag: str) -> None:
    result = shell.run(flag)
    assert (result.status, result.stderr) == (0, "")
    for verb, (_, summary) in VERBS.items():
        assert f"  {verb} " in result.stdout
        assert summary in result.stdout
    for name in ("VLLMD_HOST", "VLLMD_API_KEY", "VLLMD_API_KEY_FILE", "NO_COLOR"):
        assert name in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_what_the_list_says(verb: str) -> None:
    command = vllmctl.get_command(CONTEXT, verb)
    assert isinstance(command, Verb)
    assert command.name == verb
    assert command.help is not None
    assert command.help.splitlines()[0] == VERBS[verb][1]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_of_its_own(shell: Shell, verb: str) -> None:
    result = shell.run(verb, "-h")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: vllmctl {verb} ")
    for option in ("-H, --host", "-q, --quiet", "--no-color"):
        assert option in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_a_verb_too(shell: Shell, verb: str) -> None:
    assert shell.run("help", verb) == shell.run(verb, "--help")
    assert shell.run("help") == shell.run("--help")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_fits_a_terminal_and_shows_examples(shell: Shell, verb: str) -> None:
    text = shell.run(verb, "--help").stdout
    own, _, examples = text.partition("\nExamples:\n")
    assert all(len(line) <= 80 for line in own.splitlines())
    assert "RANGE" not in own
    assert own.index("Options of all commands:") < own.index("--host")
    assert examples.splitlines() == [f"  {line}" for line in examples_of(verb)]


def test_shared_options_stand_before_or_after_the_verb(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a", finish="length"))
    elsewhere = {"VLLMD_HOST": "unix:///nowhere"}
    for arguments in (
        ["-q", "-H", daemon.address, "chat", "hi"],
        ["chat", "hi", "-q", "-H", daemon.address],
        ["-H", "/nowhere/too", "chat", "-H", daemon.address, "hi", "-q"],
    ):
        result = shell.run(*arguments, environ=elsewhere)
        assert (result.status, result.stdout, result.stderr) == (0, "a\n", "")


def test_the_environment_does_not_beat_the_command_line(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    result = shell.run("-H", daemon.address, "chat", "hi", environ={"VLLMCTL_CHAT_HOST": "/x", "VLLMCTL_HOST": "/x"})
    assert result.status == 0


NEVER = ("aiohttp", "asyncio", "vllmd.server", "vllmd.engine")
SLOW = ("ssl", "http.client", "email", "rich", "pydantic", "logging", "subprocess", "urllib.parse")
LATER = ("vllmd.ctl.session", "vllmd.ctl.interactive", "vllmd.ctl.report", "readline", "unicodedata", "tempfile")
UNREAD = (
    "vllmd.sse",
    "vllmd.wire",
    "vllmd.statuses",
    "vllmd.settings",
    "vllmd.template",
    "vllmd.ctl.answer",
    "vllmd.ctl.reading",
)
"""What reads the answer, and what is made of dataclasses, which take long to make."""

TELL_AT_END = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
TELL_AT_CONNECT = """import sys
sys.addaudithook(lambda event, _: print(*sys.modules, file=sys.stderr) if event == "socket.connect" else None)"""


def run_telling(shell: Shell, tell: str, *arguments: str) -> set[str]:
    """The modules that a run of vllmctl has loaded when `tell` tells of them."""
    script = f"{tell}\nfrom vllmd.ctl.main import main\nmain()"
    environ = {"PATH": "", **shell.environ}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environ,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return set(done.stderr.decode().split())


def test_help_loads_no_verb_and_nothing_slow(shell: Shell) -> None:
    found = run_telling(shell, TELL_AT_END, "--help")
    assert found.isdisjoint({*NEVER, *SLOW, "socket", "json", *(module for module, _ in VERBS.values())})


def test_chat_loads_nothing_slow(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    found = run_telling(shell, TELL_AT_END, "chat", "hi")
    assert "vllmd.ctl.answer" in found
    assert found.isdisjoint({*NEVER, *SLOW})


def test_no_other_verb_loads_the_daemon_s_side(daemon: StubDaemon, shell: Shell) -> None:
    status = {"version": "1", "state": "ready", "model": "m", "since": 0, "models": [{"name": "m", "state": "ready"}]}
    daemon.on("GET /api/status", reply(status))
    daemon.on("GET /v1/models", reply({"data": []}))
    daemon.on("POST /api/models/m/load?wait=1", reply(status["models"][0]))  # type: ignore[index]
    daemon.on("GET /api/events", stream(b'event: model\ndata: {"name": "m", "state": "ready"}\n\n'))
    for verb in ("status", "models", "wait", "load"):
        assert run_telling(shell, TELL_AT_END, verb).isdisjoint({*NEVER, "http.client", "email"})


def test_what_reads_the_answer_is_imported_after_the_request_is_sent(daemon: StubDaemon, shell: Shell) -> None:
    daemon.on(CHAT, chat("a"))
    found = run_telling(shell, TELL_AT_CONNECT, "chat", "hi")
    assert "vllmd.ctl.connection" in found
    assert found.isdisjoint({*NEVER, *SLOW, *UNREAD, *LATER})
