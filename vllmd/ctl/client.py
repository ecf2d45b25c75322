"""The daemon as vllmctl sees it: requests out, JSON or events back, every failure an error with a name.

A request is sent when it is made and its response is waited for only when it is asked for, so that a command can do its
imports while the model thinks. No OSError of the connection leaves this file: a BrokenPipeError that reaches `main` is
about stdout.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from vllmd import __version__
from vllmd.address import Address
from vllmd.ctl.connection import Connection, Head
from vllmd.ctl.failure import read_error
from vllmd.ctl.framing import NotHttp
from vllmd.ctl.key import api_key
from vllmd.ctl.reach import not_vllmd, unreachable
from vllmd.errors import DaemonUnreachable, VllmdError

if TYPE_CHECKING:
    from vllmd.sse import Event
    from vllmd.statuses import Status

ANSWER_TIMEOUT_S = 10.0
"""Seconds that the daemon may take for an answer about itself."""


Trace = Callable[[str, bytes], None]


def _nobody(mark: str, data: bytes) -> None:
    """Traces nothing."""


class Exchange:
    """A request that has been sent, and its response."""

    def __init__(self, connection: Connection, address: Address, warn: Callable[[str], None], trace: Trace) -> None:
        self._connection = connection
        self._address = address
        self._warn = warn
        self._trace = trace

    def events(self) -> "Iterator[Event]":
        """The response's events as they come, one by one. Ends and raises as `blocks` does."""
        for events in self.blocks():
            yield from events

    def blocks(self, until: "Exchange | None" = None, tick_s: float | None = None) -> "Iterator[list[Event]]":
        """The response's events as they come, those together that came together. Ends and raises as `unread` does.

        Args:
            until: ends them, too, as soon as this one is answered.
            tick_s: after so many seconds of silence an empty list comes, again and again; None for never.
        """
        from vllmd.sse import decode

        return map(decode, self.unread(until, tick_s))

    def unread(self, until: "Exchange | None" = None, tick_s: float | None = None) -> Iterator[bytes]:
        """The same, as bytes in which every event is whole.

        They end when the connection does, however it ended.

        Raises:
            VllmdError: the daemon refused the request, left before it answered, or does not answer with events.
        """
        from vllmd.sse import Decoder

        head = self._head()
        if not head.headers.get("content-type", "").startswith("text/event-stream"):
            raise not_vllmd(self._address, "sent no events")
        decoder = Decoder()
        with _named(self._address):
            for piece in self._connection.body(until._connection if until else None, tick_s):
                self._trace("<", piece)
                yield decoder.block(piece)

    def json(self) -> Any:
        """The response's JSON. Raises as `events` does."""
        self._head()
        return _read_json(self._whole(), self._address)

    def _head(self) -> Head:
        with _named(self._address):
            head = self._connection.head()
        self._trace("<", _written(f"HTTP {head.status}", head.headers))
        self._compare(head.headers.get("server", ""))
        if not 200 <= head.status < 300:
            raise self._refusal(head)
        return head

    def _refusal(self, head: Head) -> VllmdError:
        try:
            body = json.loads(self._whole())
        except ValueError:
            body = None
        return read_error(body, head.status, head.headers.get("retry-after", ""))

    def _whole(self) -> bytes:
        with _named(self._address):
            content = b"".join(self._connection.body())
        self._trace("<", content)
        return content

    def _compare(self, server: str) -> None:
        name, _, version = server.partition(" ")[0].partition("/")
        if name == "vllmd" and version.split(".")[:2] != __version__.split(".")[:2]:
            self._warn(f"vllmd is version {version}, vllmctl is {__version__}; restart the older one")


class Client:
    """The daemon at one address.

    Args:
        address: where it listens.
        environ: holds the API key, if there is one.
        note: is told what the user should know though it is no error.
        trace: is shown all that is sent (`>`) and received (`<`), but for the key.
    """

    def __init__(
        self, address: Address, environ: Mapping[str, str], note: Callable[[str], None], trace: Trace = _nobody
    ) -> None:
        self._address = address
        self._environ = environ
        self._note = note
        self._trace = trace
        self._noted: set[str] = set()

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> Iterator[Exchange]:
        """Sends a request; leaving the context closes the connection, which tells the daemon that nobody listens.

        Args:
            body: sent as JSON; None for no body.
            headers: beside those that every request has.
            deadline: when to give up, in seconds of `time.monotonic`; None for never.

        Raises:
            DaemonUnreachable: nobody answers there.
            Denied: the Unix socket may not be opened.
        """
        content = b"" if body is None else json.dumps(body).encode()
        fields = {**self._headers(bool(content)), **(headers or {})}
        with _named(self._address):
            connection = Connection(self._address, deadline)
        with connection:
            self._trace(">", _written(f"{method} {path}", fields) + content)
            with _named(self._address):
                connection.send(method, path, fields, content)
            yield Exchange(connection, self._address, self._warn, self._trace)

    def ask(self, method: str, path: str, timeout_s: float | None = ANSWER_TIMEOUT_S) -> Any:
        """Sends a request without a body and returns the JSON that comes back. Raises as `request` and `json` do.

        Args:
            timeout_s: seconds the daemon may take; None for any time.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        with self.request(method, path, deadline=deadline) as exchange:
            return exchange.json()

    def status(self, timeout_s: float = ANSWER_TIMEOUT_S) -> "Status":
        """The daemon as it is now. Raises as `ask` does."""
        from vllmd.ctl.which import read_status
        from vllmd.routes import STATUS

        return read_status(self.ask("GET", STATUS, timeout_s))

    def _headers(self, has_body: bool) -> dict[str, str]:
        fields = {"User-Agent": f"vllmctl/{__version__}"}
        if has_body:
            fields["Content-Type"] = "application/json"
        if key := api_key(self._environ):
            fields["Authorization"] = f"Bearer {key}"
        return fields

    def _warn(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)


@contextmanager
def _named(address: Address) -> Iterator[None]:
    """Gives the failures of a connection their names."""
    try:
        yield
    except OSError as error:
        raise unreachable(address, error) from error
    except UnicodeError as error:  # a host name that IDNA cannot express
        raise unreachable(address, OSError("no such host name")) from error
    except NotHttp as error:
        raise not_vllmd(address, "does not speak HTTP") from error


def _written(first: str, fields: Mapping[str, str]) -> bytes:
    """The beginning of a request or response as a person reads it, the key left out."""
    shown = [f"{name}: {'***' if name == 'Authorization' else value}" for name, value in fields.items()]
    return "\n".join([first, *shown, "", ""]).encode(errors="replace")


def _read_json(content: bytes, address: Address) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DaemonUnreachable(f"the answer of {address} broke off, or is no JSON") from error
