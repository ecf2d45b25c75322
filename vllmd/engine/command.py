"""From a model's settings to the argv and the environment of `vllm serve`: the only place that spells a vLLM flag."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllmd.sections import Model

OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE")
"""Variables that speak to vllmd alone; an engine that inherited them could answer systemd in its name."""

FOREIGN = (
    *("CREDENTIALS_DIRECTORY", "VLLMD_API_KEY", "VLLMD_API_KEY_FILE", "VLLM_API_KEY"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
)
"""Variables of vllmd's own surroundings that have no business in the engine's. With a key it would refuse vllmd too."""

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""A service does not phone home unless its administrator says so in `[models.NAME.env]`."""


ELSEWHERE = (
    *("tokenizer", "hf-config-path", "speculative-config", "spec-model", "lora-modules", "default-mm-loras"),
    "trust-remote-code",
)
"""Flags by which an engine may need a second repository of the hub's: code, a tokenizer, a draft model."""


def serve(
    name: str,
    model: Model,
    *,
    python: Path,
    vllm: Path,
    socket: Path,
    snapshot: Path | None = None,
    can_sleep: bool = False,
) -> tuple[str, ...]:
    """The argv that serves `model` as `name` on the Unix socket `socket`.

    Args:
        python, vllm: the interpreter of the engine's environment and the `vllm` script in it. The script is given to
            the interpreter as a file, so that an environment still works after it was moved.
        snapshot: where the model lies that vllmd has pulled; None where vLLM is to find it.
        can_sleep: whether vllmd will want to put it to sleep.
    """
    sleep = ("--enable-sleep-mode",) if can_sleep and model.flag("enable-sleep-mode") is None else ()
    ours = ("--uds", str(socket), "--served-model-name", name, *sleep)
    return (str(python), str(vllm), "serve", str(snapshot or model.model), *ours, *flags(model.args))


def flags(args: Mapping[str, Any]) -> Iterator[str]:
    """A table as command line flags: true → `--flag`, false → `--no-flag`, list → several values, table → JSON."""
    for key, value in args.items():
        flag = "--" + key.lstrip("-").replace("_", "-")
        if value is True:
            yield flag
        elif value is False:
            yield "--no-" + flag[2:]
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        elif isinstance(value, Mapping):
            yield from (flag, json.dumps(value))
        else:
            yield from (flag, str(value))


def environ(
    base: Mapping[str, str],
    model: Model,
    *,
    directory: Path,
    cache: Path,
    binaries: Path,
    snapshot: Path | None = None,
    can_sleep: bool = False,
) -> dict[str, str]:
    """The engine's environment variables.

    Args:
        base: the daemon's own.
        model: its `env` has the last word.
        directory: this generation's own; vLLM leaks sockets and shared files into TMPDIR, they end with it.
        cache: where everything goes that is worth keeping between generations.
        binaries: the environment's `bin`, first in PATH for the compilers that vLLM calls.
        snapshot: where the model lies that vllmd has pulled: the hub need not be asked, and is not.
        can_sleep: whether vllmd will want to put it to sleep. The routes for that are vLLM's development ones, with
            others that nobody may reach: the socket is private, and the doors pass on what they know.
    """
    offline = {"HF_HUB_OFFLINE": "1"} if snapshot and not _needs_more(model) else {}
    places = {
        "PATH": f"{binaries}:{base.get('PATH', '/usr/bin:/bin')}",
        "TMPDIR": str(directory / "tmp"),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    sleep = {"VLLM_SERVER_DEV_MODE": "1"} if can_sleep else {}
    return {**surroundings(base, cache), **QUIET, **places, **offline, **sleep, **model.env}


def _needs_more(model: Model) -> bool:
    """Whether a flag of `ELSEWHERE` is there, maybe abbreviated or with a key of its table (`--flag.key`)."""
    used = (key.lstrip("-").replace("_", "-") for key, value in model.args.items() if value is not False)
    words = [re.split("[.=+]", word)[0] for word in used]
    return any(word and flag.startswith(word) for word in words for flag in ELSEWHERE)


def surroundings(base: Mapping[str, str], cache: Path) -> dict[str, str]:
    """What whoever fetches or loads models inherits of the daemon's variables, and where models lie.

    Under systemd the cache is the service's; a user's own daemon finds the models and the token it has already.
    """
    inherited = {key: value for key, value in base.items() if key not in (*OURS, *FOREIGN)}
    is_service = "CACHE_DIRECTORY" in base and "HF_HOME" not in base
    return {**inherited, **({"HF_HOME": str(cache / "huggingface")} if is_service else {})}
