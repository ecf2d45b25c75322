"""What can be set: the knobs (environment and control file) and the vLLM flags that mean something to the fake."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VERSION = "0.0.0+fake"


@dataclass(frozen=True)
class Knobs:
    """The table in fake_vllm.py; a knob has the type of its default."""

    ready_after_s: float = 0.0
    start_log: str = ""
    start_end: str = "ready"
    start_at: float = 1.0
    start_last: str = ""
    start_busy: int = 0
    start_term: str = "die"
    unknown_flags: str = ""
    tokens: int = 16
    text: str = ""
    echo: int = 0
    split: str = "words"
    template: str = "trim"
    eos: int = 0
    tokens_per_s: float = 0.0
    prefill_s: float = 0.0
    keep_alive_s: float = 0.0
    events_per_send: int = 1
    chop: int = 0
    embeddings: int = 0
    fault: str = ""
    fault_after: int = 0
    fault_request: int = 1
    fault_exit: str = ""
    once: str = ""
    sleep: str = "frees"
    sleep_s: float = 0.0
    wake: str = "brings"
    wake_s: float = 0.0
    reload: str = "brings"
    gpus: str = ""
    memory: int = 0
    residue: int = 1 << 30
    term: str = "abort"
    term_delay_s: float = 0.0
    death_s: float = 0.3
    tree: int = 0
    stray: int = 0
    life_s: int = 600
    garbage: int = 0
    flood: int = 0
    log_prompts: int = 0
    metrics: str = ""
    journal: str = ""

    def but(self, values: Mapping[str, Any]) -> "Knobs":
        """These knobs with other values, each converted to its knob's type; a name that is none ends the process."""
        kinds = {name: type(value) for name, value in vars(Knobs()).items()}
        if unknown := values.keys() - kinds.keys():
            sys.exit(f"fake_vllm: no such knobs: {', '.join(sorted(unknown))}")
        return replace(self, **{name: kinds[name](value) for name, value in values.items()})


class Controls:
    """The knobs as they stand now: the environment's, over them the control file's; and the journal."""

    def __init__(self) -> None:
        given = {name[5:].lower(): value for name, value in os.environ.items() if name.startswith("FAKE_")}
        self._path = given.pop("control", "")
        self._base = self.now = Knobs().but(given)
        self._read: tuple[int, int] | None = None
        self._struck = False
        self.refresh()

    def refresh(self) -> Knobs:
        """Reads the control file if it is another one than last time."""
        with contextlib.suppress(FileNotFoundError):
            if self._path and (file := os.stat(self._path)) and (file.st_ino, file.st_mtime_ns) != self._read:
                self.now = self._base.but(json.loads(Path(self._path).read_text()))
                self._read = file.st_ino, file.st_mtime_ns
        return self.now

    def may_strike(self) -> bool:
        """Whether a fault may happen in this process: always, or by ONCE if no other process has had it."""
        if self.now.once and not self._struck:
            try:
                os.close(os.open(self.now.once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
        self._struck = True
        return True

    def note(self, event: str, **facts: Any) -> None:
        """Appends to the journal."""
        if self.now.journal:
            line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **facts})
            with open(self.now.journal, "ab", buffering=0) as file:
                file.write(f"{line}\n".encode())


def control(path: Path, **knobs: Any) -> None:
    """Sets all knobs anew in the engines whose FAKE_CONTROL is `path` (for tests)."""
    Knobs().but(knobs)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(knobs))
    draft.replace(path)


def journal(path: Path, event: str = "") -> list[dict[str, Any]]:
    """What the engines with that FAKE_JOURNAL wrote so far, or only its events of one kind (for tests).

    Kinds: start (argv), ready, request (number, path, headers, body), end (number, how, tokens), sleep (level, mode),
    wake (tags), reload, signal (name), exit (status).
    """
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [entry for entry in map(json.loads, lines) if event in ("", entry["event"])]


@dataclass(frozen=True)
class Flags:
    """The vLLM flags that mean something here."""

    model: str = "model"
    names: tuple[str, ...] = ("model",)
    uds: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    max_model_len: int = 2048
    max_num_seqs: int = 256
    max_num_queued_reqs: int = 0
    shutdown_timeout: float = 0.0
    sse_keep_alive_interval: float = 0.0
    disable_uvicorn_access_log: bool = False
    gpu_memory_utilization: float = 0.92
    enable_sleep_mode: bool = False

    @property
    def address(self) -> str:
        return f"unix:{self.uds}" if self.uds else f"http://{self.host}:{self.port}"


def parse_flags(argv: list[str]) -> tuple[Flags, set[str]]:
    """Parses what comes after `serve`; also returns all flags that were given, known or not."""
    given: dict[str, list[str]] = {}
    words: list[str] = []
    for word in argv:
        if word.startswith("-"):
            name, _, value = word.partition("=")
            words = given.setdefault(name, [value] if value else [])
        elif not given:
            given[""] = [word]
        else:
            words.append(word)
    model = (given.pop("", None) or given.get("--model") or ["model"])[0]
    kinds = {name: type(value) for name, value in vars(Flags()).items() if name not in ("model", "names")}
    named = {name.lstrip("-").replace("-", "_"): values for name, values in given.items()}
    values: dict[str, Any] = {n: kinds[n](v[0]) if v else True for n, v in named.items() if n in kinds}
    names = tuple(named.get("served_model_name") or [model])
    return replace(Flags(model=model, names=names), **values), set(given)
