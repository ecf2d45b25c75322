"""A stream on its way to a door, on a clock that jumps ahead when there is nothing to do: minutes pass in no time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

import pytest
import recordings
from hypothesis import given
from hypothesis import strategies as st

from vllmd import sse
from vllmd.engine.client import EngineClient, Exchange
from vllmd.engine.http import Head
from vllmd.errors import StreamBroken, VllmdError
from vllmd.server.calls import Call
from vllmd.server.continuation import Seam
from vllmd.server.doors import CLOGGED_BYTES, Door
from vllmd.server.last_words import LastWords
from vllmd.server.passage import Passage
from vllmd.server.silence import DISCARD_S, Patience
from vllmd.server.stream import Stream
from vllmd.server.watch import Watch

HEAD = Head(200, {"content-type": "text/event-stream"})
DONE = b"data: [DONE]\n\n"


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for the next timer it moves the clock there."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self.now_s += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


class Recorder(Door):
    """A door that writes down what goes through it, and when; its client reads when it is told to."""

    def __init__(self, shows: bool = True) -> None:
        self._shows = shows
        self.response = None
        self.has_answer = self.is_ended = False
        self.writes = 0
        self.begun = False
        self.out = b""
        self.comments_at: list[float] = []
        self.cut_at: list[float] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.backlog = 0

    async def begin(self, headers: Mapping[str, str]) -> None:
        self.begun = True

    def opens_with(self, block: bytes) -> bool:
        return bool(block) and self._shows

    def send(self, block: bytes) -> None:
        assert self.begun, "nothing goes out before the head"
        self.has_answer = True
        self.writes += 1
        self.out += block

    @property
    def write_chunk(self) -> Callable[[bytes], object]:
        return lambda chunk: self.send(chunk[chunk.index(b"\n") + 1 : -2])

    @property
    def waiting_bytes(self) -> Callable[[], int]:
        return lambda: CLOGGED_BYTES + 1 if self.is_clogged else 0

    def ordinary(self, text: bytes) -> None:
        raise NotImplementedError

    async def comment(self, text: str) -> None:
        self.comments_at.append(now())

    @property
    def is_open(self) -> bool:
        return self.begun

    def remark(self, text: str) -> None:
        self.comments_at.append(now())
        self.writes += 1

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    async def end_with(self, error: VllmdError) -> None:
        raise NotImplementedError

    @property
    def is_clogged(self) -> bool:
        return not self.reads.is_set()

    async def drain(self) -> None:
        await self.reads.wait()

    def backlog_bytes(self) -> tuple[int, int]:
        return self.backlog, 0

    def cut(self) -> None:
        self.cut_at.append(now())


class Engine:
    """The exchange's side of a stream: a script says what it sends."""

    def __init__(self) -> None:
        self.aborted_at: list[float] = []
        self.is_paused = False
        self.proved_at = 0.0
        self.stops: Callable[[], bool] = lambda: False
        self._passage: Passage | None = None

    @property
    def is_stopping(self) -> bool:
        return self.stops()

    @property
    def passage(self) -> Passage:
        assert self._passage is not None
        return self._passage

    def attach(self, passage: Passage) -> None:
        self._passage = passage

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.aborted_at.append(now())
        self.passage.ended(StreamBroken("aborted"))

    def say(self, event: bytes) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        if not self.passage.glance(chunk):
            self.passage.payload(event)


def now() -> float:
    return asyncio.get_running_loop().time()


def said(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % text.encode()


Script = Callable[[Engine, Stream, Recorder], Coroutine[Any, Any, None]]


def play(
    script: Script,
    *,
    keepalive_s: float = 2,
    stall_s: float = 8,
    send_stall_s: float = 30,
    streams: bool = True,
    is_stopping: Callable[[], bool] = lambda: False,
    seam: Seam | None = None,
    shows: bool = True,
) -> tuple[Engine, Stream, Recorder]:
    """Lets `script` be the engine of one stream, and watches over it."""

    async def story() -> tuple[Engine, Stream, Recorder]:
        engine, door = Engine(), Recorder(shows)
        call = Call("id", "me", "m", "/v1/completions", b"{}", {}, streams, True)
        engine.stops = is_stopping
        stream, watch = Stream(call, door, Patience(keepalive_s, stall_s, send_stall_s), None, engine), Watch(0.25)
        watch.add(stream)
        carrying = asyncio.ensure_future(stream.carry(cast(EngineClient, engine), cast(Exchange, engine), seam))
        await asyncio.sleep(0)
        await script(engine, stream, door)
        await carrying
        watch.discard(stream)
        return engine, stream, door

    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(story())


async def until_over(engine: Engine, stream: Stream, door: Recorder) -> None:
    """The engine says nothing more."""


@pytest.mark.parametrize("begins", [True, False])
def test_a_silent_stream_is_kept_alive_and_given_up_once(begins: bool) -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        if begins:
            engine.passage.begun(HEAD)

    engine, stream, door = play(script)
    assert door.comments_at == [2, 4, 6]
    assert engine.aborted_at == [8]
    assert stream.is_stalled


def test_a_call_that_asks_for_no_stream_may_take_its_time() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        await asyncio.sleep(1000)
        engine.passage.begun(Head(200, {}))
        engine.passage.payload(b'{"a":')
        engine.passage.payload(b"1}")
        engine.passage.ended(None)

    engine, _stream, door = play(script, streams=False)
    assert not door.comments_at
    assert not engine.aborted_at
    assert bytes(engine.passage.body) == b'{"a":1}'


def test_a_stream_that_speaks_is_left_in_peace_and_proves_its_engine() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        for _ in range(50):
            await asyncio.sleep(1.5)
            engine.say(said("a"))
        await asyncio.sleep(0.5)
        assert engine.proved_at == pytest.approx(75, abs=0.3)
        engine.say(DONE)
        engine.passage.ended(None)

    engine, stream, door = play(script)
    assert not door.comments_at
    assert not engine.aborted_at
    assert door.out == said("a") * 50 + DONE
    assert stream.is_done


def test_the_engines_own_comments_end_the_silence_and_prove_nothing() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a"))
        for _ in range(12):
            await asyncio.sleep(1)
            engine.say(b": keep-alive\n\n")
        assert engine.proved_at == pytest.approx(0, abs=0.3)
        assert not engine.aborted_at
        engine.say(DONE)
        engine.passage.ended(None)

    _engine, stream, door = play(script)
    assert stream.is_done
    assert not door.comments_at
    assert door.out.count(b": keep-alive\n\n") == 12


def test_an_answer_that_is_done_but_does_not_end_is_given_up_without_a_fault() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a"))
        await asyncio.sleep(0.01)
        engine.say(said("b"))  # goes straight through, as would what comes after the end
        engine.say(DONE)
        engine.say(said("never"))

    engine, stream, door = play(script)
    assert engine.aborted_at == [pytest.approx(DISCARD_S, abs=0.5)]
    assert stream.is_done
    assert not stream.is_stalled
    assert door.out == said("a") + said("b") + DONE


def test_of_a_stream_its_end_is_kept_and_nothing_else() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
    stop = said("").replace(b"null", b'"stop"')

    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("").replace(b'"content"', b'"role":"assistant","content"'))
        await asyncio.sleep(0.01)
        for word in "abc":
            engine.say(said(word))
            assert not engine.passage.tail
        for event in (stop, usage, DONE):
            engine.say(event)
        assert engine.passage.tail == stop + usage + DONE
        engine.passage.ended(None)

    _engine, stream, _door = play(script)
    assert stream.last_words == LastWords("stop", 3, 5)


@pytest.mark.parametrize("size", [1, 7, 300, 3000])
def test_a_short_stream_says_why_it_ends_however_it_comes(size: int) -> None:
    """In one block with its first words, or in pieces."""
    whole = said("a") + said("b") + said("").replace(b"null", b'"length"') + DONE

    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        for start in range(0, len(whole), size):
            engine.passage.payload(whole[start : start + size])
            await asyncio.sleep(0)
        engine.passage.ended(None)

    _engine, stream, door = play(script)
    assert door.out == whole
    assert stream.last_words == LastWords("length")


class StrangeSeam:
    """What another engine says does not fit."""

    fault = ""

    def mend(self, event: bytes) -> bytes:
        self.fault = "it called a tool"
        return b""


@pytest.mark.parametrize("at_once", [True, False])
def test_an_engine_that_goes_on_strangely_is_stopped_at_once(at_once: bool) -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a"))
        if at_once:
            engine.say(DONE)
        await asyncio.sleep(0.01)
        assert engine.aborted_at

    engine, stream, door = play(script, seam=cast(Seam, StrangeSeam()))
    assert engine.passage.fault is not None
    assert not stream.is_done
    assert not door.out


def test_a_client_that_is_shown_nothing_is_kept_awake_while_the_engine_talks() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        for _ in range(9):
            await asyncio.sleep(1)
            engine.say(b'data: {"choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":null}]}\n\n')
        engine.say(DONE)
        engine.passage.ended(None)

    engine, _stream, door = play(script, shows=False)
    assert door.comments_at == [pytest.approx(2 * n, abs=0.6) for n in (1, 2, 3, 4)]
    assert not engine.aborted_at


def test_a_client_that_does_not_read_stops_the_engines_bytes_and_is_cut_off() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a"))
        await asyncio.sleep(1)
        door.reads.clear()
        engine.say(said("b"))
        assert engine.is_paused
        await asyncio.sleep(100)
        assert engine.proved_at < 2, "what a client lets in late proves nothing of the engine now"
        assert door.cut_at == [pytest.approx(31, abs=0.5), *door.cut_at[1:]]
        assert not engine.aborted_at, "the silence is the client's"
        door.reads.set()
        await asyncio.sleep(0.1)
        assert not engine.is_paused
        engine.passage.ended(StreamBroken("x"))

    play(script)


def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a"))
        await asyncio.sleep(1)
        door.reads.clear()
        engine.say(said("b"))
        for left in range(10):
            await asyncio.sleep(25)
            door.backlog = left + 1
        assert not door.cut_at
        door.reads.set()
        engine.say(DONE)
        engine.passage.ended(None)

    play(script)


def test_a_fault_is_held_back_with_all_that_came_with_it_while_nothing_is_out() -> None:
    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(said("a") + b'data: {"error":{"message":"no","code":503}}\n\n' + DONE)

    engine, _stream, door = play(script)
    assert engine.passage.fault is not None
    assert engine.passage.fault.status == 503
    assert not door.begun
    assert engine.aborted_at


def test_what_the_engine_calls_completed_while_it_is_being_stopped_is_none() -> None:
    stopping: list[bool] = []

    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        engine.say(b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n')
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stopping.append(True)
        engine.say(b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n')

    engine, _stream, door = play(script, is_stopping=lambda: bool(stopping))
    assert engine.passage.fault is not None
    assert b"completed" not in door.out


# ── byte for byte ──


@st.composite
def cuts(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """A recorded stream, cut somehow: each piece comes as a chunk of its own, or as loose bytes."""
    body = draw(st.sampled_from(STREAMS))
    if draw(st.booleans()):
        pieces = sse.events_in(body)
    else:
        places = sorted(draw(st.sets(st.integers(1, len(body) - 1), max_size=30)))
        pieces = [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]
    return body, [(piece, draw(st.booleans())) for piece in pieces]


STREAMS = [body for name, body in recordings.streams().items() if "ERROR" not in name]


def test_there_are_recordings() -> None:
    assert len(STREAMS) >= 5


@given(cut=cuts(), pauses=st.sets(st.integers(0, 30)))
def test_a_stream_passes_byte_for_byte_however_it_arrives(
    cut: tuple[bytes, list[tuple[bytes, bool]]], pauses: set[int]
) -> None:
    body, pieces = cut

    async def script(engine: Engine, stream: Stream, door: Recorder) -> None:
        engine.passage.begun(HEAD)
        for number, (piece, is_chunk) in enumerate(pieces):
            engine.say(piece) if is_chunk else engine.passage.payload(piece)
            if number in pauses:
                await asyncio.sleep(0.01)
        engine.passage.ended(None)

    _, stream, door = play(script)
    assert stream.is_done
    assert door.out == body
