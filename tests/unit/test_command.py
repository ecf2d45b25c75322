"""From a model's settings to what is run, and in which surroundings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vllmd.engine.command import FOREIGN, OURS, QUIET, environ, flags, serve
from vllmd.sections import Model

PYTHON, VLLM, SOCKET = Path("/env/bin/python"), Path("/env/bin/vllm"), Path("/run/m.1/api.sock")


def argv(model: Model) -> list[str]:
    return list(serve("m", model, python=PYTHON, vllm=VLLM, socket=SOCKET))


def surroundings(base: Mapping[str, str], model: Model | None = None) -> dict[str, str]:
    return environ(
        base,
        model or Model("org/name"),
        directory=Path("/run/m.1"),
        cache=Path("/cache"),
        binaries=Path("/env/bin"),
    )


def test_the_command() -> None:
    assert argv(Model("org/name", args={"max-model-len": 2048})) == [
        "/env/bin/python",
        "/env/bin/vllm",
        "serve",
        "org/name",
        "--uds",
        "/run/m.1/api.sock",
        "--served-model-name",
        "m",
        "--max-model-len",
        "2048",
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, []),
        ({"enforce-eager": True}, ["--enforce-eager"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"--enforce-eager": True}, ["--enforce-eager"]),
        ({"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
        ({"max-model-len": 2048}, ["--max-model-len", "2048"]),
        ({"max-model-len": 1}, ["--max-model-len", "1"]),
        ({"max-model-len": 0}, ["--max-model-len", "0"]),
        ({"gpu-memory-utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"dtype": "float32"}, ["--dtype", "float32"]),
        ({"chat-template": ""}, ["--chat-template", ""]),
        ({"allowed-origins": ["a", 1]}, ["--allowed-origins", "a", "1"]),
        ({"a": 1, "b": True, "c": "x"}, ["--a", "1", "--b", "--c", "x"]),
    ],
)
def test_flags(args: Mapping[str, Any], words: list[str]) -> None:
    assert list(flags(args)) == words


def test_a_table_becomes_json() -> None:
    table = {"mode": 3, "cudagraph_capture_sizes": [1, 2], "pass_config": {"fuse": True}}
    flag, value = flags({"compilation-config": table})
    assert (flag, json.loads(value)) == ("--compilation-config", table)


def test_what_speaks_to_vllmd_never_reaches_the_engine() -> None:
    base = dict.fromkeys((*OURS, *FOREIGN), "secret")
    inherited = surroundings({**base, "LANG": "C"})
    assert inherited["LANG"] == "C"
    assert "secret" not in inherited.values()
    assert {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"} <= set(OURS)
    assert {"CREDENTIALS_DIRECTORY", "PYTHONPATH", "VLLM_API_KEY"} <= set(FOREIGN)


def test_places_are_the_generations_own_or_kept_in_the_cache() -> None:
    assert surroundings({"PATH": "/usr/bin", "TMPDIR": "/tmp", "VLLM_CACHE_ROOT": "/elsewhere"}) == {
        **QUIET,
        "PATH": "/env/bin:/usr/bin",
        "TMPDIR": "/run/m.1/tmp",
        "VLLM_CACHE_ROOT": "/cache/vllm",
        "TRITON_CACHE_DIR": "/cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/cache/inductor",
    }


def test_a_service_keeps_its_models_in_its_own_cache() -> None:
    assert surroundings({"CACHE_DIRECTORY": "/cache"})["HF_HOME"] == "/cache/huggingface"
    assert surroundings({"CACHE_DIRECTORY": "/cache", "HF_HOME": "/srv/hf"})["HF_HOME"] == "/srv/hf"


def test_there_is_always_a_path() -> None:
    assert surroundings({})["PATH"] == "/env/bin:/usr/bin:/bin"


def test_models_that_were_downloaded_before_are_found() -> None:
    assert surroundings({"HF_HOME": "/home/ada/hf"})["HF_HOME"] == "/home/ada/hf"


def test_nobody_is_called_home_about_unless_the_administrator_says_so() -> None:
    assert surroundings({"DO_NOT_TRACK": "0", "VLLM_NO_USAGE_STATS": "0"}).items() >= QUIET.items()
    assert surroundings({}, Model("m", env={"DO_NOT_TRACK": "0"}))["DO_NOT_TRACK"] == "0"


def test_the_models_own_variables_have_the_last_word() -> None:
    own = {"PATH": "/p", "TMPDIR": "/t", "HF_HOME": "/h", "VLLM_CACHE_ROOT": "/v", "NEW": "n", "PYTHONPATH": "/x"}
    assert surroundings({"PATH": "/usr/bin", "NEW": "old"}, Model("m", env=own)).items() >= own.items()


def test_vllm_is_not_told_to_print_prompts(tmp_path: Path) -> None:
    """It does where `--enable-log-requests`, `--enable-log-outputs` or VLLM_LOGGING_LEVEL say so: not by our wish."""
    argv = serve("tiny", Model("m"), python=tmp_path, vllm=tmp_path, socket=tmp_path)
    variables = environ({}, Model("m"), directory=tmp_path, cache=tmp_path, binaries=tmp_path)
    assert not any("-log-" in word for word in argv if word.startswith("--"))
    assert not any("LOG" in name or "DEBUG" in name for name in variables)


def test_a_model_that_was_pulled_is_served_from_where_it_lies_and_nobody_is_asked() -> None:
    snapshot, binaries = Path("/hub/snapshots/1a"), Path("/env/bin")
    argv = serve("m", Model("acme/m"), python=Path("/p"), vllm=Path("/v"), socket=Path("/s"), snapshot=snapshot)
    assert argv[:4] == ("/p", "/v", "serve", "/hub/snapshots/1a")

    def offline(**how: Any) -> str | None:
        places: dict[str, Any] = {"directory": Path("/d"), "cache": Path("/c"), "binaries": binaries}
        return environ({}, Model("acme/m", **how), **places, snapshot=snapshot).get("HF_HUB_OFFLINE")

    assert offline() == "1"
    assert offline(env={"HF_HUB_OFFLINE": "0"}) == "0", "the administrator has the last word"
    assert offline(args={"tokenizer": "acme/other"}) is None, "that one has to be asked for"
    for flag in ("speculative-config.model", "--spec-model", "trust_remote", "lora-modules"):
        assert offline(args={flag: "acme/draft"}) is None, flag
    assert offline(args={"tokenizer-mode": "slow", "max-model-len": 8}) == "1"
    assert offline(args={"trust_remote_code": False}) == "1"


def test_only_an_engine_that_shall_sleep_has_the_routes_for_it() -> None:
    places: dict[str, Any] = {"directory": Path("/d"), "cache": Path("/c"), "binaries": Path("/b")}
    parts: dict[str, Any] = {"python": Path("/p"), "vllm": Path("/v"), "socket": Path("/s")}
    assert "--enable-sleep-mode" in serve("m", Model("m"), **parts, can_sleep=True)
    assert environ({}, Model("m"), **places, can_sleep=True)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "--enable-sleep-mode" not in serve("m", Model("m"), **parts)
    assert "VLLM_SERVER_DEV_MODE" not in environ({}, Model("m"), **places)
    said = serve("m", Model("m", args={"enable-sleep-mode": True}), **parts, can_sleep=True)
    assert said.count("--enable-sleep-mode") == 1
