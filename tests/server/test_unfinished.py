"""An engine dies between the last word of its answer and `[DONE]`: the answer is whole, and nobody has to go on."""

import json
from collections.abc import Iterator

import pytest
from daemons import Daemon, running
from server import odd_engine
from struck import CHAT, COUNTED, PROMPT, STREAM, TEXT, assert_text, assert_whole, the_error

HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def odd() -> Iterator[Daemon]:
    daemon = Daemon(relay={"drain_s": 1})
    vllm = daemon.folder / "env" / "bin" / "vllm"
    vllm.unlink()
    vllm.symlink_to(odd_engine.__file__)
    env = {"ODD_ANSWER": str(daemon.folder / "answer")}
    daemon.configure({}, {"models": {"tiny": {"model": "m", "env": env}}})
    with running(daemon):
        yield daemon


def says(daemon: Daemon, *events: bytes) -> None:
    """What the engine answers, before it closes the connection without HTTP's last chunk."""
    (daemon.folder / "answer").write_bytes(HEAD + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in events))


def chunk(finish: str | None = None, **delta: str) -> bytes:
    table = {"id": "a", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: %b\n\n" % json.dumps(table, separators=(",", ":")).encode()


ROLE = chunk(role="assistant", content="")
WORDS = [chunk(content=f"{' ' if at else ''}{word}") for at, word in enumerate(TEXT.split())]
LAST = {
    "with the last word": [*WORDS[:-1], chunk("stop", content=" " + TEXT.split()[-1])],
    "in an event of its own": [*WORDS, chunk("stop", content="")],
}


@pytest.mark.parametrize("after", [(), (b": keep-alive\n\n", b"data: {"), (b"data: [DO",)])
@pytest.mark.parametrize("finish", LAST)
async def test_what_is_finished_ends_well(odd: Daemon, finish: str, after: tuple[bytes, ...]) -> None:
    says(odd, ROLE, *LAST[finish], *after)
    for body in (STREAM, COUNTED):
        assert_whole(await odd.unix.ask(CHAT, body))
    done = assert_text(await odd.tcp.ask(PROMPT, {"prompt": "x"}))
    assert (done["finish_reason"], done["usage"], done.get("continuations")) == ("stop", {}, None)


async def test_what_is_not_finished_does_not(odd: Daemon) -> None:
    says(odd, ROLE, *WORDS)
    for path, body in ((CHAT, STREAM), (PROMPT, {"prompt": "x"})):
        assert "the engine closed the connection" in the_error(await odd.unix.ask(path, body))["message"]
