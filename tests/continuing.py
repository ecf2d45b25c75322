"""For tests of continuation: engines that die and go on without a process, and a client that judges the whole."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fake_engine import answers, routes
from fake_engine.dialects import Chat
from fake_engine.knobs import Flags, Knobs

from vllmd import template
from vllmd.server.continuation import Transcript
from vllmd.server.seam import chunk_in

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you there"}], "stream": True}


@dataclass(frozen=True)
class Engine:
    """An engine without a process: what the fake one answers, as bytes."""

    knobs: Knobs
    number: int = 0

    def stream(self, body: bytes) -> list[bytes]:
        request = json.loads(body)
        answers.check(request, Flags(), self.knobs)
        tokens, finish = answers.answer(request, self.knobs)
        prompt = answers.prompt_tokens(request, self.knobs)
        job = answers.Job(self.number, f"chatcmpl-{self.number}", "model", request, prompt, tokens, finish)
        job.created += self.number
        return [*self._events(Chat(job))]

    def _events(self, chat: Chat) -> Iterable[bytes]:
        yield from chat.opening()
        for text in chat.job.tokens:
            chat.job.sent += 1
            yield chat.token(text, chat.job.finish if chat.job.sent == len(chat.job.tokens) else "")
        yield from chat.closing(chat.job.finish)

    def tokenize(self, body: bytes) -> bytes:
        try:
            return json.dumps(routes.ASKED["/tokenize"][1](json.loads(body), Flags(), self.knobs)).encode()
        except answers.HttpError as error:
            return json.dumps(error.body).encode()


@dataclass
class Client:
    """What a client makes of a stream."""

    events: list[bytes]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [chunk for event in self.events if (chunk := chunk_in(event))]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def usages(self) -> list[dict[str, int]]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]

    def check(self) -> None:
        """What must be true of every stream that has come to its end."""
        for fact in ("id", "created", "model"):
            assert len({chunk[fact] for chunk in self.chunks}) == 1
        assert [each["delta"].get("role") for each in self.choices].count("assistant") == 1
        assert "role" in self.choices[0]["delta"]
        assert sum(each["finish_reason"] is not None for each in self.choices) == 1
        assert self.events.count(b"data: [DONE]\n\n") == 1
        assert self.events[-1] == b"data: [DONE]\n\n"
        for usage in self.usages:
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def relay(events: Iterable[bytes], transcript: Transcript, is_quick: bool = True) -> None:
    """Keeps what is said as the relay does: quickly where an event looks like the one before."""
    learnt = None
    for event in events:
        text = learnt.text_of(event) if learnt and is_quick else None
        if text is None:
            transcript.take(event)
            learnt = template.learn(event) or learnt
        else:
            transcript.text += text
            transcript.tokens += 1


def go_on(transcript: Transcript, engine: Engine, knows_tokens: bool = True) -> list[bytes]:
    """The next engine's part, mended."""
    asked = [engine.tokenize(question) for question in transcript.questions()]
    tokens = transcript.judge(asked)
    assert not transcript.obstacle
    resumption = transcript.resume(tokens if knows_tokens else None)
    mended = [resumption.seam.mend(event) for event in engine.stream(resumption.body)]
    assert not resumption.seam.fault
    return [event for event in mended if event]


def last_cut(events: Sequence[bytes]) -> int:
    """How many events there are before the one that finishes the answer."""
    return next(i for i, event in enumerate(events) if b'"finish_reason":"' in event)


def continued(request: Mapping[str, Any], knobs: Knobs, cuts: Sequence[int], **how: bool) -> Client:
    """The client's stream where each cut is the death of an engine after so many of its events."""
    body = json.dumps(request).encode()
    transcript = Transcript(body, 1 << 16)
    client: list[bytes] = []
    events = Engine(knobs).stream(body)
    for number, cut in enumerate(cuts, 1):
        part = events[: cut % (last_cut(events) + 1)] if b'"finish_reason":"' in b"".join(events) else []
        relay(part, transcript, how.get("is_quick", True))
        client += part
        events = go_on(transcript, Engine(knobs, number), how.get("knows_tokens", True))
    relay(events, transcript)
    assert transcript.is_finished
    return Client(client + events)
