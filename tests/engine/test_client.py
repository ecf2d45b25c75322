"""The client against a scripted engine, on both loops: what is sent, what is read, and what becomes of connections."""

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from waiting import until

from vllmd.engine.body import FRAMES, HEADS
from vllmd.engine.client import EngineClient
from vllmd.engine.http import Head
from vllmd.engine.pool import KEEPALIVE_S
from vllmd.errors import EngineRefused, EngineUnreachable, StreamBroken

SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
UVLOOP = True


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the engine listens; short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="vc", dir="/tmp"))
    yield folder / "sock"
    shutil.rmtree(folder)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


class Peer:
    """One connection at the engine's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.task: asyncio.Task[None] | None = None
        self.requests: list[bytes] = []

    async def request(self) -> bytes:
        """Reads one request, with its body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        self.requests.append(head + await self.reader.readexactly(int(length)))
        return self.requests[-1]

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def engine(path: Path, script: Script) -> AsyncIterator[list[Peer]]:
    """An engine that does on each connection what the script says, and then closes it; yields its connections."""
    peers: list[Peer] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        peers[-1].task = asyncio.current_task()
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await script(peers[-1])
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path), limit=2**26)
    try:
        yield peers
    finally:
        server.close()
        for peer in peers:
            assert peer.task
            peer.task.cancel()
        await asyncio.gather(*(peer.task for peer in peers if peer.task), return_exceptions=True)


def says(*pieces: bytes, hold: bool = False) -> Script:
    """Answers each request with these bytes, and holds the connection, or closes it after the first."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(b"".join(pieces))
            if not hold:
                return

    return script


class Taken:
    """A sink that remembers. `fail` is the callback that raises, `do` what to do in which."""

    def __init__(self, fail: str = "", do: Mapping[str, Callable[[], None]] = MappingProxyType({})) -> None:
        self.calls: list[str] = []
        self.head: Head | None = None
        self.glanced: list[bytes] = []
        self.body = b""
        self.errors: list[Exception | None] = []
        self._fail, self.do = fail, dict(do)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.do.get(name, lambda: None)()
        if name == self._fail:
            raise KeyError(name)

    def begun(self, head: Head) -> None:
        self.head = head
        self._called("begun")

    def glance(self, data: bytes) -> bool:
        if len(data) >= FRAMES or not data.startswith(HEADS[len(data)]) or not data.endswith(b"\r\n"):
            return False
        self.glanced.append(data)
        self.body += data[len(HEADS[len(data)]) : -2]
        self._called("glance")
        return True

    def payload(self, data: bytes) -> None:
        self.body += data
        self._called("payload")

    def ended(self, error: Exception | None) -> None:
        self.errors.append(error)
        self._called("ended")

    async def end(self) -> Exception | None:
        await until(lambda: self.errors, "the answer to end")
        assert self.calls.count("ended") == 1
        assert self.calls[-1] == "ended"
        return self.errors[0]


async def fetch(client: EngineClient, body: bytes | None = None) -> bytes:
    async with client.send("GET" if body is None else "POST", "/x", body=body) as exchange:
        return await exchange.read()


# ── connections ──


async def test_a_connection_is_used_again(path: Path) -> None:
    async with engine(path, says(SHORT, hold=True)) as peers, EngineClient(path) as client:
        for _ in range(3):
            assert await fetch(client) == b"ok"
        assert [len(peer.requests) for peer in peers] == [3]


async def test_the_connection_used_last_is_used_next(path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if b"/first" in await peer.request():
                await go_on.wait()
            await peer.say(SHORT)

    async with engine(path, script) as peers, EngineClient(path) as client:
        async with client.send("GET", "/first") as first, client.send("GET", "/second") as second:
            await second.read()
            go_on.set()
            await first.read()
        for _ in range(3):
            await fetch(client)
        assert {peer.requests[0].split()[1]: len(peer.requests) for peer in peers} == {b"/first": 4, b"/second": 1}


@pytest.mark.parametrize(
    "answer",
    [
        SHORT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        SHORT.replace(b"1.1", b"1.0"),
        SHORT + b"more",
        STREAM + chunk(b"ok") + LAST + b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_a_connection_that_is_unfit_is_closed(path: Path, answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer)
        await peer.gone()

    async with engine(path, script) as peers, EngineClient(path) as client:
        assert [await fetch(client), await fetch(client)] == [b"ok", b"ok"]
        await until(lambda: all(peer.task and peer.task.done() for peer in peers), "both connections to be closed")
        assert len(peers) == 2


@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 408 Timeout\r\n\r\n"])
async def test_an_idle_connection_that_does_something_is_dropped(path: Path, unasked: bytes) -> None:
    async with engine(path, says(SHORT, hold=True)) as peers, EngineClient(path) as client:
        await fetch(client)
        if unasked:
            await peers[0].say(unasked)
            await until(lambda: peers[0].task and peers[0].task.done(), "the client to hang up")
        else:
            peers[0].close()
        assert await fetch(client) == b"ok"
        assert [len(peer.requests) for peer in peers] == [1, 1]


async def test_an_idle_connection_is_closed_before_the_engine_would(path: Path) -> None:
    async with engine(path, says(SHORT, hold=True)) as peers, EngineClient(path) as client:
        await fetch(client)
        since = time.monotonic()
        await until(lambda: peers[0].task and peers[0].task.done(), "the client to hang up")
        assert KEEPALIVE_S - 0.1 < time.monotonic() - since < KEEPALIVE_S + 1.5
        assert await fetch(client) == b"ok"


def stale() -> Script:
    """The first connection serves one request, reads a second one and closes without a word."""
    connections: list[Peer] = []

    async def script(peer: Peer) -> None:
        connections.append(peer)
        await peer.request()
        await peer.say(SHORT)
        await peer.request()
        if len(connections) > 1:
            await peer.say(SHORT)

    return script


@pytest.mark.parametrize("attached", [False, True])
async def test_a_request_into_a_closed_connection_is_sent_once_more(path: Path, attached: bool) -> None:
    async with engine(path, stale()) as peers, EngineClient(path) as client:
        await fetch(client)
        async with client.send("POST", "/again", body=b"body") as exchange:
            if attached:
                exchange.attach(taken := Taken())
                assert await taken.end() is None
                assert (taken.calls[0], taken.calls.count("begun"), taken.body) == ("begun", 1, b"ok")
            assert (await exchange.head()).status == 200
        assert [len(peer.requests) for peer in peers] == [2, 1]
        assert peers[0].requests[1] == peers[1].requests[0]


async def test_a_request_into_a_dead_engine_is_one_that_may_have_been_taken(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(SHORT)
        await peer.request()
        path.unlink()

    async with engine(path, script), EngineClient(path) as client:
        await fetch(client)
        with pytest.raises(EngineUnreachable, match="before it answered") as caught:
            await fetch(client)
        assert not isinstance(caught.value, EngineRefused), "or a deadly request would be sent again and again"


async def test_it_is_not_sent_a_third_time(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if len(peers) == 1:
            await peer.say(SHORT)
            await peer.request()

    async with engine(path, script) as peers, EngineClient(path) as client:
        await fetch(client)
        with pytest.raises(EngineUnreachable):
            await fetch(client)
        assert len(peers) == 2


async def test_nobody_listens(path: Path) -> None:
    async with EngineClient(path) as client:
        with pytest.raises(EngineRefused):
            await fetch(client)
        async with engine(path, says(SHORT)):
            assert await fetch(client) == b"ok"
        with pytest.raises(EngineRefused):
            await fetch(client)
        assert not client.under_way


async def test_a_full_queue_of_connections_is_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        async with EngineClient(path) as client:
            asking = [asyncio.create_task(fetch(client)) for _ in range(5)]
            for _ in asking:
                accepted, _address = await asyncio.to_thread(listening.accept)
                with accepted:
                    await asyncio.to_thread(accepted.recv, 65536)
                    accepted.sendall(SHORT)
            assert await asyncio.gather(*asking) == [b"ok"] * 5


# ── answers ──


async def test_heads_and_bodies(path: Path) -> None:
    async with engine(path, says(STREAM, chunk(b"data: a\n\n"), LAST, hold=True)), EngineClient(path) as client:
        async with client.send("POST", "/v1/x?y", body=b"{}", headers={"X-Id": "7"}) as exchange:
            head = await exchange.head()
            assert (head.status, head.is_stream, head.headers["content-type"]) == (200, True, "text/event-stream")
            assert await exchange.read() == b"data: a\n\n"
            assert [each.body_bytes for each in client.under_way] == [2]
        assert not client.under_way
        async with client.send("HEAD", "/") as exchange:
            assert await exchange.read() == b""


async def test_a_body_that_ends_with_its_connection(path: Path) -> None:
    async with engine(path, says(b"HTTP/1.1 200 OK\r\n\r\n", b"all of it")), EngineClient(path) as client:
        assert await fetch(client) == b"all of it"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "before it answered"),
        (b"HTTP/1.1 200 OK\r\n", "before it answered"),
        (b"hello\r\n\r\n", "nonsense"),
        (SHORT.replace(b"length: 2", b"length: x"), "nonsense"),
    ],
)
async def test_no_head(path: Path, answer: bytes, words: str) -> None:
    async with engine(path, says(answer)), EngineClient(path) as client:
        for method in ("head", "read", "attach"):
            async with client.send("POST", "/", body=b"") as exchange:
                if method == "attach":
                    exchange.attach(taken := Taken())
                    assert isinstance(await taken.end(), EngineUnreachable)
                    assert taken.calls == ["ended"]
                else:
                    with pytest.raises(EngineUnreachable, match=words):
                        await getattr(exchange, method)()


@pytest.mark.parametrize(
    ("answer", "words", "content"),
    [
        (SHORT.replace(b"length: 2", b"length: 9"), "in the middle", b"ok"),
        (STREAM + chunk(b"a") + b"5\r\nbc", "in the middle", b"abc"),
        (STREAM + chunk(b"a"), "in the middle", b"a"),
        (STREAM + chunk(b"a") + b"+1\r\nb\r\n", "nonsense", b"a"),
    ],
)
async def test_no_whole_body(path: Path, answer: bytes, words: str, content: bytes) -> None:
    async with engine(path, says(answer)), EngineClient(path) as client:
        async with client.send("GET", "/") as exchange:
            assert (await exchange.head()).status == 200
            with pytest.raises(EngineUnreachable, match=words):
                await exchange.read()
        async with client.send("GET", "/") as exchange:
            exchange.attach(taken := Taken())
            error = await taken.end()
            assert isinstance(error, StreamBroken)
            assert words in error.message
            assert taken.body == content


async def test_reads_that_are_chunks_are_taken_at_a_glance(path: Path) -> None:
    contents = [b"data: %d\n\n" % each + b"x" * each for each in range(300)] + [b"y" * 10_000]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        for number, content in enumerate(contents):
            await until(lambda: heard() == number, "the client to have read all before")  # noqa: B023
            await peer.say(chunk(content))
        await peer.say(LAST)

    taken = Taken()

    def heard() -> int:
        return len(taken.glanced) if taken.head else -1

    async with engine(path, script), EngineClient(path) as client, client.send("GET", "/") as exchange:
        exchange.attach(taken)
        assert await taken.end() is None
    assert taken.glanced == [chunk(each) for each in contents[:-1]]
    assert taken.body == b"".join(contents)
    assert taken.calls == ["begun", *["glance"] * 300, "payload", "ended"]


async def test_chunks_cut_anywhere(path: Path) -> None:
    body = b"".join(chunk(b"data: %d\n\n" % each) for each in range(40)) + LAST

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        for at in range(0, len(body), 7):
            await peer.say(body[at : at + 7])
            await asyncio.sleep(0)

    async with engine(path, script), EngineClient(path) as client, client.send("GET", "/") as exchange:
        exchange.attach(taken := Taken())
        assert await taken.end() is None
        assert taken.body == b"".join(b"data: %d\n\n" % each for each in range(40))


async def test_a_sink_that_comes_late_misses_nothing(path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + chunk(b"early "))
        await go_on.wait()
        await peer.say(chunk(b"late"))
        await peer.say(LAST)

    async with engine(path, script), EngineClient(path) as client:
        async with client.send("GET", "/") as exchange:
            await exchange.head()
            exchange.attach(taken := Taken())
            assert taken.calls in (["begun", "payload"], ["begun"])
            go_on.set()
            assert await taken.end() is None
            assert taken.body == b"early late"
        async with client.send("GET", "/") as exchange:
            await exchange.read()
            exchange.attach(taken := Taken())
            assert (taken.calls, taken.body) == (["begun", "payload", "ended"], b"early late")


# ── ends ──


async def test_leaving_is_seen_at_once(path: Path) -> None:
    for stage in (b"", STREAM, STREAM + chunk(b"a")):
        async with engine(path, says(stage, hold=True)) as peers, EngineClient(path) as client:
            async with client.send("POST", "/", body=b"x") as exchange:
                if stage:
                    await exchange.head()
                await until(lambda: peers and peers[0].requests, "the request")
                exchange.attach(taken := Taken())
            left_at = time.monotonic()
            assert isinstance(taken.errors[0], StreamBroken if stage else EngineUnreachable)
            await until(lambda: peers[0].task and peers[0].task.done(), "the engine to see it")
            assert time.monotonic() - left_at < 0.5
            assert not client.under_way


async def test_giving_up(path: Path) -> None:
    async with engine(path, says(STREAM, hold=True)) as peers, EngineClient(path) as client:
        async with client.send("GET", "/") as exchange:
            await exchange.head()
            reading = asyncio.create_task(exchange.read())
            await asyncio.sleep(0)
            exchange.abort()
            with pytest.raises(EngineUnreachable):
                await reading
            exchange.abort()
        async with client.send("GET", "/") as exchange:
            exchange.abort()
            with pytest.raises(EngineUnreachable):
                await exchange.head()
        await until(lambda: len(peers) == 2 and all(peer.task and peer.task.done() for peer in peers), "both to close")


@pytest.mark.parametrize("place", ["begun", "glance", "payload"])
async def test_giving_up_from_inside(path: Path, place: str) -> None:
    async with streaming(path) as (peers, client), client.send("GET", "/") as exchange:
        taken = Taken(do={place: exchange.abort})
        exchange.attach(taken)
        assert isinstance(await taken.end(), StreamBroken)
        assert taken.calls[-2:] == [place, "ended"]
        await until(lambda: peers[0].task and peers[0].task.done(), "the engine to see it")


@pytest.mark.parametrize("place", ["begun", "glance", "payload"])
@pytest.mark.parametrize("late", [False, True])
async def test_a_sink_that_fails(path: Path, place: str, late: bool) -> None:
    async with streaming(path) as (peers, client), client.send("GET", "/") as exchange:
        if late:
            await exchange.head()
        exchange.attach(taken := Taken(fail=place))
        assert isinstance(await taken.end(), KeyError)
        assert taken.calls[-2:] == [place, "ended"]
        await until(lambda: peers[0].task and peers[0].task.done(), "the connection to be closed")


@asynccontextmanager
async def streaming(path: Path) -> AsyncIterator[tuple[list[Peer], EngineClient]]:
    """An engine that sends chunks for ever, so that some are read alone and some are not."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        while not peer.reader.at_eof():
            for count in (1, 2):
                await peer.say(chunk(b"data: x\n\n") * count)
                for _ in range(4):  # turns of the loop, in which the client reads
                    await asyncio.sleep(0)

    async with engine(path, script) as peers, EngineClient(path) as client:
        yield peers, client


async def test_closing_the_client_ends_everything(path: Path) -> None:
    async with engine(path, says(STREAM, hold=True)) as peers, EngineClient(path) as client:
        async with client.send("GET", "/1") as first, client.send("GET", "/2") as second:
            await first.head()
            second.attach(taken := Taken())
            reading = asyncio.create_task(first.read())
            await asyncio.sleep(0)
            await client.__aexit__()
            assert taken.errors
            with pytest.raises(EngineUnreachable):
                await reading
        await until(lambda: all(peer.task and peer.task.done() for peer in peers), "the connections to be closed")
        with pytest.raises(EngineRefused):
            await fetch(client)


# ── a great deal ──


async def test_large_bodies_both_ways(path: Path) -> None:
    body = bytes(range(256)) * (32 * 4096)

    async def script(peer: Peer) -> None:
        while True:
            got = (await peer.request()).partition(b"\r\n\r\n")[2]
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(got) + got)

    async with engine(path, script) as peers, EngineClient(path) as client:
        assert await fetch(client, body) == body
        assert await fetch(client, b"small") == b"small"
        assert len(peers) == 1


async def test_an_early_answer_to_a_large_body_costs_its_connection(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(SHORT)
        await peer.gone()

    async with engine(path, script) as peers, EngineClient(path) as client:
        assert await fetch(client, bytes(2**26)) == b"ok"
        await until(lambda: peers[0].task and peers[0].task.done(), "the connection to be closed")


async def test_a_pause_stops_the_engine(path: Path) -> None:
    written, block = 0, chunk(b"x" * 4000)

    async def script(peer: Peer) -> None:
        nonlocal written
        peer.writer.transport.set_write_buffer_limits(0)
        await peer.request()
        await peer.say(STREAM)
        while written < 8_000_000:
            await peer.say(block)
            written += len(block)
        await peer.say(LAST)

    async with engine(path, script) as peers, EngineClient(path) as client, client.send("GET", "/") as exchange:
        taken = Taken(do={"glance": exchange.pause, "payload": exchange.pause})
        exchange.attach(taken)
        await until(lambda: peers, "the connection")
        waits = peers[0].writer.transport.get_write_buffer_size
        await until(lambda: taken.body and waits(), "the engine to wait")
        calls = len(taken.calls)
        assert written - len(taken.body) < 1_000_000
        exchange.resume()
        await until(lambda: len(taken.calls) > calls and waits(), "more, and the engine to wait again")
        taken.do.clear()
        exchange.resume()
        assert await taken.end() is None
        assert len(taken.body) == written // len(block) * 4000


async def test_an_answer_that_is_not_read_says_nothing_of_the_engine(path: Path) -> None:
    """A client that does not take its answer must not make a healthy engine look as if it hung."""
    async with engine(path, says(STREAM, hold=True)), EngineClient(path) as client:
        async with client.send("POST", "/", body=b"{}") as exchange:
            (sent,), now = client.under_way, asyncio.get_running_loop().time
            await exchange.head()
            exchange.pause()
            assert not client.under_way
            paused_at = now()
            exchange.resume()
            assert client.under_way == (sent,)
            assert sent.at >= paused_at, "its silence begins anew"
            exchange.pause()
        assert not client.under_way


async def test_a_connection_that_was_paused_to_the_end_is_used_again(path: Path) -> None:
    async with engine(path, says(SHORT, hold=True)) as peers, EngineClient(path) as client:
        async with client.send("GET", "/") as exchange:
            exchange.attach(taken := Taken(do={"begun": exchange.pause, "payload": exchange.pause}))
            assert await taken.end() is None
        assert await fetch(client) == b"ok"
        assert len(peers) == 1
