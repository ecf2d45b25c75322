"""How it is told that another engine goes on with an answer, and what is true in the pause before it does."""

import asyncio
import signal
from typing import Any

import openai
from asking import Exchange, request
from conftest import Start
from daemons import Daemon
from struck import (
    CHAT,
    HELLO,
    PACED,
    PROMPT,
    STALLED,
    STREAM,
    TEXT,
    TOKENS,
    assert_text,
    assert_whole,
    begun,
    by,
    client_of,
    continued,
    kill,
    outlived,
    replaced,
    the_error,
)
from waiting import until

NEVER = {**PACED, "start_end": "never"}


async def test_the_trailer_is_announced_and_comes_only_where_it_is_true(start: Start) -> None:
    daemon = start(knobs=PACED)
    undisturbed = await daemon.unix.ask(CHAT, STREAM)
    assert undisturbed.header("trailer") == "X-Vllmd-Continued"
    assert undisturbed.trailers == []
    struck = await outlived(daemon, kill, CHAT, STREAM)
    assert struck.header("trailer") == "X-Vllmd-Continued"
    assert struck.trailers == [("x-vllmd-continued", "1")]
    assert struck.header("x-vllmd-replayed") == "", "part of the answer was out: it was not sent again"


async def test_a_connection_serves_on_behind_a_trailer(start: Start) -> None:
    daemon = start(knobs=PACED)
    for door in (daemon.unix, daemon.tcp):
        reader, writer = await door.connect()
        writer.write(request(CHAT, STREAM))
        first = await Exchange(reader, writer).until(b"tok5")
        await kill(daemon)
        assert continued(await first.end()) == 1
        writer.write(request(CHAT, STREAM))
        second = await Exchange(reader, writer).end()
        assert_whole(second)
        assert continued(second) == 0
        await second.leave()


async def test_http_1_0_gets_the_whole_answer_and_no_trailer(start: Start) -> None:
    daemon = start(knobs=PACED)
    for door in (daemon.unix, daemon.tcp):
        reader, writer = await door.connect()
        writer.write(request(CHAT, STREAM).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        answer = await Exchange(reader, writer).until(b"tok5")
        await kill(daemon)
        await answer.end()
        assert answer.header("trailer") == answer.header("transfer-encoding") == ""
        assert answer.body.endswith(b"data: [DONE]\n\n")
        client = client_of(answer)
        client.check()
        assert client.text == TEXT
        await answer.leave()
        await replaced(daemon, daemon.model().generation)


async def test_an_event_tells_of_it(start: Start) -> None:
    daemon = start(knobs=PACED)
    async with daemon.unix.stream("/api/events") as events:
        await events.until(b'"state"')
        async with begun(daemon.tcp, CHAT, STREAM) as stream:
            await kill(daemon)
            await stream.end()
        await events.until(b"event: continued")
        (told,) = [each for each in events.events if each.name == "continued"]
    assert told.json() == {"model": "tiny", "request": stream.header("x-request-id"), "generation": 2}
    numbers = [int(each.id or 0) for each in events.events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    async with daemon.unix.stream("/api/events", headers={"Last-Event-ID": str(int(told.id or 0) - 1)}) as again:
        await again.until(b"event: continued")
    assert again.events[0] == told


async def test_a_request_that_was_sent_again_says_so(start: Start) -> None:
    daemon = start(knobs=PACED)
    daemon.control(**STALLED)
    doors = {"whole": (CHAT, HELLO), "stream": (CHAT, STREAM), "completions": ("/v1/completions", {"prompt": "x"})}
    asked = {name: asyncio.create_task(daemon.unix.ask(*each)) for name, each in doors.items()}
    await until(lambda: len(daemon.requests()) == len(doors), "the requests to be there")
    await kill(daemon)
    daemon.control(**PACED)
    for name, task in asked.items():
        answer = await task
        assert answer.whole, name
        assert answer.header("x-vllmd-replayed") == "1", name
        assert answer.trailers == [], name


# ── the pause ──


async def test_comments_keep_the_client_awake_in_the_pause(start: Start) -> None:
    daemon = start(knobs=PACED, queue={"status_after_s": 0})
    async with begun(daemon.unix, CHAT, STREAM) as stream, begun(daemon.tcp, PROMPT, {"prompt": "x"}) as text:
        daemon.control(**PACED, ready_after_s=2.5)
        await kill(daemon)
        await asyncio.gather(stream.end(), text.end())
    assert_whole(stream)
    assert_text(text)
    for answer in (stream, text):
        comments = [each.comment for each in answer.events if each.comment]
        assert any(each.startswith("starting") for each in comments), comments


async def test_a_client_that_leaves_in_the_pause_is_forgotten(start: Start) -> None:
    daemon = start(knobs=PACED, queue={"running": 2})
    async with begun(daemon.unix, CHAT, STREAM), begun(daemon.tcp, PROMPT, {"prompt": "x"}):
        daemon.control(**NEVER)
        await kill(daemon)
        await until(lambda: daemon.model().held == 2, "both to wait for the next engine")
    await until(lambda: (daemon.model().running, daemon.model().held) == (0, 0), "both to be forgotten")
    daemon.control(**PACED)
    daemon.order("restart", wait=True)
    assert len(daemon.requests()) == 2, "nobody is asked to go on for nobody"
    both = await asyncio.gather(*(daemon.unix.ask(CHAT, STREAM) for _ in range(2)))
    assert [each.whole for each in both] == [True, True], "their places are free again"


async def test_a_client_that_leaves_a_continuation_stops_it(start: Start) -> None:
    daemon = start(knobs=PACED)
    async with begun(daemon.unix, CHAT, STREAM) as stream:
        await kill(daemon)
        daemon.control(**STALLED)
        await until(lambda: len(daemon.requests()) == 2, "the continuation to have begun")
        daemon.forget()
        await stream.leave()
        await until(lambda: daemon.journal("end"), "the engine to drop it")
    assert daemon.journal("end")[0]["how"] == "cancelled"
    await until(lambda: daemon.model().running == 0, "vllmd to forget it")


async def test_places_are_kept_for_those_who_go_on(start: Start) -> None:
    daemon = start(knobs=PACED, queue={"running": 2})
    async with begun(daemon.unix, CHAT, STREAM) as one, begun(daemon.tcp, CHAT, STREAM) as other:
        later = [asyncio.create_task(daemon.unix.ask(CHAT, STREAM)) for _ in range(4)]
        await until(lambda: daemon.model().held == 4, "the others to wait for a place")
        await kill(daemon)
        await asyncio.gather(one.end(), other.end())
    for answer in (one, other, *[await task for task in later]):
        assert_whole(answer)
    bodies = [each["body"] for each in daemon.requests()]
    assert ["continue_final_message" in body for body in bodies] == [False, False, True, True, *[False] * 4]


async def test_an_unload_in_the_pause_is_told(start: Start) -> None:
    daemon = start(knobs=PACED)
    async with begun(daemon.unix, CHAT, STREAM) as stream, begun(daemon.unix, PROMPT, {"prompt": "x"}) as text:
        assert daemon.order("unload")[0] == 202
        await asyncio.gather(stream.end(), text.end())
    for answer in (stream, text):
        assert the_error(answer)["code"] == "not_ready"


async def test_a_stop_of_vllmd_in_the_pause_is_told(start: Start) -> None:
    daemon = start(knobs=PACED, relay={"drain_s": 2})
    async with begun(daemon.unix, CHAT, STREAM) as stream:
        daemon.control(**NEVER)
        await kill(daemon)
        await until(lambda: daemon.model().held == 1, "it to wait for the next engine")
        daemon.signal(signal.SIGTERM)
        await stream.end()
    assert the_error(stream)["source"] == "vllmd"
    assert await asyncio.to_thread(daemon.wait) == 0


async def test_a_client_that_does_not_want_to_wait_gets_an_error(start: Start) -> None:
    daemon = start(knobs=PACED)
    async with daemon.unix.stream(CHAT, STREAM, headers={"x-vllmd-wait": "0"}) as stream:
        await stream.until(b"tok5")
        daemon.control(**NEVER)
        await kill(daemon)
        await stream.end()
    assert the_error(stream)["code"] == "not_ready"


# ── a client that knows nothing of vllmd ──


def ask_by_openai(daemon: Daemon, seen: Any) -> tuple[str, list[Any]]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello you there"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            seen(len(chunks))
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices), chunks


async def test_the_openai_client_sees_one_stream(start: Start) -> None:
    daemon = start(knobs=PACED, queue={"status_after_s": 0})
    loop, reached = asyncio.get_running_loop(), asyncio.Event()

    def seen(count: int) -> None:
        if count == TOKENS // 2:
            loop.call_soon_threadsafe(reached.set)

    asked = asyncio.create_task(asyncio.to_thread(ask_by_openai, daemon, seen))
    await reached.wait()
    await by(signal.SIGKILL, "VLLM::EngineCor")(daemon)
    text, chunks = await asked
    assert text == TEXT
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.completion_tokens == TOKENS
    assert daemon.model().generation == 2
