"""A starting engine's log lines → what it is doing and how far it has come. Pure, and lenient: a log is no API.

The signs were read from recordings of vLLM 0.25 (H200) and 0.32 (CPU) and from vLLM's sources. A line that says nothing
changes nothing; an unknown version only makes the phases coarser.

Two lines that look like signs are none. `Starting to load model` comes *before* the download of a model that is not
there yet, so loading begins with its first bar or result. And the size of the KV cache is told before the graphs are
captured on a GPU, but after everything else on a CPU.

No line tells of installing, of waiting for memory and of waking up: these are vllmd's own doing.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a starting engine is doing, in the order in which it happens; the values are shown to people."""

    WAITING = "waiting for another"
    """Somebody else installs or downloads what it needs as well."""
    INSTALLING = "installing"
    WAITING_FOR_MEMORY = "waiting for memory"
    STARTING_UP = "starting up"
    DOWNLOADING = "downloading"
    LOADING_WEIGHTS = "loading weights"
    COMPILING = "compiling"
    CAPTURING_GRAPHS = "capturing graphs"
    WARMING_UP = "warming up"
    WAKING_UP = "waking up"


@dataclass(frozen=True)
class Progress:
    """How far a start has come: a phase, and the part of it that is done, if the engine says so."""

    phase: Phase
    percent: int | None = None


ORDER = tuple(Phase)

SIGNS: dict[Phase, tuple[str, ...]] = {
    Phase.DOWNLOADING: (
        r"Fetching \d+ files",
        r"Downloading ",
        r"\S+\.(safetensors|bin|pt|gguf)(\.part)?: +\d+%",
        r"Time spent downloading weights",
    ),
    Phase.LOADING_WEIGHTS: (
        r"Loading .*(shards|weights|safetensors).*: +\d+%",
        r"Loading (model )?weights",
        r"Model loading took",
    ),
    Phase.COMPILING: (
        r"Warming up model for the compilation",
        r"Using cache directory: .*torch_compile_cache",
        r"Dynamo bytecode transform",
        r"Compiling a graph",
        r"(Cache|Directly load) (the .*graph|AOT compilation)",
        r".*saved AOT compiled function",
        r"torch\.compile ",
    ),
    Phase.CAPTURING_GRAPHS: (r"Capturing .*graph",),
    Phase.WARMING_UP: (
        r"Graph capturing finished",
        r"Warming up done",
        r"init engine ",
        r"Starting vLLM (API )?server",
        r"(Started server process|Waiting for application startup|Application startup complete)",
    ),
}
"""How messages begin that are written in a phase."""

SIGN_CHARACTERS = 500
"""Signs stand at the beginning; no more of a line is looked at, however long it is."""

_SIGNS = {phase: re.compile("|".join(signs)) for phase, signs in SIGNS.items()}
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_PREFIX = re.compile(
    r"(\([^()]*\bpid=\d+[^()]*\)\s?)*"  # (EngineCore pid=757), (Worker_TP0 pid=1)
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)?"  # INFO 11-22 06:43:15 [core.py:114], or uvicorn's "INFO:    "
    r"(?(level)(:\s*|\s+\d[\d-]*\s[\d:.,]+\s(\[[^]\s]*\]\s?)?))"
)
_PERCENT = re.compile(r":\s+(\d{1,3})%")


def split(line: str) -> tuple[str, str]:
    """A log line of vLLM's → its level (empty if it has none) and its message, without process, time and place."""
    plain = _COLOUR.sub("", line)
    prefix = _PREFIX.match(plain)
    return (prefix["level"] or "", plain[prefix.end() :]) if prefix else ("", plain)


def read_line(line: str, current: Progress) -> Progress:
    """The progress after `line`: never an earlier phase than the current one, nor a smaller part of the same phase.

    Args:
        line: as the engine printed it.
        current: the progress before.
    """
    _, message = split(line[:SIGN_CHARACTERS])
    phase = next((phase for phase, sign in _SIGNS.items() if sign.match(message)), None)
    if phase is None or ORDER.index(phase) < ORDER.index(current.phase):
        return current
    percent = _percent(message)
    if phase is current.phase and current.percent is not None:
        percent = max(percent or 0, current.percent)
    return Progress(phase, percent)


def _percent(message: str) -> int | None:
    """What a progress bar says; nothing for one file of several, which says little of the whole."""
    found = None if re.match(r"\S+-of-\d+\.", message) else _PERCENT.search(message)
    return min(int(found[1]), 100) if found else None
