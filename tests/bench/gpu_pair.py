"""Two models that do not fit together, and clients that want now one, now the other."""

import argparse
import threading
import time
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any

from bench import asking, gpu_memory, gpu_story
from bench.gpu_load import question
from bench.gpu_service import Service
from bench.gpu_story import Story
from vllmd.engine.residency import LINGER_S

GIVES_WAY = "gives its memory back"
"""What vllmd's log says of each model that makes room for another."""

IDLE_S = LINGER_S + 0.2
KNOWN = 0
"""The number of the prompt that is asked before anybody sleeps."""


@dataclass(frozen=True)
class Swap:
    """One request for a model that is not in memory while the other one is; memory in MiB, after the answer.

    Args:
        into: the model.
        first_s: from the request to its first token.
        agrees: whether it answers what the other one was asked last as that did.
        remembers: whether it answers what it was asked before it ever slept as it did then.
        gpu_used: of the whole GPU.
        gpu_in, gpu_out: what the model's engine holds of it, and what the other one's still does.
        host_in, host_out: main memory of their processes.
        available: main memory that is left.
        claim: what vllmd counts for the model.
    """

    into: str
    first_s: float
    agrees: bool
    remembers: bool
    gpu_used: int
    gpu_in: int
    gpu_out: int
    host_in: int
    host_out: int
    available: int
    claim: int


class Pair:
    """Two models that take turns, and their clients."""

    def __init__(self, wanted: argparse.Namespace, service: Service) -> None:
        self._wanted, self._service = wanted, service
        self._numbers = count(KNOWN + 1)
        self._known = self._last = ""
        self._last_number = KNOWN
        self.awake, self.other = "a", "b"

    def ask(self, model: str, number: int, tokens: int = 0, *, aloud: bool = True, **more: Any) -> Story:
        """One stream; a failed one ends the run."""
        body = question(number, tokens or self._wanted.tokens, model)
        story = gpu_story.tell(self._service.address("unix"), body, aloud=aloud, **more)
        if story.ended != "[DONE]":
            raise SystemExit(f"{model}: the stream ended with {story.ended}; {self._service.last_words()}")
        return story

    def warm(self) -> list[float]:
        """Seconds to the first token of a model in memory, for prompts that nobody has asked before."""
        self._known = self.ask(self.awake, KNOWN).text
        stories = [self._ask_anew(self.awake) for _ in range(self._wanted.singles)]
        return [each.first_s for each in stories]

    def _ask_anew(self, model: str) -> Story:
        """A prompt that nobody has asked before; the other model is going to be asked the same."""
        self._last_number = next(self._numbers)
        story = self.ask(model, self._last_number)
        self._last = story.text
        return story

    def swap(self) -> Swap:
        """The other model is asked, and has to come."""
        time.sleep(IDLE_S)
        into, out, number, text = self.other, self.awake, self._last_number, self._last
        story = self._ask_anew(into)
        agrees = self.ask(into, number).text == text
        remembers = self.ask(into, KNOWN).text == self._known
        self.awake, self.other = into, out
        return self._seen(story.first_s, agrees, remembers)

    def _seen(self, first_s: float, agrees: bool, remembers: bool) -> Swap:
        memory, (come, gone) = gpu_memory.look(), map(self._service.model, (self.awake, self.other))
        return Swap(
            self.awake,
            first_s,
            agrees,
            remembers,
            memory.gpu_used,
            memory.held_by(come.pid),
            memory.held_by(gone.pid),
            gpu_memory.resident(come.pid),
            gpu_memory.resident(gone.pid),
            memory.available,
            (come.claim_bytes or 0) // gpu_memory.MIB,
        )

    def alternating(self, requests: int) -> dict[str, Any]:
        """Requests for either model in turns, all at once: how many swaps it takes, and how long the last one waits."""
        before, names = self._gone(), islice(cycle((self.awake, self.other)), requests)
        stories: list[Story] = []
        threads = [self._asking(name, stories) for name in names]
        for each in threads:
            each.join()
        self._settle()
        firsts = sorted(story.first_s for story in stories)
        return {"requests": requests, "answered": len(stories), "swaps": self._gone() - before, "first_s": firsts}

    def _asking(self, model: str, stories: list[Story]) -> threading.Thread:
        number = next(self._numbers)
        thread = threading.Thread(target=lambda: stories.append(self.ask(model, number, aloud=False)), daemon=True)
        thread.start()
        return thread

    def _settle(self) -> None:
        """Finds out which one is in memory."""
        if self._service.model(self.other).state == "ready":
            self.awake, self.other = self.other, self.awake

    def _gone(self) -> int:
        return self._service.log.read_text(errors="replace").count(GIVES_WAY)

    def beside(self) -> dict[str, Any]:
        """The other model is asked for in the middle of a long answer: does that come to its end, undisturbed?"""
        number, tokens, other = next(self._numbers), self._wanted.long, list[Story]()
        self.ask(self.awake, number, 1)  # it is in the prefix cache from now on: that may decide between two tokens
        alone = self.ask(self.awake, number, tokens)
        threads = []

        def disturb(story: Story) -> None:
            if story.events == tokens // 5:
                threads.append(self._asking(self.other, other))

        long = self.ask(self.awake, number, tokens, after=disturb)
        for each in threads:
            each.join()
        self._settle()
        silences = {"silence_s": long.silence_s, "undisturbed_silence_s": alone.silence_s}
        first_s = other[0].first_s if other else None
        return {"tokens": long.tokens, "same_text": long.text == alone.text, **silences, "other_first_s": first_s}

    def unload(self) -> dict[str, Any]:
        """An administrator unloads the one that is not in use."""
        before, began_at = gpu_memory.look(), time.monotonic()
        status, _ = asking.ask(self._service.address("unix"), "POST", f"/api/models/{self.other}/unload?wait=1")
        seconds, after = time.monotonic() - began_at, gpu_memory.look()
        gave = {"gpu_mib": before.gpu_used - after.gpu_used, "host_mib": after.available - before.available}
        return {"status": status, "seconds": seconds, **gave}
