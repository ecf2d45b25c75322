"""`/api/prompt` and `/api/workflows/runs`: a prompt in, text out."""

import shlex
import subprocess
from typing import Any

import pytest
from asking import Event, Exchange
from conftest import Start
from daemons import Daemon

LOOPS = ("uvloop",)
"""Streams on either event loop are looked at elsewhere."""

PROMPT = "/api/prompt"
RUNS = "/api/workflows/runs"
TEXT = " ".join(f"tok{n}" for n in range(16))


def text_of(answer: Exchange) -> str:
    return "".join(each.data or "" for each in answer.events if each.name == "message" and each.comment is None)


def done_of(answer: Exchange) -> Any:
    """What the done event says; it is the only one, and the last."""
    assert [each.name for each in answer.events].count("done") == 1
    assert answer.events[-1].name == "done"
    return answer.events[-1].json()


# ── what comes back ──


async def test_text_comes_as_it_is_generated_and_then_the_numbers(daemon: Daemon) -> None:
    daemon.control(text="Local models", split="words")
    answer = await daemon.tcp.ask(PROMPT, {"prompt": "Why?"})
    assert answer.status == 200
    assert answer.whole
    assert answer.header("content-type") == "text/event-stream"
    text, _, done = answer.body.partition(b"event: done\n")
    assert text == b"data: Local\n\ndata:  models\n\n"
    assert done.startswith(b"data: {")
    assert done.endswith(b"}\n\n")
    assert done.count(b"\n") == 2
    said = done_of(answer)
    assert said.keys() == {"model", "finish_reason", "usage", "timings"}
    assert said["model"] == "tiny"
    assert said["finish_reason"] == "stop"
    assert said["usage"]["prompt_tokens"] == 1
    assert said["usage"]["completion_tokens"] == 2
    assert said["timings"].keys() == {"queue_s", "first_token_s", "tokens_per_s"}
    assert 0 <= said["timings"]["queue_s"] <= said["timings"]["first_token_s"]
    assert said["timings"]["tokens_per_s"] > 0


@pytest.mark.parametrize("split", ["words", "chars", "bytes"])
@pytest.mark.parametrize(
    "text",
    [
        "  two leading blanks",
        "one\ntwo\n\nfour",
        "\n\nafter two newlines",
        "ends with a newline\n",
        "data: not a field\nevent: done\n: no comment",
        "é 漢字 🙂 \u2028 \u0085 \t tab",
        " ",
        "\n",
        "[DONE]",
        '{"error": {"message": "not one"}}',
    ],
)
async def test_any_text_arrives_as_it_is(daemon: Daemon, text: str, split: str) -> None:
    daemon.control(text=text, split=split)
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert answer.whole
    assert text_of(answer) == text
    assert done_of(answer)["finish_reason"] == "stop"
    whole = await daemon.unix.ask(PROMPT, {"prompt": "x", "stream": False})
    assert whole.json()["text"] == text


async def test_a_newline_makes_a_second_data_line(daemon: Daemon) -> None:
    daemon.control(text="one\ntwo", split="chars", tokens=1)
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert b"data: \ndata: \n\n" in answer.body


async def test_an_answer_without_text_has_its_done_event(daemon: Daemon) -> None:
    daemon.control(tokens=0)
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x"})
    assert answer.whole
    assert [each.name for each in answer.events] == ["done"]
    assert done_of(answer)["timings"]["first_token_s"] is None


async def test_an_answer_cut_by_its_length_says_so(daemon: Daemon) -> None:
    answer = await daemon.unix.ask(PROMPT, {"prompt": "x", "max_tokens": 2})
    assert text_of(answer) == "tok0 tok1"
    assert done_of(answer)["finish_reason"] == "length"
    whole = await daemon.unix.ask(PROMPT, {"prompt": "x", "max_tokens": 2, "stream": False})
    assert whole.json()["finish_reason"] == "length"


async def test_without_stream_one_json_object_comes(daemon: Daemon) -> None:
    answer = await daemon.tcp.ask(PROMPT, {"prompt": "x", "stream": False})
    assert answer.header("content-type").startswith("application/json")
    body = answer.json()
    assert body.keys() == {"text", "model", "finish_reason", "usage", "timings"}
    assert (body["text"], body["model"], body["finish_reason"]) == (TEXT, "tiny", "stop")
    assert body["usage"]["completion_tokens"] == 16
    assert body["timings"]["queue_s"] >= 0


async def test_text_is_not_held_back(daemon: Daemon) -> None:
    daemon.control(tokens_per_s=4, tokens=100)
    async with daemon.unix.stream(PROMPT, {"prompt": "x"}) as exchange:
        await exchange.until(b"data: tok0\n\ndata:  tok1\n\n")
        assert b"tok3" not in exchange.body


# ── what the engine is asked ──


async def test_defaults_are_filled_in_here_and_only_here(daemon: Daemon) -> None:
    await daemon.unix.ask(PROMPT, {"prompt": "x", "stream": False})
    (asked,) = daemon.requests()
    assert asked["path"] == "/v1/chat/completions"
    assert asked["body"] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.7,
        "max_tokens": 512,
        "stream": False,
    }


async def test_everything_that_is_asked_for_is_passed_on(daemon: Daemon) -> None:
    options = {"temperature": 0, "max_tokens": 3, "top_p": 0.5, "stop": ["a", "b"], "seed": 7, "model": "tiny"}
    await daemon.unix.ask(PROMPT, {"prompt": "x", "system": "be brief", **options})
    (asked,) = daemon.requests()
    assert asked["body"].pop("messages") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x"},
    ]
    assert asked["body"] == {**options, "stream": True, "stream_options": {"include_usage": True}}


async def test_null_means_left_out_and_one_stop_word_may_stand_alone(daemon: Daemon) -> None:
    body = {"prompt": "x", "temperature": None, "system": None, "stop": "end", "seed": None, "stream": None}
    answer = await daemon.unix.ask(PROMPT, body)
    assert answer.status == 200
    (asked,) = daemon.requests()
    assert asked["body"]["temperature"] == 0.7
    assert asked["body"]["stop"] == ["end"]
    assert "seed" not in asked["body"]


async def test_a_prompt_reaches_the_model_as_it_is(daemon: Daemon) -> None:
    prompt = '  "quoted"\\ \n\t 漢字 🙂 \x00 \u2028 <|im_end|> '
    await daemon.unix.ask(PROMPT, {"prompt": prompt})
    (asked,) = daemon.requests()
    assert asked["body"]["messages"] == [{"role": "user", "content": prompt}]


async def test_the_configuration_s_defaults_are_used(start: Start) -> None:
    daemon = start(defaults={"temperature": 0.1, "max_tokens": 5})
    await daemon.unix.ask(PROMPT, {"prompt": "x"})
    (asked,) = daemon.requests()
    assert (asked["body"]["temperature"], asked["body"]["max_tokens"]) == (0.1, 5)


# ── the envelope of model-compose, and curl ──


def run(command: str, daemon: Daemon) -> str:
    """A command line of the papers, to the letter but for the port and the socket."""
    line = command.replace("PORT", str(daemon.port)).replace("/run/vllmd/vllmd.sock", str(daemon.socket))
    words = [word for word in shlex.split(line.replace("\\\n", " ")) if word]
    done = subprocess.run([*words, "-sS", "--fail"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_issue_s_curl_works_to_the_letter(daemon: Daemon) -> None:
    said = run(
        """curl -X POST http://localhost:PORT/api/workflows/runs -H "Content-Type: application/json" \
-d '{ "input": { "prompt": "Explain the benefits of local AI models", "temperature": 0.7 } }'""",
        daemon,
    )
    assert said.startswith("data: tok0\n\ndata:  tok1\n\n")
    assert "event: done\ndata: {" in said
    (asked,) = daemon.requests()
    assert asked["body"]["messages"][0]["content"] == "Explain the benefits of local AI models"
    assert asked["body"]["temperature"] == 0.7


def test_curl_s_form_content_type_is_read_as_json(daemon: Daemon) -> None:
    said = run(
        """curl -N --unix-socket /run/vllmd/vllmd.sock http://localhost/api/prompt -d '{"prompt":"hi"}'""", daemon
    )
    assert "event: done" in said
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-8", "nonsense"):
        said = run(
            f"""curl http://localhost:PORT/api/prompt -H "Content-Type: {kind}" -d '{{"prompt":"hi"}}'""", daemon
        )
        assert "event: done" in said


async def test_the_envelope_s_own_keys_are_accepted(daemon: Daemon) -> None:
    envelope = {"workflow_id": "chat", "output_only": True, "wait_for_completion": False}
    answer = await daemon.unix.ask(RUNS, {**envelope, "input": {"prompt": "x", "stream": False}})
    assert answer.status == 200
    assert answer.json()["text"] == TEXT


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"prompt": "x"}, "input"),
        ({"input": "x"}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": {}}, "prompt"),
        ({"input": {"prompt": "x"}, "outptu_only": True}, "outptu_only"),
        ({"input": {"prompt": "x", "temprature": 1}}, "temprature"),
    ],
)
async def test_what_is_wrong_with_an_envelope_is_named(daemon: Daemon, body: Any, param: str) -> None:
    answer = await daemon.unix.ask(RUNS, body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert param in (answer.error["param"] or "")
    assert not daemon.requests()


async def test_both_routes_are_the_same_door(daemon: Daemon) -> None:
    def timeless(events: list[Event]) -> list[Event]:
        return events[:-1]

    one = await daemon.unix.ask(PROMPT, {"prompt": "x"})
    other = await daemon.unix.ask(RUNS, {"input": {"prompt": "x"}})
    assert timeless(one.events) == timeless(other.events)
    first, second = daemon.requests()
    assert first["body"] == second["body"]
