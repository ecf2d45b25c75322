"""The examples of the manual, word for word, against a real daemon on the fake engine; and what it takes to load."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ctl.shell import Result, Shell, screen
from daemons import Daemon, running
from loopback_hub import serving
from waiting import until_sync

ROOT = Path(__file__).parents[2]
LAUNCHER = f'#!/bin/sh\nexec {sys.executable} -m vllmd.ctl "$@"\n'
TOKENS = " ".join(f"tok{number}" for number in range(16))


@pytest.fixture
def shell(real: Daemon) -> Shell:
    return Shell({"VLLMD_HOST": f"unix://{real.socket}"})


class Bash:
    """A bash with `vllmctl` on its path, in a folder of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "vllmctl").write_text(LAUNCHER)
        (folder / "bin" / "vllmctl").chmod(0o755)
        path = f"{folder}/bin:{os.environ['PATH']}"
        self._environ = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), **environ}

    def run(self, text: str) -> Result:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def bash(real: Daemon, tmp_path: Path) -> Bash:
    return Bash(tmp_path, {"VLLMD_HOST": f"unix://{real.socket}"})


def bodies(real: Daemon) -> list[dict[str, Any]]:
    """What the engine was asked, as it came there."""
    return [each["body"] for each in real.requests()]


def said(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_a_model_is_fetched_before_it_is_needed(tmp_path: Path) -> None:
    with serving() as hub:
        commit = hub.put("Qwen/Qwen2-7B-Instruct", {"config.json": b"{}", "model.safetensors": b"weights"})
        with running(Daemon(environ={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}), ready=False) as real:
            bash = Bash(tmp_path, {"VLLMD_HOST": f"unix://{real.socket}"})
            assert bash.run("vllmctl pull Qwen/Qwen2-7B-Instruct").stdout == "Qwen/Qwen2-7B-Instruct: here, 9 B\n"
            line = bash.run("vllmctl models --local").stdout.splitlines()[1]
            assert line.split() == ["Qwen/Qwen2-7B-Instruct", commit[:12], "9", "B", "yes", "-"]


def test_a_prompt_with_a_temperature(real: Daemon, bash: Bash) -> None:
    assert bash.run('vllmctl chat "prompt" -t 0.7') == Result(0, f"{TOKENS}\n", "")
    (body,) = bodies(real)
    assert (said(body), body["temperature"]) == (["prompt"], 0.7)


def test_a_commit_message(real: Daemon, bash: Bash) -> None:
    git = "git -c init.defaultBranch=main"
    bash.run(f"{git} init -q && echo hello > hello.txt && git add hello.txt")
    result = bash.run('git diff --staged | vllmctl chat -s "Write a commit message" -t 0.2 -n 200')
    assert result == Result(0, f"{TOKENS}\n", "")
    (body,) = bodies(real)
    system, diff = said(body)
    assert system == "Write a commit message"
    assert diff.startswith("diff --git a/hello.txt b/hello.txt\n")
    assert diff.endswith("\n+hello")
    assert (body["temperature"], body["max_tokens"]) == (0.2, 200)


def test_a_review(real: Daemon, bash: Bash) -> None:
    (bash.folder / "review.md").write_text("Review strictly.\n")
    (bash.folder / "src").mkdir()
    (bash.folder / "src" / "main.py").write_text("counter += 1\n")
    result = bash.run('vllmctl chat -s @review.md -f src/main.py "Any race here?" | tee review.txt')
    assert result == Result(0, f"{TOKENS}\n", "")
    assert (bash.folder / "review.txt").read_text() == f"{TOKENS}\n"
    (body,) = bodies(real)
    assert said(body) == ["Review strictly.", "==> src/main.py <==\ncounter += 1\n\nAny race here?"]


def test_json_for_jq(real: Daemon, bash: Bash) -> None:
    (bash.folder / "big.log").write_text("host7 failed\n" * 100)
    text = 'cat big.log | vllmctl chat "Which host failed first?" --json | jq -r .usage.completion_tokens'
    assert bash.run(text) == Result(0, "16\n", "")
    assert bodies(real)[0]["stream_options"]["include_usage"] is True


def test_questions_about_one_document_share_their_beginning(real: Daemon, bash: Bash) -> None:
    (bash.folder / "report.txt").write_text("All is well.\n")
    result = bash.run('for q in "who?" "when?"; do vllmctl chat -f report.txt "$q"; done')
    assert (result.status, result.stderr) == (0, "")
    document = "==> report.txt <==\nAll is well.\n\n"
    assert [said(body) for body in bodies(real)] == [[f"{document}who?"], [f"{document}when?"]]


def test_wait_and_go_on(real: Daemon, bash: Bash) -> None:
    (bash.folder / "nightly.sh").write_text("#!/bin/sh\necho nightly\n")
    (bash.folder / "nightly.sh").chmod(0o755)
    real.control(ready_after_s=0.5)
    real.order("restart")
    assert bash.run("vllmctl wait --timeout 600 && ./nightly.sh") == Result(0, "nightly\n", "")
    assert real.model().state == "ready"


def test_status_for_jq(bash: Bash) -> None:
    assert bash.run("vllmctl status --json | jq -e '.state == \"ready\"'") == Result(0, "true\n", "")


def test_another_host(real: Daemon, bash: Bash) -> None:
    result = bash.run(f"VLLMD_HOST={real.url} vllmctl chat hi --stats")
    assert (result.status, result.stdout) == (0, f"{TOKENS}\n")
    assert result.stderr.startswith("1 in, 16 out, ")
    assert result.stderr.endswith(", stop\n")


def test_the_first_line_is_enough(real: Daemon, bash: Bash) -> None:
    real.control(text="\n".join(map(str, range(500))), tokens_per_s=200)
    text = 'vllmctl chat "count to 500, one per line" | head -1; echo "${PIPESTATUS[0]}"'
    assert bash.run(text) == Result(0, "0\n141\n", "")
    until_sync(lambda: real.journal("end"), "the engine to end")
    assert real.journal("end")[0]["how"] == "cancelled"


def test_a_loop_keeps_its_input(real: Daemon, bash: Bash) -> None:
    (bash.folder / "questions.txt").write_text("who?\nwhen?\nwhy?\n")
    result = bash.run('while read -r q; do vllmctl chat --no-stdin "$q"; done < questions.txt')
    assert (result.status, result.stderr) == (0, "")
    assert [said(body) for body in bodies(real)] == [["who?"], ["when?"], ["why?"]]


# ── what only a real daemon can show ──


def test_ctrl_c_cancels_the_generation_in_the_engine(real: Daemon, shell: Shell) -> None:
    real.control(tokens=1000, tokens_per_s=50)
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"tok0"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, b"")
    until_sync(lambda: real.journal("end"), "the engine to end")
    (end,) = real.journal("end")
    assert end["how"] == "cancelled"
    assert end["tokens"] < 1000


def test_while_it_loads_a_terminal_shows_how_far_it_is(real: Daemon, shell: Shell) -> None:
    assert real.order("unload", wait=True)[0] == 200
    real.control(ready_after_s=1.5)
    real.order("load")
    with screen(shell, "chat", "hi") as seen:
        seen.read_until("waiting for the model: starting, ")
        assert seen.end() == 0
        assert seen.lines == [TOKENS, ""]


def test_load_shows_its_progress_and_then_the_outcome(real: Daemon, shell: Shell) -> None:
    assert real.order("unload", wait=True)[0] == 200
    real.control(ready_after_s=2.5)
    with screen(shell, "load", "tiny") as seen:
        seen.read_until("load tiny ...")
        seen.read_until("tiny: starting, ")
        assert seen.end() == 0
        assert seen.lines == ["tiny: ready", ""]
    assert seen.written.count(b"\rtiny: starting, ") > 1
    with screen(shell, "restart") as seen:
        seen.read_until("tiny: starting, ")
        assert seen.end() == 0
        assert seen.lines == ["tiny: ready", ""]


def test_an_answer_goes_on_while_its_engine_is_replaced(real: Daemon, shell: Shell) -> None:
    real.control(tokens=40, tokens_per_s=40)
    with shell.start("chat", "hi") as process:
        assert process.stdout is not None
        begun = process.stdout.read(len("tok0 tok1 tok2 tok3"))
        os.kill(real.engine_pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    expected = " ".join(f"tok{number}" for number in range(40)) + "\n"
    assert (process.returncode, (begun + out).decode(), err) == (0, expected, b"")
