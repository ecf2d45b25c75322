"""vllmctl with models that come and go: who asks for one that is away waits, sees for what, and gets the answer."""

from collections.abc import Iterator

import pytest
from ctl.shell import CTRL_D, Shell, screen
from daemons import running
from pairs import Pair, pair, said
from waiting import until_sync

WORDS = "tok0 tok1 tok2"


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    with pair(queue={"status_after_s": 0.05}) as daemon:
        daemon.control(tokens=3, ready_after_s=0.5)
        yield daemon


@pytest.fixture
def asleep(shared_pair: Pair) -> Pair:
    """`a` sleeps, `b` is ready."""
    for name in "ab":
        assert shared_pair.fetch("/v1/chat/completions", "POST", said(name))[0] == 200
    assert shared_pair.states == {"a": "asleep", "b": "ready"}
    return shared_pair


def vllmctl(daemon: Pair) -> Shell:
    return Shell({"VLLMD_HOST": f"unix://{daemon.socket}"})


def test_a_pipe_gets_the_answer_alone_however_far_the_model_is_away(asleep: Pair) -> None:
    asked = vllmctl(asleep).run("chat", "-m", "a", "hi")
    assert (asked.status, asked.stdout, asked.stderr) == (0, f"{WORDS}\n", "")
    assert asleep.states == {"a": "ready", "b": "asleep"}


def test_who_does_not_wait_is_told_what_the_model_does_and_finds_it_later(asleep: Pair) -> None:
    asked = vllmctl(asleep).run("chat", "-m", "a", "--no-wait", "hi")
    assert (asked.status, asked.stdout) == (3, "")
    assert "a is not ready: asleep" in asked.stderr
    until_sync(lambda: asleep.states["a"] == "ready", "a to be there for the next try")


def test_a_conversation_with_one_that_sleeps_sees_it_wake(asleep: Pair) -> None:
    with screen(vllmctl(asleep), "chat", "-m", "a", keys=True) as seen:
        seen.read_prompt(">>> ")
        seen.type("hi\n")
        seen.read_until("waiting for a: starting")
        seen.read_until(WORDS)
        seen.read_prompt(">>> ")
        seen.type(CTRL_D)
        assert seen.end() == 0


def test_orders_to_one_that_sleeps(asleep: Pair) -> None:
    shell, engine = vllmctl(asleep), asleep.model("a").pid
    loaded = shell.run("load", "a")
    assert (loaded.status, loaded.stdout) == (0, "a: ready\n"), loaded.stderr
    assert asleep.model("a").pid == engine, "it woke"
    unloaded = shell.run("unload", "b")
    assert (unloaded.status, unloaded.stdout) == (0, "b: not loaded, a request loads it\n"), unloaded.stderr
    assert asleep.model("b").pid is None
    assert shell.run("wait", "b", "--timeout", "20").status == 0


def test_one_that_falls_asleep_for_ever_is_unloaded_all_the_same() -> None:
    daemon = Pair(of_all={"load": "demand", "sleep_level": 1})
    daemon.knobs("a", sleep="hangs")
    with running(daemon, ready=False):
        shell = vllmctl(daemon)
        assert shell.run("chat", "hi").status == 0
        with shell.start("load", "b") as other:
            until_sync(lambda: daemon.states["a"] == "dozing", "a to fall asleep")
            assert "falling asleep" in shell.run("models").stdout
            assert shell.run("unload", "a").status == 0
            assert other.wait(60) == 0
        assert daemon.states == {"a": "stopped", "b": "ready"}
