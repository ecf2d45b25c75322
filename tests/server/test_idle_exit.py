"""A daemon that nobody needs ends, and whoever comes finds the next one: also in the moment in between."""

import asyncio
import socket
import time

import pytest
from asking import Exchange, request
from service_manager import served
from waiting import alive, until

PROMPT = "/api/prompt"
CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_it_ends_with_its_models_and_the_next_request_brings_both_back(loop: str) -> None:
    with served(loop=loop, listen={"exit_idle_s": 1}, knobs={"tokens": 30, "tokens_per_s": 20}) as service:
        daemon = service.daemon
        engine = daemon.engine_pid
        began_at = time.monotonic()
        answer = await daemon.unix.ask(CHAT, STREAM)
        assert answer.whole
        assert time.monotonic() - began_at > 1, "an answer that takes longer is not idleness"
        assert await asyncio.to_thread(daemon.wait) == 0
        service.manager.drop()
        await until(lambda: not alive(engine), "the engine to be gone")
        assert "nobody has asked for anything for 1 s" in daemon.log
        waiting = asyncio.create_task(daemon.unix.ask(CHAT, STREAM))
        await asyncio.sleep(0)
        await asyncio.to_thread(service.start)
        assert (await waiting).whole


async def test_who_was_let_in_as_it_was_about_to_end_is_served_and_it_stays() -> None:
    with served(listen={"exit_idle_s": 0.7}) as service:
        daemon = service.daemon
        for _ in range(3):
            reader, writer = await daemon.unix.connect()
            await until(lambda: listens_no_more(daemon.port), "the doors to be closed")
            writer.write(request(CHAT, STREAM))
            answer = await Exchange(reader, writer).end()
            assert answer.whole, answer.body
            writer.close()
            assert daemon.alive
        assert (await daemon.unix.ask(CHAT, STREAM)).whole, "the doors are open again"
        assert await asyncio.to_thread(daemon.wait) == 0
        service.manager.drop()


def listens_no_more(port: int) -> bool:
    """Whether a client that comes now is not let in: nobody answers it at once."""
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.settimeout(0.25)
        visitor.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        try:
            return not visitor.recv(1)
        except TimeoutError:
            return True


@pytest.mark.timeout(300)  # some ten vllmds, one after the other
async def test_no_request_is_lost_however_it_meets_the_end() -> None:
    """Clients come one after the other with pauses of about the time after which it ends; the next vllmd is started
    whenever one has ended, as systemd would."""
    with served(listen={"exit_idle_s": 0.3}) as service:
        daemon, ends = service.daemon, 0
        done = asyncio.Event()

        async def start_again() -> None:
            nonlocal ends
            while True:
                await until(lambda: not daemon.alive or done.is_set(), "it to end", 60)
                if done.is_set():
                    return
                ends += 1
                service.manager.drop()
                await asyncio.to_thread(service.start, ready=False)

        again = asyncio.create_task(start_again())
        for number in range(12):
            await asyncio.sleep(0.26 + 0.015 * number)
            answer = await daemon.unix.ask(PROMPT, {"prompt": "x"})
            assert (answer.status, answer.whole) == (200, True), answer.body
        done.set()
        await again
        assert ends > 0, "they have met no end"


async def test_without_sockets_of_systemd_s_it_stays() -> None:
    from daemons import Daemon, running

    with running(Daemon(listen={"exit_idle_s": 0.1})) as daemon:
        await asyncio.to_thread(daemon.order, "restart", wait=True)
        await asyncio.sleep(0.5)  # five times as long as it would take
        assert daemon.alive


async def test_a_restart_under_load_loses_nobody_who_keeps_a_connection_or_waits_for_a_place() -> None:
    """What was let in before is served by the old one, as long as the engine stays; each answer says that it is the
    last on its connection."""
    with served(knobs={"tokens": 10, "tokens_per_s": 20}, args={"max-num-seqs": 1}) as service:
        daemon = service.daemon
        reader, writer = await daemon.unix.connect()
        writer.write(request("/health"))
        kept = Exchange(reader, writer)
        await kept.until(b"alive")
        asked = [await daemon.unix.open(CHAT, STREAM)]
        await until(lambda: daemon.model().running == 1, "the first to run")
        asked += [asyncio.create_task(daemon.unix.ask(CHAT, STREAM)) for _ in range(2)]  # type: ignore[misc]
        await until(lambda: daemon.model().held == 2, "the others to wait for its place")
        daemon.process.terminate()  # type: ignore[union-attr]
        await until(lambda: "stopping: running streams get" in daemon.log, "it to drain")
        writer.write(request(CHAT, STREAM))
        last = await Exchange(reader, writer).end()
        assert (last.status, last.whole, last.header("Connection")) == (200, True, "close")
        writer.close()
        first = await asked[0].end()
        await first.leave()
        assert first.whole
        for task in asked[1:]:
            assert (await task).whole  # type: ignore[misc]
        assert await asyncio.to_thread(daemon.wait) == 0
        await asyncio.to_thread(service.start)
        assert daemon.model().generation == 1
