"""What comes from an engine, fed with bytes: heads and bodies of HTTP, and server-sent events.

Wherever the bytes are cut into reads, the same must come out, and nothing but NotHttp may be raised. atheris feeds
these functions (`libfuzzer`), and so does hypothesis (`parsers`).
"""

from collections.abc import Iterator, Sequence

from vllmd import sse
from vllmd.engine.body import NotHttp
from vllmd.engine.http import Answer, HeadReader

Outcome = tuple[int, tuple[tuple[str, str], ...], bytes, bool, bool] | str


def http(pieces: Sequence[bytes], method: str = "POST") -> Outcome:
    """What a connection makes of an answer that comes in these pieces."""
    reader, answer, content = HeadReader(method), None, b""
    try:
        for piece in pieces:
            if answer is None:
                answer = reader.feed(piece)
                content += _body(answer, answer.rest) if answer else b""
            else:
                content += _body(answer, piece)
    except NotHttp as error:
        return str(error)
    if answer is None:
        return "not whole"
    if answer.body.fault:
        return answer.body.fault
    return answer.head.status, tuple(answer.head.headers.items()), content, answer.body.is_over, answer.keeps


def _body(answer: Answer, data: bytes) -> bytes:
    """Content; once it is over or broken, nothing more is fed."""
    return answer.body.feed(data) if data and not answer.body.is_over and not answer.body.fault else b""


def check_http(data: bytes, cuts: Sequence[int]) -> None:
    """The cuts make no difference, and no header holds what would end its line."""
    whole, cut = http([data]), http(list(pieces_of(data, cuts)))
    assert whole == cut, (whole, cut)
    if not isinstance(whole, str):
        for name, value in whole[1]:
            assert not set(f"{name}{value}") & set("\r\n\0"), (name, value)


def check_sse(data: bytes, cuts: Sequence[int]) -> None:
    """Nothing is lost, doubled or changed on the way through the splitter, and reading never fails."""
    splitter = sse.Splitter()
    pieces = list(pieces_of(data, cuts))
    passed = b"".join(splitter.feed(piece) for piece in pieces)
    assert passed + splitter.rest == data
    assert b"".join(sse.events_in(passed)) == passed
    cut, whole = sse.Decoder(), sse.Decoder()
    assert [event for piece in pieces for event in cut.feed(piece)] == whole.feed(data)
    for event in sse.decode(passed):
        again = sse.decode(sse.encode(event.data, "" if event.event == "message" else event.event))
        assert event.data.replace("\r", "\n") == again[0].data or "\x00" in event.event or not event.has_data


def pieces_of(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """`data` cut at those places, wrapped around its length."""
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    yield from (data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True) if start < end)


CHECKS = {"http": check_http, "sse": check_sse}
