"""Does a stream outlive its engine? EngineCore is killed in mid-answer, and the text compared with undisturbed ones."""

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import asking
from bench.gpu_load import chat
from bench.gpu_service import NAME, Service

SILENT_AT_MOST_S = 480.0
FIGURES = re.compile(r"[\d.]+")
PROMPT = "Why is the sky blue?"


@dataclass
class Story:
    """One stream: its text, its events, its usage, its end, its longest silence, its comments."""

    text: str = ""
    events: int = 0
    tokens: int = 0
    ended: str = "the connection was cut"
    silence_s: float = 0.0
    comments: list[str] = field(default_factory=list)

    def heard(self, comment: str) -> None:
        """Keeps a comment, and prints it if it says more than that time has passed."""
        if not self.comments or FIGURES.sub("", comment) != FIGURES.sub("", self.comments[-1]):
            print(f"  {comment}", flush=True)
        self.comments.append(comment)


def outlives(service: Service, tokens: int) -> dict[str, Any]:
    """Two undisturbed streams and one whose engine dies after a quarter of its tokens; tells what became of it."""
    first, second = (tell(service, tokens) for _ in range(2))
    before, core, killed_at = service.model(), service.core(), 0

    def strike(story: Story) -> None:
        nonlocal killed_at
        if story.events == tokens // 4:
            os.kill(core, signal.SIGKILL)
            killed_at = len(story.text)

    struck = tell(service, tokens, strike)
    found = {
        "killed_at_character": killed_at,
        "generations": [before.generation, service.model().generation],
        "undisturbed_runs_agree_for": agreement(first.text, second.text),
        "struck_agrees_for": agreement(first.text, struck.text),
        "characters": [len(first.text), len(struck.text)],
        "stories": [asdict(each) for each in (first, second, struck)],
    }
    print(describe(found, struck), flush=True)
    return found


def tell(service: Service, tokens: int, after: Callable[[Story], None] = lambda story: None) -> Story:
    """Reads one stream through vllmd to its end; `after` is called after each event of the answer."""
    story, connection = Story(), http.client.HTTPConnection("localhost")
    connection.sock = asking.connect(service.address("unix"))
    connection.sock.settimeout(SILENT_AT_MOST_S)
    body, last_at = json.dumps(chat(PROMPT, tokens, NAME)), time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if read(line.decode().strip(), story):
                story.silence_s = max(story.silence_s, time.monotonic() - last_at)
                last_at = time.monotonic()
                after(story)
    except (OSError, http.client.HTTPException) as error:
        story.ended += f" ({error!r})"
    finally:
        connection.close()
    return story


def read(line: str, story: Story) -> bool:
    """Adds a line of the stream to its story; whether it was an event of the answer (whose text may be empty)."""
    if line.startswith(":"):
        story.heard(line)
    if line == "data: [DONE]":
        story.ended = "[DONE]"
    if not line.startswith("data: {"):
        return False
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        story.ended = f"an error: {event['error'].get('message')}"
    story.tokens = (event.get("usage") or {}).get("completion_tokens", story.tokens)
    choices = event.get("choices", ())
    story.text += "".join(choice["delta"].get("content") or "" for choice in choices)
    story.events += bool(choices)
    return bool(choices)


def agreement(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    differences = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differences, min(len(one), len(other)))


def describe(found: dict[str, Any], struck: Story) -> str:
    """What became of the stream, in words."""
    agrees, characters, at = found["struck_agrees_for"], found["characters"], found["killed_at_character"]
    comments = [*struck.comments[:1], *struck.comments[-1:]]
    return f"""kill -9 of EngineCore after {at} characters: generations {found["generations"]},
  {struck.silence_s:.1f} s without an event, {len(struck.comments)} comments: {comments},
  then the stream ended with {struck.ended}, {struck.tokens} tokens by usage in {struck.events} events;
  its text agrees with an undisturbed run for {agrees} of {characters[0]} characters (it has {characters[1]}),
  and two undisturbed runs agree for {found["undisturbed_runs_agree_for"]}"""
