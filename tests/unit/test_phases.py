"""What recorded and invented log lines say about a start."""

import re
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.phases import ORDER, SIGNS, Phase, Progress, read_line, split

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "startup"
BEGIN = Progress(Phase.STARTING_UP)


def lines(recording: str) -> list[str]:
    """As process.py cuts them: at LF and CR."""
    return re.split("[\r\n]", (RECORDINGS / recording).read_bytes().decode())


def course(log: list[str], begin: Progress = BEGIN) -> list[Progress]:
    """The progress after each line."""
    course = [begin]
    for line in log:
        course.append(read_line(line, course[-1]))
    return course


@pytest.mark.parametrize(
    ("recording", "phases"),
    [
        ("cpu-eager.log", [Phase.STARTING_UP, Phase.LOADING_WEIGHTS, Phase.WARMING_UP]),
        ("cpu-compiled.log", [Phase.STARTING_UP, Phase.LOADING_WEIGHTS, Phase.COMPILING, Phase.WARMING_UP]),
        (
            "h200.log",
            [Phase.STARTING_UP, Phase.LOADING_WEIGHTS, Phase.COMPILING, Phase.CAPTURING_GRAPHS, Phase.WARMING_UP],
        ),
    ],
)
def test_recorded_starts(recording: str, phases: list[Phase]) -> None:
    assert [phase for phase, _ in groupby(course(lines(recording)), key=lambda progress: progress.phase)] == phases


def test_bars_give_the_percentage() -> None:
    seen = [p.percent for p in course(lines("h200.log")) if p.phase is Phase.CAPTURING_GRAPHS]
    assert seen[0] == 0
    assert seen[-1] == 100
    assert 43 in seen
    loading = [p.percent for p in course(lines("cpu-eager.log")) if p.phase is Phase.LOADING_WEIGHTS]
    assert loading[0] == 0
    assert loading[-1] == 100


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:01<00:01]", (Phase.LOADING_WEIGHTS, 43)),
        ("Loading safetensors using Runai Model Streamer:  7% Completed | 1/14", (Phase.LOADING_WEIGHTS, 7)),
        ("Loading pt checkpoint shards: 100% Completed | 1/1", (Phase.LOADING_WEIGHTS, 100)),
        (
            "(Worker_TP0 pid=9) INFO 11-22 06:47:40 [default_loader.py:501] Loading weights took 0.40 seconds",
            (Phase.LOADING_WEIGHTS, None),
        ),
        ("Fetching 5 files:  40%|████      | 2/5 [00:01<00:01]", (Phase.DOWNLOADING, 40)),
        ("model.safetensors:  12%|█▏        | 1.2G/9.9G [00:01<00:09, 1GB/s]", (Phase.DOWNLOADING, 12)),
        ("model-00001-of-00004.safetensors:  98%|█████████▊| 4.8G/4.9G", (Phase.DOWNLOADING, None)),
        (
            "\x1b[1;36m(EngineCore_DP0 pid=279)\x1b[0;0m INFO 12-02 15:47:51 [backends.py:1] Dynamo bytecode transform "
            "time: 5.18 s",
            (Phase.COMPILING, None),
        ),
        ("INFO 12-02 15:47:51 [x.py:1] Directly load the compiled graph(s) for shape None", (Phase.COMPILING, None)),
        ("Capturing CUDA graph shapes:  50%|█████     | 33/67", (Phase.CAPTURING_GRAPHS, 50)),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 999%|", (Phase.CAPTURING_GRAPHS, 100)),
        ("INFO:     Application startup complete.", (Phase.WARMING_UP, None)),
    ],
)
def test_lines_of_other_versions(line: str, progress: tuple[Phase, int | None]) -> None:
    assert read_line(line, BEGIN) == Progress(*progress)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "(APIServer pid=1) WARNING 11-22 06:47:15 [vllm.py:1703] Enforce eager set, disabling torch.compile",
        "(APIServer pid=1) INFO 11-22 06:47:15 [kernel.py:467] Final IR op priority after setting platform defaults",
        "(EngineCore pid=2) INFO 11-22 06:47:28 [core.py:133] Initializing a V1 LLM engine, cudagraph_mode=x",
        "(EngineCore pid=2) INFO 11-22 06:43:41 [cutedsl_warmup.py:97] Skipping CuTeDSL warmup because no units",
        "(Worker pid=3) INFO 11-22 06:47:39 [cpu_model_runner.py:68] Starting to load model models/smollm2-135m...",
        "(EngineCore pid=2) INFO 11-22 06:43:41 [kv_cache_utils.py:2146] GPU KV cache size: 2,115,440 tokens",
    ],
)
def test_lines_that_mean_nothing(line: str) -> None:
    assert read_line(line, BEGIN) == BEGIN


def test_the_second_bar_of_a_phase_does_not_turn_back() -> None:
    full = Progress(Phase.CAPTURING_GRAPHS, 100)
    assert read_line("Capturing CUDA graphs (FULL):   8%|▊         | 4/51", full) == full


def test_installing_gives_way_to_whatever_the_engine_says() -> None:
    assert read_line("Model loading took 14 GiB", Progress(Phase.INSTALLING, 80)) == Progress(Phase.LOADING_WEIGHTS)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("(APIServer pid=5) ERROR 11-22 07:07:53 [async_llm.py:906]   File", ("ERROR", "  File")),
        ("(EngineCore_DP0 pid=1) (Worker_TP0 pid=2) WARNING 01-02 03:04:05.678 [a/b/.../c.py:1] x", ("WARNING", "x")),
        ("(EngineCore pid=757) ", ("", "")),
        ("INFO:     Shutting down", ("INFO", "Shutting down")),
        ("INFORMATION is not a level", ("", "INFORMATION is not a level")),
        ("(not a process) text", ("", "(not a process) text")),
    ],
)
def test_prefixes(line: str, parts: tuple[str, str]) -> None:
    assert split(line) == parts


SIGN_LINES = st.sampled_from([sign.replace("\\", "") for signs in SIGNS.values() for sign in signs])
BARS = st.builds("{}: {:3d}% Completed".format, SIGN_LINES, st.integers(0, 2000))
PROGRESS = st.builds(Progress, st.sampled_from(Phase), st.none() | st.integers(0, 100))


@given(PROGRESS, st.lists(st.text() | SIGN_LINES | BARS))
def test_never_backwards(begin: Progress, log: list[str]) -> None:
    steps = course(log, begin)
    for before, after in pairwise(steps):
        assert ORDER.index(after.phase) >= ORDER.index(before.phase)
        if after.phase is before.phase:
            assert (after.percent or 0) >= (before.percent or 0)
        assert after.percent is None or 0 <= after.percent <= 100


@pytest.mark.timeout(60)
def test_a_monstrous_line_takes_no_time() -> None:
    assert read_line("Loading " + "shards: " * 100_000, BEGIN) == BEGIN
    assert read_line("(a pid=1" * 100_000, BEGIN) == BEGIN
