"""Does a stream outlive its engine? EngineCore is killed in mid-answer, and the text compared with undisturbed ones."""

import os
import signal
from dataclasses import asdict
from typing import Any

from bench.gpu_load import chat
from bench.gpu_service import NAME, Service
from bench.gpu_story import Story, agreement, tell

PROMPT = "Why is the sky blue?"


def outlives(service: Service, tokens: int) -> dict[str, Any]:
    """Two undisturbed streams and one whose engine dies after a quarter of its tokens; tells what became of it."""
    address, asked = service.address("unix"), chat(PROMPT, tokens, NAME)
    first, second = (tell(address, asked) for _ in range(2))
    before, core, killed_at = service.model(), service.core(), 0

    def strike(story: Story) -> None:
        nonlocal killed_at
        if story.events == tokens // 4:
            os.kill(core, signal.SIGKILL)
            killed_at = len(story.text)

    struck = tell(address, asked, strike)
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


def describe(found: dict[str, Any], struck: Story) -> str:
    """What became of the stream, in words."""
    agrees, characters, at = found["struck_agrees_for"], found["characters"], found["killed_at_character"]
    comments = [*struck.comments[:1], *struck.comments[-1:]]
    return f"""kill -9 of EngineCore after {at} characters: generations {found["generations"]},
  {struck.silence_s:.1f} s without an event, {len(struck.comments)} comments: {comments},
  then the stream ended with {struck.ended}, {struck.tokens} tokens by usage in {struck.events} events;
  its text agrees with an undisturbed run for {agrees} of {characters[0]} characters (it has {characters[1]}),
  and two undisturbed runs agree for {found["undisturbed_runs_agree_for"]}"""
