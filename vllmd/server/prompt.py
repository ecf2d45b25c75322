"""The simple door: a prompt in, text out. `/api/prompt`, and the same in model-compose's envelope."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from vllmd import routes, sse, wire
from vllmd.errors import EngineError, StreamBroken, VllmdError
from vllmd.sections import Config, Current
from vllmd.server import chat, demands
from vllmd.server.access import identify
from vllmd.server.accounts import Accounts
from vllmd.server.bodies import choose_model, make_call, read_body, read_json
from vllmd.server.calls import Call
from vllmd.server.chat import Piece
from vllmd.server.doors import Door, passed_on
from vllmd.server.ended import times
from vllmd.server.relay import Relay
from vllmd.server.reply import Answer, Reply

_JSON = {"content-type": "application/json; charset=utf-8"}


class Prompt:
    """The handlers of the simple door.

    Args:
        relay: carries the calls.
        current: the models, and what is filled in for what a client leaves out.
        accounts: which priority whose requests have.
    """

    def __init__(self, relay: Relay, current: Current, accounts: Accounts) -> None:
        self._relay = relay
        self._current = current
        self._accounts = accounts

    async def prompt(self, request: web.BaseRequest) -> Answer:
        """A prompt in, text out."""
        return await self._serve(request, wire.read_prompt)

    async def workflow_run(self, request: web.BaseRequest) -> Answer:
        """The same in model-compose's envelope."""
        return await self._serve(request, wire.read_workflow_run)

    async def _serve(self, request: web.BaseRequest, read: Callable[[object], wire.PromptRequest]) -> Answer:
        try:
            call = await self._call(request, read)
        except VllmdError as error:
            self._relay.note_refusal(request, error)
            raise
        door = TextDoor(request, call) if call.stream else JsonDoor(request, call)
        await self._relay.carry(call, door)
        assert door.response is not None, "a call that ends without an error has an answer"
        return door.response

    async def _call(self, request: web.BaseRequest, read: Callable[[object], wire.PromptRequest]) -> Call:
        asked = read(read_json(await read_body(request, self._current.config.limits)))
        model = choose_model(asked.model, self._current.config.models, self._current.config.default_model)
        table = chat_body(asked, model, self._current.config)
        demands.check(table, routes.CHAT_COMPLETIONS, self._current.config.limits)
        table |= self._priority(request, model)
        body = wire.dumps(table).encode()
        return make_call(
            request,
            who=identify(request),
            model=model,
            path=routes.CHAT_COMPLETIONS,
            body=body,
            stream=asked.stream,
            begins_traces=self._current.config.relay.trace,
        )

    def _priority(self, request: web.BaseRequest, model: str) -> dict[str, int]:
        if not self._current.config.models[model].is_prioritised:
            return {}
        return {"priority": self._accounts.of(identify(request)).allowed.priority}


def chat_body(asked: wire.PromptRequest, model: str, config: Config) -> dict[str, Any]:
    """The chat request that the engine is sent; what the client left out is filled in or stays out."""
    defaults, most = config.defaults, config.limits.max_tokens
    longest = min(defaults.max_tokens, most or defaults.max_tokens)
    optional = {"top_p": asked.top_p, "stop": asked.stop, "seed": asked.seed}
    return {
        "model": model,
        "messages": asked.messages(),
        "temperature": defaults.temperature if asked.temperature is None else asked.temperature,
        "max_tokens": longest if asked.max_tokens is None else asked.max_tokens,
        "stream": asked.stream,
        **({"stream_options": {"include_usage": True}} if asked.stream else {}),
        **{key: value for key, value in optional.items() if value is not None},
    }


class TextDoor(Door):
    """Text as it is generated, then one `done` event with the numbers.

    Args:
        call: for its times.
    """

    shows_thoughts = False
    ends_as_the_engine = False

    def __init__(self, request: web.BaseRequest, call: Call) -> None:
        super().__init__(request)
        self._call = call
        self._first_text_at: float | None = None
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] = {}

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Opens the stream; the engine's headers describe another one."""
        # Its pings would go on after the answer's end, and its timeout would cut off slow readers: the relay's watch
        # does both. Its `send` is not used: it fails on half a surrogate pair, and wakes up for every event.
        events = EventSourceResponse(sep="\n", allow_all_methods=True, send_timeout=None)
        await self._open(events)
        events.stop_streaming()

    def opens_with(self, block: bytes) -> bool:
        """As long as no text has come, the HTTP status is free."""
        return any(piece.text for piece in _pieces(block))

    def send(self, block: bytes) -> None:
        """Passes on the text that the engine's events hold."""
        for piece in _pieces(block):
            self._usage = piece.usage or self._usage
            self._finish_reason = piece.finish_reason or self._finish_reason
            if piece.text:
                self._stamp()
                self._write(sse.encode(piece.text))

    def ordinary(self, text: bytes) -> None:
        """Passes text on; what JSON escapes is rare."""
        if b"\\" in text:
            self._write(sse.encode(chat.unescape(text)))
        elif text:
            self._write(b"data: %b\n\n" % text)

    def _stamp(self) -> None:
        self.has_answer = True
        self._first_text_at = self._first_text_at or time.monotonic()

    async def comment(self, text: str) -> None:
        """Writes a comment between two events."""
        if self.response is None:
            await self.begin({})
        self._write(sse.comment(text))

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """An error of the engine's instead of a stream."""
        if status == 200:
            raise EngineError("the engine answered in one piece where a stream was asked for")
        self._reply(Reply(status, passed_on(headers), body))

    async def end(self) -> None:
        """Writes the `done` event."""
        self.is_ended = True
        if self.response is None:
            await self.begin({})
        outcome = {
            "model": self._call.model,
            "finish_reason": self._finish_reason,
            "usage": self._usage,
            "timings": timings(self._call, self._first_text_at, self._usage),
            **({"replays": self.replays} if self.replays else {}),
            **({"continuations": self.continuations} if self.continuations else {}),
        }
        self._write(sse.encode(wire.dumps(outcome), "done"))

    async def end_with(self, error: VllmdError) -> None:
        """Writes an `error` event."""
        self._write(sse.encode(wire.dumps(wire.error_body(error)), "error"))


def _pieces(block: bytes) -> Iterator[Piece]:
    """What the engine's events say."""
    for event in sse.decode(block):
        if event.has_data and event.data != "[DONE]":
            yield chat.read_chunk(event.data)


class JsonDoor(Door):
    """The whole answer as one JSON object."""

    def __init__(self, request: web.BaseRequest, call: Call) -> None:
        super().__init__(request)
        self._call = call

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Never: the engine was not asked for a stream."""
        raise StreamBroken("the engine streamed an answer that was to come in one piece")

    def opens_with(self, block: bytes) -> bool:
        """So that `begin` says what is wrong."""
        return bool(block)

    def send(self, block: bytes) -> None:
        """Never, as `begin`."""

    def ordinary(self, text: bytes) -> None:
        """Never, as `begin`."""

    async def comment(self, text: str) -> None:
        """Nothing can be said before the answer is whole."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Takes text and numbers out of a chat completion; an error passes as it is."""
        if status != 200:
            self._reply(Reply(status, passed_on(headers), body))
            return
        piece = chat.read_whole(body)
        answer = {
            "text": piece.text,
            "model": self._call.model,
            "finish_reason": piece.finish_reason,
            "usage": piece.usage,
            "timings": timings(self._call, None, piece.usage),
            **({"replays": self.replays} if self.replays else {}),
        }
        self._reply(Reply(200, _JSON, wire.dumps(answer).encode()))

    async def end_with(self, error: VllmdError) -> None:
        """Never: nothing is out before the whole answer is."""

    async def end(self) -> None:
        """Never, as `begin`."""


def timings(call: Call, first_text_at: float | None, usage: Mapping[str, Any]) -> dict[str, float | None]:
    """How long a call took, in seconds, and how fast the engine was, in tokens a second."""
    took = times(call, first_text_at, usage.get("completion_tokens"))
    return {
        "queue_s": round(took.queue_s, 3),
        "first_token_s": None if took.first_token_s is None else round(took.first_token_s, 3),
        "tokens_per_s": None if took.tokens_per_s is None else round(took.tokens_per_s, 1),
    }
