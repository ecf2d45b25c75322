"""Whatever reads text or bytes from outside: it makes something of them, or says what is wrong with them, by name."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fuzz import upstream
from fuzz.tally import Tally, Until
from vllmd import address, config, keys, wire
from vllmd.errors import AddressError, ConfigError, RequestError
from vllmd.sections import SECTIONS, Model
from vllmd.server.prometheus import render
from vllmd.server.snapshot import taken
from vllmd.server.tallies import Tallies

EXAMPLES = 200
"""So many inputs at a time; between them the clock is looked at."""

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("127.0.0.1:8080")
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


def _table_of(section: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    known = st.sampled_from([each.name for each in fields(section)])
    return st.dictionaries(known | st.text(max_size=9), values, max_size=5)


sections = st.fixed_dictionaries({}, optional={name: _table_of(section) | values for name, section in SECTIONS.items()})
models = st.dictionaries(st.text(max_size=9), _table_of(Model) | values, max_size=3)
configurations = st.builds(lambda table, found: {**table, "models": found}, sections, models) | sections
prompts = _table_of(wire.PromptRequest) | values
cuts = st.lists(st.integers(0, 4096), max_size=4)

WORDS_OF_HTTP = [
    *(
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 ",
        b"HTTP/1.1 204 \r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
    ),
    *(
        b"content-length: 5\r\n",
        b"content-length: 0\r\n\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n",
    ),
    *(
        b"content-type: text/event-stream\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"5;a=b\r\n",
        b"\n",
        b"\r",
    ),
]
WORDS_OF_SSE = [
    b"data: x",
    b"data:",
    b"event: e\n",
    b"id: 1\n",
    b": c\n",
    b"\n\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"\xef\xbb\xbf",
    b"\xff",
]


WORDS_OF_METRICS = [
    *(b"# TYPE vllm:x counter\n", b"# TYPE vllm:x_total counter\n", b"# TYPE vllm:x gauge\n", b"# HELP vllm:x \\"),
    *(b"# TYPE vllm:h histogram\n", b'vllm:h_bucket{le="1"} 1\n', b'vllm:h_bucket{le="+Inf"} 1\n', b"vllm:h_sum 1\n"),
    *(
        b"vllm:h_count 1\n",
        b"vllm:x 1\n",
        b"vllm:x_total 1\n",
        b'{model="m",le="1"} ',
        b'{a="\\',
        b"vllm:x_created 1\n",
    ),
    *(b"NaN\n", b"-1\n", b"1e999\n", b"\n", b"\r", b" ", b"# EOF\n", b"\xff", b"process_cpu_seconds_total 1\n"),
]


def _made_of(words: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(words) | st.binary(max_size=9), max_size=20).map(b"".join)


def _told(place: str, problems: Sequence[str]) -> None:
    """Something is said, and each time with the place."""
    assert problems
    assert all(problem and place in problem for problem in problems), problems


def read_configuration(table: Mapping[str, Any]) -> None:
    """A table of any shape."""
    try:
        config.locate(config.parse(table), {}, 1000)
    except ConfigError as error:
        _told(": ", error.problems)


def read_file(data: bytes) -> None:
    """A file of any bytes."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            config.load(Path(file.name))
        except ConfigError as error:
            _told(file.name, error.problems)


def read_address(text: str) -> None:
    """An address reads as itself."""
    try:
        parsed = address.parse(text)
    except AddressError as error:
        _told("", [error.message, error.hint])
    else:
        assert address.parse(str(parsed)) == parsed


def read_prompt(body: object) -> None:
    """A body of the simple door."""
    for read in (wire.read_prompt, wire.read_workflow_run):
        try:
            assert read(body).prompt.strip()
        except RequestError as error:
            _told("", [error.message])


def read_metrics(data: bytes) -> None:
    """Whatever engines say of themselves, what is made of it is a page as OpenMetrics wants it."""
    text = data.decode(errors="replace")
    _, page = render(taken({}, 0, Tallies()), {"a": text, "b": text[::2]}, is_open=True)
    assert list(text_string_to_metric_families(page.decode()))


def read_keys(text: str) -> None:
    """A file of keys reads as itself."""
    try:
        parsed = keys.parse(text)
    except ConfigError as error:
        _told("line ", error.problems)
    else:
        assert keys.parse("".join(f"{key}\n" for key in parsed)) == parsed


addresses = st.text(max_size=60) | st.lists(
    st.sampled_from(
        ["unix:", "http", "https", "://", "//", "/", ":", "[", "]", "::1", "%lo", "127.0.0.1", "80", "a.b", "@"]
    )
).map("".join)
lines = st.lists(
    st.sampled_from(["ci", "inference", "admin", "0" * 64, "now", " ", "\n", "#"]) | st.text(max_size=5)
).map("".join)

TARGETS: Mapping[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "configurations, as tables": (read_configuration, (configurations,)),
    "configurations, as files": (read_file, (st.binary(max_size=200) | st.text(max_size=200).map(str.encode),)),
    "addresses": (read_address, (addresses,)),
    "files of keys": (read_keys, (lines,)),
    "bodies of the simple door": (read_prompt, (prompts | st.fixed_dictionaries({"input": prompts}),)),
    "an engine's HTTP": (upstream.check_http, (_made_of(WORDS_OF_HTTP), cuts)),
    "an engine's metrics": (read_metrics, (_made_of(WORDS_OF_METRICS),)),
    "an engine's events": (upstream.check_sse, (_made_of(WORDS_OF_SSE), cuts)),
}
"""What is fed, to whom, and of what it is made."""


def fuzz(until: Until, first_seed: int = 0) -> list[Tally]:
    """Feeds every target again and again until the time is up, each at least once. Raises what a target raises."""
    tallies = {name: Tally(name, "hypothesis") for name in TARGETS}
    number = first_seed
    while number == first_seed or not until.is_over:
        for name in TARGETS:
            tallies[name].inputs += play(name, number)
        number += 1
    return list(tallies.values())


def play(name: str, number: int, examples: int = EXAMPLES) -> int:
    """Feeds one target; returns how many inputs it had. The same `number` makes the same ones."""
    target, made_of = TARGETS[name]
    tally = Tally(name, "hypothesis")

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*made_of))
    def feed(drawn: tuple[Any, ...]) -> None:
        tally.inputs += 1
        target(*drawn)

    feed()
    return tally.inputs
