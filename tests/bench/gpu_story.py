"""One stream through vllmd, read event by event: its text, its times, its comments, and how it ended."""

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench import asking

SILENT_AT_MOST_S = 480.0
FIGURES = re.compile(r"[\d.]+")


@dataclass
class Story:
    """One stream: its text, its events, its usage, its end, its first token, its longest silence, its comments.

    Args:
        aloud: whether what the comments say is printed.
        first_s: seconds until the first token; vLLM's first event has none.
    """

    aloud: bool = True
    text: str = ""
    events: int = 0
    tokens: int = 0
    ended: str = "the connection was cut"
    first_s: float = 0.0
    silence_s: float = 0.0
    comments: list[str] = field(default_factory=list)

    def heard(self, comment: str) -> None:
        """Keeps a comment, and prints it if it says more than that time has passed."""
        is_new = not self.comments or FIGURES.sub("", comment) != FIGURES.sub("", self.comments[-1])
        if self.aloud and is_new:
            print(f"  {comment}", flush=True)
        self.comments.append(comment)


def tell(
    address: str,
    asked: Mapping[str, object],
    after: Callable[[Story], None] = lambda story: None,
    *,
    aloud: bool = True,
) -> Story:
    """Reads one chat stream to its end; `after` is called after each event of the answer."""
    story, connection = Story(aloud), http.client.HTTPConnection("localhost")
    connection.sock = asking.connect(address)
    connection.sock.settimeout(SILENT_AT_MOST_S)
    body, began_at = json.dumps(asked), time.monotonic()
    last_at = began_at
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if read(line.decode().strip(), story):
                story.silence_s = max(story.silence_s, time.monotonic() - last_at)
                last_at = time.monotonic()
                story.first_s = last_at - began_at if story.events == 2 else story.first_s
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
