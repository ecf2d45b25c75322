"""A connection that takes the shortcut: what comes on it in any pieces, at any time, and how it ends."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from waiting import until

from vllmd.errors import TooMany, Unavailable
from vllmd.limits import Limits
from vllmd.server.access import Identity
from vllmd.server.asked import Way
from vllmd.server.bodies import read_body
from vllmd.server.calls import Calls
from vllmd.server.clients import Client
from vllmd.server.finish import Finish
from vllmd.server.middleware import guarded
from vllmd.server.reply import Reply
from vllmd.server.shortcut import BEHIND_BYTES, HOLD_S, Shortcut


def request(body: bytes = b"{}", path: str = "/ask") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


class Wire(asyncio.Transport):
    """A client's end, as a protocol sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.protocol: Any = None
        self.is_read = True
        self.is_closed = self.is_aborted = False

    def say(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def leave(self) -> None:
        self.protocol.connection_lost(None)

    def write(self, data: Any) -> None:
        assert not self.is_closed, "it is closed"
        self.written += data

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    @property
    def answers(self) -> list[bytes]:
        """The bodies of all the answers."""
        rest, bodies = self.written, list[bytes]()
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            bodies.append(rest[:length])
            rest = rest[length:]
        return bodies


class AiohttpsOwn(asyncio.Protocol):
    """Whoever takes over."""

    def __init__(self) -> None:
        self.said = b""
        self.is_writing_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert not self.said

    def data_received(self, data: bytes) -> None:
        self.said += data

    def pause_writing(self) -> None:
        self.is_writing_paused = True


@dataclass
class House:
    """What is inside: a handler that repeats what it is asked, once it may."""

    idle_s: float = 3600.0
    full: Unavailable | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    inside: list[Shortcut] = field(default_factory=list)
    taken: list[AiohttpsOwn] = field(default_factory=list)
    asked_for: list[bytes] = field(default_factory=list)
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.may_answer.set()
        self.way = Way({"/ask": self._answer}, guarded([]), Finish(Calls()))

    async def _answer(self, request: web.BaseRequest) -> Reply:
        body = await read_body(request, Limits())
        self.asked_for.append(body)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Reply(200, {"content-type": "text/plain"}, body)

    def refusal(self, who: Identity) -> Unavailable | None:
        return self.full

    def entered(self, connection: Shortcut) -> None:
        self.inside.append(connection)

    def asked(self, connection: Shortcut) -> None:
        assert connection in self.inside

    def left(self, connection: Shortcut) -> None:
        self.inside.remove(connection)

    def taken_over(self, connection: Shortcut) -> AiohttpsOwn:
        self.inside.remove(connection)
        self.taken.append(AiohttpsOwn())
        return self.taken[-1]

    def connect(self) -> Wire:
        wire = Wire()
        wire.protocol = Shortcut(self, asyncio.get_running_loop())
        wire.protocol.connection_made(wire)
        return wire


async def answered(wire: Wire, count: int = 1) -> None:
    await until(lambda: len(wire.answers) == count, "the answers")


async def kept_busy(house: House, wire: Wire) -> None:
    """Lets its handler have a request, and not answer it."""
    house.may_answer.clear()
    wire.say(request(b"1"))
    await until(lambda: house.asked_for == [b"1"], "the handler to have the request")


async def a_few_turns() -> None:
    """As many of the loop as a handler that was wrongly begun would need to show."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_are_answered_one_after_the_other() -> None:
    house = House()
    wire = house.connect()
    for number in range(3):
        wire.say(request(b"%d" % number))
        await answered(wire, number + 1)
    assert wire.answers == [b"0", b"1", b"2"]
    assert not house.taken
    wire.leave()
    assert not house.inside


@pytest.mark.parametrize("at", range(1, len(request(b"12345"))))
async def test_a_request_in_two_pieces(at: int) -> None:
    house, said = House(), request(b"12345")
    wire = house.connect()
    wire.say(said[:at])
    wire.say(said[at:])
    if at >= said.index(b"12345"):
        await answered(wire)
        assert wire.answers == [b"12345"]
        assert not house.taken
    else:
        assert house.taken[0].said == said, "half a head is aiohttp's to wait for"


async def test_a_body_that_comes_bit_by_bit() -> None:
    house, said = House(), request(b"12345")
    wire = house.connect()
    wire.say(said[:-5])
    for at in range(len(said) - 5, len(said)):
        assert not house.asked_for
        wire.say(said[at : at + 1])
    await answered(wire)
    assert wire.answers == [b"12345"]
    assert not house.taken


async def test_a_body_whose_rest_is_late_is_aiohttps() -> None:
    house, said = House(), request(b"12345")
    wire = house.connect()
    wire.say(said[:-2])
    assert not house.taken
    await until(lambda: bool(house.taken), f"{HOLD_S} s to be over")
    assert house.taken[0].said == said[:-2]


@pytest.mark.parametrize(
    "odd", [b"GET /ask HTTP/1.1\r\n\r\n", request(path="/other"), request() + request(), b"\x16\x03"]
)
async def test_other_bytes_make_the_connection_aiohttps(odd: bytes) -> None:
    house = House()
    wire = house.connect()
    wire.say(request(b"1"))
    await answered(wire)
    wire.say(odd)
    wire.say(request(b"2"))
    assert house.taken[0].said == odd + request(b"2"), "for good"
    assert not house.inside


async def test_what_is_asked_before_the_answer_is_out_is_answered_after_it() -> None:
    house = House()
    wire = house.connect()
    await kept_busy(house, wire)
    wire.say(request(b"2")[:-1])
    wire.say(b"2")
    await a_few_turns()
    assert house.asked_for == [b"1"]
    house.may_answer.set()
    await answered(wire, 2)
    assert wire.answers == [b"1", b"2"]
    assert wire.is_read


async def test_who_sends_ever_more_is_not_read_from() -> None:
    house = House()
    wire = house.connect()
    house.may_answer.clear()
    wire.say(request(b"1"))
    for _ in range(2 + BEHIND_BYTES // 1000):
        wire.say(b"x" * 1000) if wire.is_read else None
    assert not wire.is_read
    house.may_answer.set()
    await answered(wire)
    await until(lambda: bool(house.taken), "the rest to be looked at")
    assert wire.is_read
    assert len(house.taken[0].said) < BEHIND_BYTES + 2000


async def test_nobody_works_for_who_has_left() -> None:
    house = House()
    wire = house.connect()
    await kept_busy(house, wire)
    wire.leave()
    await until(lambda: house.cancelled == 1, "its handler to be cancelled")
    assert not house.inside
    assert not wire.written


async def test_a_client_that_does_not_read_is_not_answered_on() -> None:
    house = House()
    wire = house.connect()
    wire.protocol.pause_writing()
    wire.say(request(b"1"))
    await answered(wire)
    wire.say(request(b"2"))
    await a_few_turns()
    assert house.asked_for == [b"1"]
    wire.protocol.resume_writing()
    await answered(wire, 2)


async def test_whoever_takes_over_knows_that_the_client_does_not_read() -> None:
    house = House()
    wire = house.connect()
    wire.protocol.pause_writing()
    wire.say(b"GET / HTTP/1.1\r\n\r\n")
    assert house.taken[0].is_writing_paused


async def test_an_idle_connection_is_closed() -> None:
    house = House(idle_s=0.05)
    wire = house.connect()
    await until(lambda: wire.is_closed, "it to be closed")


async def test_one_that_does_not_take_its_answer_is_cut_off() -> None:
    house = House(idle_s=0.05)
    wire = house.connect()
    wire.protocol.pause_writing()
    wire.say(request(b"1"))
    await until(lambda: wire.is_aborted, "it to be cut off")


async def test_one_whose_request_is_nearly_here_is_not_idle() -> None:
    house = House(idle_s=HOLD_S / 10)
    wire = house.connect()
    wire.say(request(b"12345")[:-2])
    await until(lambda: wire.is_closed or house.taken, f"{HOLD_S} s to be over")
    assert house.taken


async def test_aiohttp_does_not_begin_to_wait_anew() -> None:
    loop, wire = asyncio.get_running_loop(), Wire()
    house = House(idle_s=3600.0)
    due = Shortcut(house, loop).patient_until - house.idle_s
    assert due <= loop.time()
    client = Client(Identity("somebody"), due, lambda client: None, web.Server(_never), loop=loop)
    client.connection_made(wire)
    client.data_received(b"GET /half HTTP/1.1\r\n")
    await until(lambda: wire.is_closed, "it to be closed")
    client.connection_lost(None)


async def _never(request: web.BaseRequest) -> web.Response:
    raise AssertionError("nothing whole was asked")


async def test_one_that_waits_for_its_answer_is_not_idle() -> None:
    house = House(idle_s=0.05)
    wire, other = house.connect(), house.connect()
    house.may_answer.clear()
    wire.say(request(b"1"))
    await until(lambda: other.is_closed, "the time to be over")
    assert not wire.is_closed
    house.may_answer.set()
    await answered(wire)
    await until(lambda: wire.is_closed, "it to be closed after its answer")


async def test_closing_waits_for_the_answer_under_way() -> None:
    house = House()
    idle, busy = house.connect(), house.connect()
    house.may_answer.clear()
    busy.say(request(b"1"))
    for each in (idle, busy):
        each.protocol.close()
    assert idle.is_closed
    assert not busy.is_closed
    house.may_answer.set()
    await until(lambda: busy.is_closed, "it to be closed")
    assert busy.answers == [b"1"]


async def test_a_shutdown_sees_what_does_not_end_by_itself_to_its_end() -> None:
    house = House()
    wire = house.connect()
    await kept_busy(house, wire)
    await wire.protocol.shutdown(0.01)
    assert house.cancelled == 1
    assert wire.is_aborted


async def test_closing_waits_for_a_request_that_is_nearly_here() -> None:
    house, said = House(), request(b"12345")
    wire, odd, late = house.connect(), house.connect(), house.connect()
    for each in (wire, odd, late):
        each.say(said[:-2])
        each.protocol.close()
        assert not each.is_closed
    wire.say(said[-2:])
    await until(lambda: wire.is_closed, "it to be closed after its answer")
    assert wire.answers == [b"12345"]
    odd.say(said[-2:] + b"x")
    assert odd.is_closed
    await until(lambda: late.is_closed, f"{HOLD_S} s to be over")
    assert not house.taken, "aiohttp would wait for what it will not read"


async def test_who_finds_no_room_is_told_so_and_heard_no_more() -> None:
    house = House(full=TooMany("too many", "close some", 5))
    wire = house.connect()
    assert wire.written.startswith(b"HTTP/1.1 429 ")
    assert wire.is_closed
    wire.say(request(b"1"))
    wire.leave()
    assert not house.asked_for


async def test_a_handler_that_fails_is_answered_for() -> None:
    house = House()

    async def fail(request: web.BaseRequest) -> Reply:
        raise RuntimeError("unforeseen")

    house.way = Way({"/ask": fail}, guarded([]), Finish(Calls()))
    wire = house.connect()
    wire.say(request(b"1"))
    await until(lambda: wire.written.startswith(b"HTTP/1.1 500 "), "the answer")
    assert b"RuntimeError" not in wire.written
    assert not wire.is_closed
