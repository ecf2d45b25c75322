"""Short questions to relays and engines, and streams that are held open; blocking, on an address as common.h has it."""

import http.client
import json
import socket
from typing import Any

TIMEOUT_S = 60.0


def connect(address: str) -> socket.socket:
    """A connected socket."""
    kind, _, where = address.partition(":")
    if kind == "tcp":
        return socket.create_connection(("127.0.0.1", int(where)), TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(where)
    return connection


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._address = address

    def connect(self) -> None:
        self.sock = connect(self._address)


def ask(address: str, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    """Status and JSON of an answer. Raises OSError while nobody is there."""
    connection = _Connection(address)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP: {error!r}") from error
    finally:
        connection.close()


def chat(said: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A chat request; what is said tells the engine how to answer."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": said}],
        "max_tokens": tokens,
        "stream": stream,
    }


def open_stream(address: str, said: str, tokens: int = 1_000_000, key: str = "") -> socket.socket:
    """A connection on which a chat stream was asked for, and of which nothing was read yet."""
    body = json.dumps(chat(said, tokens, stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
    connection = connect(address)
    connection.sendall(f"{head}\r\n".encode() + body)
    return connection


def read_until(connection: socket.socket, what: bytes) -> bytes:
    """What came, up to and with `what`. Raises ConnectionError if the connection ends before."""
    came = b""
    while what not in came:
        block = connection.recv(65536)
        if not block:
            raise ConnectionError(f"the stream ended without {what!r}: {came[-300:]!r}")
        came += block
    return came
