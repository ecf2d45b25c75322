"""What the configuration accepts, and how it tells what it does not."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmd.config import RESERVED_FLAGS, load, locate, parse
from vllmd.errors import ConfigError
from vllmd.sections import SECTIONS, Config, Model

ONE = {"models": {"m": {"model": "org/name"}}}
NOT_A_NUMBER = float("nan")
INFINITY = float("inf")


def problems_of(table: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(table)
    return caught.value.problems


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vllmd.toml"
    path.write_text(text)
    return path


def problems_of_file(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


# ── what is accepted ──


def test_nothing_gives_the_defaults() -> None:
    assert parse({}) == Config()


def test_every_section_may_be_empty() -> None:
    assert parse({name: {} for name in SECTIONS}) == Config()


def test_the_built_in_model_is_the_default_one() -> None:
    config = Config()
    assert config.default_model == "qwen2-7b-instruct"
    assert config.models[config.default_model].model == "Qwen/Qwen2-7B-Instruct"


def test_values_arrive_in_their_types() -> None:
    config = parse({"supervision": {"stop_timeout_s": 7, "restart_limit": 0}, "queue": {"wait_s": 1.5}})
    assert config.supervision.stop_timeout_s == 7.0
    assert isinstance(config.supervision.stop_timeout_s, float)
    assert (config.supervision.restart_limit, config.queue.wait_s) == (0, 1.5)


def test_every_default_can_be_written_out() -> None:
    def written(value: object) -> object:
        return list(value) if isinstance(value, tuple) else value  # TOML has lists

    table = {
        name: {each.name: written(getattr(cls(), each.name)) for each in fields(cls)} for name, cls in SECTIONS.items()
    }
    assert parse(table) == Config()


@pytest.mark.parametrize(("name", "cls"), SECTIONS.items())
def test_every_key_says_what_it_is_and_in_which_unit(name: str, cls: type[Any]) -> None:
    assert is_dataclass(cls)
    for each in fields(cls):
        assert each.metadata["doc"], f"{name}.{each.name}"
        if each.name.endswith("_s"):
            assert "second" in each.metadata["doc"], f"{name}.{each.name}"


def test_what_was_read_cannot_be_changed() -> None:
    for cls in (*SECTIONS.values(), Model, Config):
        with pytest.raises(FrozenInstanceError):
            setattr(cls(), fields(cls)[0].name, None)


BOUNDS = [
    (section, each.name, side, each.metadata[side])
    for section, cls in SECTIONS.items()
    for each in fields(cls)
    for side in ("minimum", "maximum")
    if each.metadata[side] is not None
]


@pytest.mark.parametrize(("section", "key", "side", "bound"), BOUNDS)
def test_a_bound_is_allowed_and_what_is_beyond_is_not(section: str, key: str, side: str, bound: float) -> None:
    assert getattr(getattr(parse({section: {key: bound}}), section), key) == bound
    beyond = bound - 1 if side == "minimum" else bound + 1
    (problem,) = problems_of({section: {key: beyond}})
    assert problem.startswith(f"{section}.{key}: {beyond!r} is too ")


def test_model_args_and_env_go_through_untouched() -> None:
    table = {"model": "org/name", "args": {"max-model-len": 2048, "x": [1, {"y": None}]}, "env": {"A": "b"}}
    assert parse({"models": {"m": table}}).models["m"] == Model(
        "org/name", default=True, args={"max-model-len": 2048, "x": [1, {"y": None}]}, env={"A": "b"}
    )


# ── mistakes ──


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"listn": {}}, "listn: unknown table (did you mean 'listen'?)"),
        ({"model": {}}, "model: unknown table (did you mean 'models'?)"),
        ({"zzz": {}}, "zzz: unknown table"),
        ({"queue": {"wait": 3}}, "queue.wait: unknown key (did you mean 'wait_s'?)"),
        ({"queue": {"zzz": 3}}, "queue.zzz: unknown key"),
        ({"queue": 3}, "queue: expected a table, found 3"),
        ({"queue": {"limit": "many"}}, "queue.limit: expected a whole number, found 'many'"),
        ({"queue": {"limit": 2.0}}, "queue.limit: expected a whole number, found 2.0"),
        ({"queue": {"limit": True}}, "queue.limit: expected a whole number, found True"),
        ({"queue": {"limit": -1}}, "queue.limit: -1 is too small, the least is 0"),
        ({"queue": {"wait_s": False}}, "queue.wait_s: expected a number, found False"),
        ({"queue": {"wait_s": NOT_A_NUMBER}}, "queue.wait_s: expected a number, found nan"),
        ({"queue": {"wait_s": INFINITY}}, "queue.wait_s: expected a number, found inf"),
        ({"queue": {"wait_s": -INFINITY}}, "queue.wait_s: expected a number, found -inf"),
        ({"defaults": {"temperature": 2.1}}, "defaults.temperature: 2.1 is too large, the most is 2"),
        ({"defaults": {"max_tokens": 0}}, "defaults.max_tokens: 0 is too small, the least is 1"),
        ({"supervision": {"failure_threshold": 0}}, "supervision.failure_threshold: 0 is too small, the least is 1"),
        ({"limits": {"body_bytes": 1}}, "limits.body_bytes: 1 is too small, the least is 1024"),
        ({"access": {"admin_group": ["wheel"]}}, "access.admin_group: expected a string, found ['wheel']"),
    ],
)
def test_a_mistake_is_told_with_its_place(table: Mapping[str, Any], problem: str) -> None:
    assert problems_of(table) == [problem]


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ({}, "models: expected tables like [models.my-model]"),
        ([], "models: expected tables like [models.my-model]"),
        ({"m": 3}, "models.m: expected a table, found 3"),
        ({"m": {}}, "models.m.model: missing: a Hugging Face name or a directory"),
        ({"m": {"model": 3}}, "models.m.model: expected a string, found 3"),
        ({"m": {"model": ""}}, "models.m.model: missing: a Hugging Face name or a directory"),
        ({" ": {"model": "a"}}, "models. : a model needs a name"),
        ({"m": {"modle": "a", "model": "b"}}, "models.m.modle: unknown key (did you mean 'model'?)"),
        ({"m": {"model": "a", "default": 1}}, "models.m.default: expected true or false, found 1"),
        (
            {"m": {"model": "a", "load": "lazy"}},
            "models.m.load: expected start, demand or manual, found 'lazy'",
        ),
        ({"m": {"model": "a", "load": ""}}, "models.m.load: expected start, demand or manual, found ''"),
        ({"m": {"model": "a", "sleep_level": 3}}, "models.m.sleep_level: 3 is too large, the most is 2"),
        ({"m": {"model": "a", "sleep_level": -1}}, "models.m.sleep_level: -1 is too small, the least is 0"),
        ({"m": {"model": "a", "idle_unload_s": -1}}, "models.m.idle_unload_s: -1 is too small, the least is 0"),
        (
            {"m": {"model": "a", "load": "manual", "idle_unload_s": 60}},
            "models.m.idle_unload_s: vllmd unloads no model by itself that is loaded by hand; "
            "set load to start or demand, or this to 0",
        ),
        ({"m": {"model": "a", "args": ["--x"]}}, "models.m.args: expected a table, found ['--x']"),
        ({"m": {"model": "a", "env": {"DEBUG": 1}}}, "models.m.env.DEBUG: expected a string, found 1"),
        (
            {"a": {"model": "x"}, "b": {"model": "x"}},
            "models: exactly one model must say `default = true`, none does",
        ),
        (
            {"a": {"model": "x", "default": True}, "b": {"model": "x", "default": True}},
            "models: exactly one model must say `default = true`, 2 do",
        ),
    ],
)
def test_a_mistake_in_a_model_is_told_with_its_place(models: Any, problem: str) -> None:
    assert problems_of({"models": models}) == [problem]


@pytest.mark.parametrize("load_", ["start", "demand", "manual"])
@pytest.mark.parametrize("sleep_level", [0, 1, 2])
def test_when_a_model_comes_and_how_it_goes(load_: str, sleep_level: int) -> None:
    idle_s = 0 if load_ == "manual" else 60
    table: dict[str, Any] = {"load": load_, "idle_unload_s": idle_s, "sleep_level": sleep_level}
    assert parse({"models": {"m": {"model": "a", **table}}}).models["m"] == Model("a", default=True, **table)


def test_a_single_model_is_the_default_one_whatever_it_says() -> None:
    assert parse(ONE).default_model == "m"
    assert parse({"models": {"m": {"model": "a", "default": False}}}).default_model == "m"


def test_of_several_models_one_is_the_default_one() -> None:
    config = parse({"models": {"a": {"model": "x"}, "b": {"model": "y", "default": True}}})
    assert config.default_model == "b"


@pytest.mark.parametrize("flag", RESERVED_FLAGS)
@pytest.mark.parametrize("spelling", ["{}", "--{}", "-{}"])
def test_flags_that_would_break_a_promise_are_refused_in_every_spelling(flag: str, spelling: str) -> None:
    for written in {spelling.format(flag), spelling.format(flag).replace("-", "_")}:
        found = problems_of({"models": {"m": {"model": "a", "args": {written: "x"}}}})
        assert found == [f"models.m.args.{written}: not to be set here: {RESERVED_FLAGS[flag]}"]


def test_a_model_directory_must_exist(tmp_path: Path) -> None:
    def parse_model(where: str) -> Config:
        return parse({"models": {"m": {"model": where}}})

    assert parse_model(str(tmp_path)).models["m"].model == str(tmp_path)
    (tmp_path / "file").touch()
    beyond = ["/" + "x" * 300, "~nobody-of-that-name/x", "/\0", f"{tmp_path}/none", f"{tmp_path}/file", "./none"]
    for where in beyond:
        assert problems_of({"models": {"m": {"model": where}}}) == [
            f"models.m.model: the directory {where} does not exist or is out of reach"
        ]
    assert parse_model("Qwen/Qwen2-7B-Instruct").models["m"].model == "Qwen/Qwen2-7B-Instruct"


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ({"tcp": "0.0.0.0:8080"}, "'0.0.0.0:8080' can be reached from other machines"),
        ({"tcp": "[::]:8080"}, "'[::]:8080' can be reached from other machines"),
        ({"tcp": "example.org:8080"}, "'example.org:8080' can be reached from other machines"),
        ({"tcp": "/run/vllmd.sock"}, "'/run/vllmd.sock' belongs in listen.unix"),
        ({"tcp": "127.0.0.1"}, "'127.0.0.1' is not an address"),
        ({"unix": "127.0.0.1:8080"}, "'127.0.0.1:8080' belongs in listen.tcp"),
        ({"unix": "vllmd.sock"}, "'vllmd.sock' is not an address"),
        ({"unix": "/" + "x" * 107}, "too long: 108 bytes, Linux takes 107"),
        ({"unix_mode": "rw"}, "expected octal digits like 0660, found 'rw'"),
        ({"unix_mode": "0888"}, "expected octal digits"),
        ({"unix_mode": "-660"}, "expected octal digits"),
        ({"unix_mode": "66000"}, "expected octal digits"),
        ({"unix_mode": ""}, "expected octal digits"),
    ],
)
def test_doors_that_cannot_be_opened(listen: Mapping[str, str], said: str) -> None:
    (problem,) = problems_of({"listen": listen})
    (key,) = listen
    assert problem.startswith(f"listen.{key}: ")
    assert said in problem


@pytest.mark.parametrize(
    "listen",
    [
        {"tcp": ""},
        {"tcp": "localhost:1"},
        {"tcp": "[::1]:8080"},
        {"tcp": "http://127.0.0.1:8080"},
        {"unix": "/" + "x" * 106},
        {"unix": "unix:///run/other.sock"},
        {"unix_mode": "666"},
    ],
)
def test_doors_that_can_be_opened(listen: Mapping[str, Any]) -> None:
    assert parse({"listen": listen}).listen == replace(Config().listen, **listen)


def test_paths_read_as_they_do_where_vllmd_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine runs in a directory of its own, where a relative path would mean another place."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    table = {
        "paths": {"state": "st", "runtime": "~/run"},
        "environment": {"path": "venv"},
        "models": {"a": {"model": "./m", "default": True}, "b": {"model": "organisation/name"}},
    }
    found = locate(parse(table), {"HOME": "/home/ada"}, 1000)
    assert (found.paths.state, found.paths.runtime) == (str(tmp_path / "st"), "/home/ada/run")
    assert found.environment.path == str(tmp_path / "venv")
    assert [each.model for each in found.models.values()] == [str(tmp_path / "m"), "organisation/name"]


@pytest.mark.parametrize("flag", ["served-model", "served_model_name", "--uds", "uds=/tmp/x", "conf", "p"])
def test_abbreviations_of_reserved_flags_are_reserved(flag: str) -> None:
    with pytest.raises(ConfigError, match="not to be set here"):
        parse({"models": {"m": {"model": "o/m", "args": {flag: True}}}})


def test_a_variable_that_would_lock_vllmd_out_is_reserved() -> None:
    with pytest.raises(ConfigError, match="VLLM_API_KEY: not to be set here"):
        parse({"models": {"m": {"model": "o/m", "env": {"VLLM_API_KEY": "secret"}}}})


def test_all_mistakes_are_told_at_once() -> None:
    table = {
        "queue": {"limt": 3, "wait_s": -1},
        "listen": {"tcp": "0.0.0.0:1"},
        "models": {"m": {"args": {"port": 1}}},
    }
    assert [problem.partition(":")[0] for problem in problems_of(table)] == [
        "queue.limt",
        "queue.wait_s",
        "models.m.model",
        "models.m.args.port",
        "listen.tcp",
    ]


def test_long_values_do_not_flood_the_message() -> None:
    (problem,) = problems_of({"queue": {"wait_s": "x" * 10_000}})
    assert len(problem) < 200
    (problem,) = problems_of({"queue": {"wait_s": 1 << 100_000}})
    assert problem == "queue.wait_s: expected a number, found a number of thousands of digits"


# ── files ──


def test_three_mistakes_make_three_lines_with_file_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, '[queue]\nlimt = 3\nwait_s = "long"\n[relay]\nstall_s = 0\n')
    assert problems_of_file(path) == [
        f"{path}: queue.limt: unknown key (did you mean 'limit'?)",
        f"{path}: queue.wait_s: expected a number, found 'long'",
        f"{path}: relay.stall_s: 0 is too small, the least is 0.05",
    ]


def test_the_newer_toml_is_read(tmp_path: Path) -> None:
    text = '[models.m]\nmodel = "a"\nargs = {\n  max-model-len = 1, # a comment\n  name = "\\x41\\e",\n}\n'
    assert load(written(tmp_path, text)).models["m"].args == {"max-model-len": 1, "name": "A\x1b"}


@pytest.mark.parametrize("text", ["[queue", "a = ", "a = 1\na = 2", "a = " + "[" * 100_000, "a = " + "9" * 10_000])
def test_what_is_not_toml(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    (problem,) = problems_of_file(path)
    assert problem.startswith(f"{path}: not valid TOML: ")


def test_what_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "vllmd.toml"
    path.write_bytes(b"# caf\xe9\n")
    (problem,) = problems_of_file(path)
    assert problem.startswith(f"{path}: not valid TOML: 'utf-8' codec can't decode byte 0xe9")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert problems_of_file(tmp_path / "none") == [f"{tmp_path}/none: No such file or directory"]
    assert problems_of_file(tmp_path) == [f"{tmp_path}: Is a directory"]


# ── anything at all ──

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just(10**400),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=10), values, max_size=3),
    max_leaves=10,
)
KEYS = sorted({each.name for cls in (*SECTIONS.values(), Model) for each in fields(cls)})
TABLES = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), VALUES, max_size=5)
NESTED = st.dictionaries(
    st.sampled_from([*SECTIONS, "models"]) | st.text(max_size=5),
    TABLES | VALUES | st.dictionaries(st.text(max_size=5), TABLES, max_size=3),
    max_size=5,
)


@given(NESTED)
@example({"models": {"m": {"model": "~nobody-of-that-name"}}})
@example({"defaults": {"temperature": 10**400}})
def test_whatever_is_written_there_is_a_config_or_its_mistakes_are_told(table: dict[str, Any]) -> None:
    outcome = outcome_of(table)
    if isinstance(outcome, Config):
        assert outcome.default_model in outcome.models
    else:
        assert outcome
        assert all(": " in problem for problem in outcome)


def outcome_of(table: Mapping[str, Any]) -> Config | list[str]:
    try:
        return parse(table)
    except ConfigError as error:
        return error.problems


# ── directories ──


def places(environ: Mapping[str, str], uid: int, config: Config | None = None) -> tuple[str, str, str, str]:
    located = locate(config or Config(), environ, uid)
    return located.paths.state, located.paths.runtime, located.paths.cache, located.listen.unix


def test_where_things_are_for_root() -> None:
    assert places({"HOME": "/root"}, 0) == (
        "/var/lib/vllmd",
        "/run/vllmd/engines",
        "/var/cache/vllmd",
        "unix:///run/vllmd/vllmd.sock",
    )


def test_where_things_are_for_a_user() -> None:
    session = {"HOME": "/home/ada", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert places(session, 1000) == (
        "/home/ada/.local/state/vllmd",
        "/run/user/1000/vllmd/engines",
        "/home/ada/.cache/vllmd",
        "unix:///run/user/1000/vllmd/vllmd.sock",
    )
    chosen = {**session, "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"}
    assert places(chosen, 1000)[:3] == ("/s/vllmd", "/run/user/1000/vllmd/engines", "/c/vllmd")


def test_where_things_are_for_a_user_without_a_session() -> None:
    assert places({"HOME": "/home/ada"}, 1000)[1:] == (
        "/tmp/vllmd-1000/engines",
        "/home/ada/.cache/vllmd",
        "unix:///tmp/vllmd-1000/vllmd.sock",
    )


def test_systemd_has_its_way() -> None:
    # systemd.exec(5): several directories are separated by colons; the first is meant.
    unit = {
        "STATE_DIRECTORY": "/var/lib/vllmd",
        "RUNTIME_DIRECTORY": "/run/vllmd/engines:/run/other",
        "CACHE_DIRECTORY": "/var/cache/vllmd",
    }
    assert places(unit, 990)[:3] == ("/var/lib/vllmd", "/run/vllmd/engines", "/var/cache/vllmd")


def test_the_file_has_the_last_word() -> None:
    config = parse({"paths": {"state": "/a", "runtime": "/b", "cache": "/c"}, "listen": {"unix": "/d"}})
    unit = {"STATE_DIRECTORY": "/x", "RUNTIME_DIRECTORY": "/x", "CACHE_DIRECTORY": "/x"}
    assert places(unit, 990, config) == ("/a", "/b", "/c", "/d")


def test_locating_changes_nothing_else() -> None:
    located = locate(Config(), {"HOME": "/home/ada"}, 1000)
    assert replace(located, paths=Config().paths, listen=Config().listen) == Config()
    assert replace(located.listen, unix="") == Config().listen
