"""What people ask and what models answer stands in no log and in no file, whatever becomes of the request."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import Daemon, running
from waiting import until

ASKED, SAID = "xyzzy-asked", "plugh-said"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": ASKED}]}
STREAM = {**HELLO, "stream": True}
TEXT = " ".join([SAID] * 40)
SLOW = {"text": TEXT, "tokens_per_s": 20}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon that logs as much as it can, with all the fields that the journal would get."""
    with running(Daemon(launcher=("-m", "vllmd", "--verbose"), log={"format": "json"}, knobs={"text": TEXT})) as daemon:
        yield daemon


async def killed_in_mid_answer(daemon: Daemon, body: dict[str, Any]) -> bytes:
    """What came of a stream whose engine is killed after its first words."""
    daemon.wait_for("ready")
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "traced"}
    async with daemon.unix.stream(CHAT, body, headers=headers) as asked:
        await asked.until(SAID.encode(), 2)
        os.kill(daemon.engine_pid, signal.SIGKILL)
        await asked.end()
        return asked.body


async def everything_that_can_befall_a_request(daemon: Daemon) -> None:
    for body in (HELLO, STREAM):  # all is well
        assert SAID.encode() in (await daemon.unix.ask(CHAT, body)).body
    assert SAID.encode() in (await daemon.tcp.ask("/api/prompt", {"prompt": ASKED})).body
    broken: list[Any] = [f'{{"messages": "{ASKED}'.encode(), {"prompt": ASKED, ASKED: 1}, {"prompt": [ASKED]}]
    for body in broken:  # our refusals, which the client alone gets
        assert (await daemon.unix.ask("/api/prompt", body)).status == 400
    daemon.control(fault="http:400")  # the engine's
    assert (await daemon.unix.ask(CHAT, HELLO)).status == 400
    daemon.control(fault="error:500", fault_after=3, text=TEXT)
    assert b'"error"' in (await daemon.unix.ask(CHAT, STREAM)).body
    daemon.control(fault="malformed", fault_after=3, text=TEXT)
    await daemon.unix.ask(CHAT, STREAM)
    daemon.control(**SLOW)
    async with daemon.unix.stream(CHAT, STREAM, headers={"x-request-id": "mine"}) as cancelled:
        await cancelled.until(SAID.encode())
        assert (await daemon.unix.ask("/api/requests/mine", method="DELETE")).status == 202
        await cancelled.end()
    async with daemon.unix.stream(CHAT, STREAM) as left:
        await left.until(SAID.encode())
    assert b"[DONE]" in await killed_in_mid_answer(daemon, STREAM), "it is continued"
    assert b"[DONE]" not in await killed_in_mid_answer(daemon, {**STREAM, "logprobs": True}), "it cannot be"


def told(daemon: Daemon) -> dict[str, str]:
    """All that was written: the log with its fields, and every file."""
    files = [each for each in (daemon.folder / "s").rglob("*") if each.is_file()]
    return {"the log": daemon.log} | {each.name: each.read_text(errors="replace") for each in files}


@pytest.mark.timeout(240)
async def test_neither_prompt_nor_answer_is_written_down(daemon: Daemon) -> None:
    await everything_that_can_befall_a_request(daemon)
    await until(lambda: len(list(daemon.folder.glob("s/incidents/*.json"))) == 2, "both incidents to be written")
    for where, text in told(daemon).items():
        assert ASKED not in text, where
        assert SAID not in text, where
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    (of_it,) = [each for each in lines if "goes on with the answer" in each["message"]]
    assert (of_it["request_id"], of_it["trace_id"]) == ("traced", TRACE), "it speaks of requests all the same"
    assert {each["request_id"] for each in lines if "trace_id" in each} == {"traced"}


@pytest.mark.timeout(240)
async def test_but_what_an_engine_prints_is_kept_as_it_is(daemon: Daemon) -> None:
    """Where its administrator has told vLLM to print prompts, they are part of its log: vllmd cannot tell them apart.
    It shows, too, that the test above would find them."""
    daemon.wait_for("ready")
    daemon.control(log_prompts=1, **SLOW)
    async with daemon.unix.stream(CHAT, STREAM) as asked:
        await asked.until(SAID.encode())
        before = len(list(daemon.folder.glob("s/incidents/*.json")))
        os.kill(daemon.engine_pid, signal.SIGKILL)
        daemon.control()
        await asked.end()
    await until(lambda: len(list(daemon.folder.glob("s/incidents/*.json"))) > before, "the incident to be written")
    newest = max(daemon.folder.glob("s/incidents/*.json"))
    assert ASKED in newest.read_text()
    assert ASKED in daemon.log
    assert SAID not in newest.read_text() + daemon.log
