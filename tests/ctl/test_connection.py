"""HTTP by hand: every way in which a response's end may be told, and the limits."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vllmd.address import UnixAddress
from vllmd.ctl.connection import Connection
from vllmd.ctl.framing import NotHttp

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@contextmanager
def answering(path: Path, answer: bytes, hold: threading.Event | None = None) -> Iterator[UnixAddress]:
    """Somebody who reads one request and then says `answer`, whatever that is."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            if hold:
                hold.wait(60)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield UnixAddress(str(path))
        thread.join()


def body_of(path: Path, answer: bytes) -> bytes:
    with answering(path, answer) as address, Connection(address) as connection:
        connection.send("GET", "/", {})
        assert connection.head().status == 200
        return b"".join(connection.body())


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"Content-Length: 5\r\n\r\nhello and more", b"hello"),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"Content-Length: 50\r\n\r\ncut", b"cut"),
        (b"\r\nuntil it closes", b"until it closes"),
        (b"transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n", b"0123456789"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"hel"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n", b""),
    ],
)
def test_where_a_body_ends(socket_path: Path, rest: bytes, body: bytes) -> None:
    assert body_of(socket_path, HEAD + rest) == body


def test_a_body_larger_than_any_buffer(socket_path: Path) -> None:
    data = bytes(range(256)) * 4096
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:100], data[100:]))
    assert body_of(socket_path, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n") == data


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"x" * 70_000])
def test_what_is_no_http(socket_path: Path, answer: bytes) -> None:
    with answering(socket_path, answer) as address, Connection(address) as connection:
        connection.send("GET", "/", {})
        with pytest.raises(NotHttp):
            connection.head()


def test_no_answer_is_an_error(socket_path: Path) -> None:
    with answering(socket_path, b"") as address, Connection(address) as connection:
        connection.send("GET", "/", {})
        with pytest.raises(ConnectionError, match="closed the connection without an answer"):
            connection.head()


def test_the_deadline_ends_the_wait_for_the_head(socket_path: Path) -> None:
    hold = threading.Event()
    with answering(socket_path, b"", hold) as address:
        with Connection(address, time.monotonic() + 0.2) as connection:
            connection.send("GET", "/", {})
            with pytest.raises(TimeoutError):
                connection.head()
        hold.set()


def test_the_deadline_ends_a_body(socket_path: Path) -> None:
    hold = threading.Event()
    with answering(socket_path, HEAD + b"\r\npart", hold) as address:
        with Connection(address, time.monotonic() + 0.2) as connection:
            connection.send("GET", "/", {})
            connection.head()
            assert list(connection.body()) == [b"part"]
        hold.set()


def test_a_deadline_that_has_passed(socket_path: Path) -> None:
    with pytest.raises(TimeoutError):
        Connection(UnixAddress(str(socket_path)), time.monotonic() - 1)


def test_a_full_backlog_is_waited_for_until_the_deadline(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(socket_path))
        server.listen(0)
        first.connect(str(socket_path))
        with pytest.raises(TimeoutError):
            Connection(UnixAddress(str(socket_path)), time.monotonic() + 0.2)
        with server.accept()[0], Connection(UnixAddress(str(socket_path)), time.monotonic() + 60):
            pass
