"""A daemon that answers what a test has written down: HTTP over a Unix socket or TCP, with scripted streams.

It knows nothing of models. A test says what each route answers, step by step, and holds a stream open with an event of
its own, so that nothing has to be timed.
"""

import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vllmd import __version__, sse

DEADLINE_S = 60.0
DONE = sse.encode("[DONE]")


@dataclass(frozen=True)
class Request:
    """What vllmctl sent; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, handler: "Handler", request: Request) -> None:
        self._handler = handler
        self.request = request

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def chunk(self, data: bytes) -> None:
        self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    def until_gone(self) -> None:
        """Blocks until vllmctl closes the connection."""
        self._handler.connection.settimeout(DEADLINE_S)
        assert self._handler.rfile.read(1) == b""
        self._handler.daemon.gone.set()


Answer = Callable[[Exchange], None]
Step = bytes | Answer


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answers with JSON."""

    def answer(exchange: Exchange) -> None:
        data = json.dumps(body).encode()
        exchange.head(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})})
        exchange.raw(data)

    return answer


def refuse(
    status: int,
    code: object,
    message: str,
    source: str | None = "vllmd",
    hint: str = "",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Answers with an error body."""
    return reply(error(code, message, source, hint), status, headers)


def error(code: object, message: str, source: str | None = "vllmd", hint: str = "") -> dict[str, Any]:
    """An error body; without a source it is one of the engine's own."""
    body = {"message": message, "type": "x", "code": code, "param": None}
    return {"error": body if source is None else {**body, "source": source, "hint": hint}}


def stream(*steps: Step, cut: bool = False) -> Answer:
    """Answers with events: bytes are sent as a chunk each, functions are called.

    Args:
        cut: close the connection without the last chunk.
    """

    def answer(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"})
        for step in steps:
            exchange.chunk(step) if isinstance(step, bytes) else step(exchange)
        if not cut:
            exchange.raw(b"0\r\n\r\n")

    return answer


def chunk(text: str | None = None, finish: str | None = None, **delta: str) -> bytes:
    """A chunk of a chat completion, as vLLM writes it."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": {**content, **delta}, "logprobs": None, "finish_reason": finish}
    table = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
    return sse.encode(json.dumps(table, separators=(",", ":")))


def chat(*texts: str, finish: str = "stop") -> Answer:
    """A whole answer, a chunk for each text."""
    return stream(chunk("", role="assistant"), *map(chunk, texts), chunk("", finish), DONE)


def held_until(event: threading.Event) -> Answer:
    """A step that waits for a test."""

    def step(_: Exchange) -> None:
        assert event.wait(DEADLINE_S), "the test never went on"

    return step


def until_gone(exchange: Exchange) -> None:
    """A step that waits for vllmctl to leave."""
    exchange.until_gone()


class Handler(BaseHTTPRequestHandler):
    """Reads a request, notes it, and plays the answer that the test has given for it."""

    protocol_version = "HTTP/1.1"
    daemon: "StubDaemon"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        self.close_connection = True
        try:
            self.daemon.answer_to(request)(Exchange(self, request))
        except (BrokenPipeError, ConnectionResetError):
            self.daemon.gone.set()

    do_POST = do_DELETE = do_GET

    def version_string(self) -> str:
        return self.daemon.server_name

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read vllmctl's output, not this."""


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 16


@dataclass
class StubDaemon:
    """The daemon; a context manager.

    Args:
        path: of the Unix socket; None to listen on TCP.
        server_name: what the Server header says.
        tls: what a TCP port is secured with.
        requests: what came in.
        gone: set when vllmctl has left an answer.
    """

    path: Path | None
    server_name: str = f"vllmd/{__version__}"
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    _answers: dict[str, list[Answer]] = field(default_factory=dict)

    def on(self, route: str, *answers: Answer) -> None:
        """Sets what `GET /path` answers: one after the other, the last one again and again."""
        self._answers[route] = list(answers)

    def answer_to(self, request: Request) -> Answer:
        self.requests.append(request)
        answers = self._answers.get(f"{request.method} {request.path}")
        if not answers:
            return refuse(404, "route_not_found", f"nothing is served at {request.path}")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def __enter__(self) -> "StubDaemon":
        handler = type("BoundHandler", (Handler,), {"daemon": self})
        if self.path:
            self._server: socketserver.BaseServer = _UnixServer(str(self.path), handler)
            self.address = f"unix://{self.path}"
        else:
            tcp = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            tcp.daemon_threads = False
            self._server, self.address = tcp, f"http{'s' if self.tls else ''}://127.0.0.1:{tcp.server_port}"
            if self.tls:
                tcp.socket = self.tls.wrap_socket(tcp.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self.path:
            self.path.unlink()
