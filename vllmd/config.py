"""The one place where the configuration is read and checked.

`parse` is pure: a table in, a `Config` out, or a `ConfigError` that lists every problem. `load` adds the file, and
`locate` the directories that the file leaves open.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli

from vllmd import address
from vllmd.errors import AddressError, ConfigError
from vllmd.limits import with_identities
from vllmd.sections import BUILT_IN_MODELS, SECTIONS, Config, Listen, Model, Paths
from vllmd.settings import Problem, join, nearest, read

RESERVED_FLAGS = {
    "uds": "vllmd chooses the engine's private socket",
    "host": "the engine has no TCP port; clients use [listen]",
    "port": "the engine has no TCP port; clients use [listen]",
    "api-key": "vllmd guards the door itself",
    "served-model-name": "the table's own name is what the model is served as",
    "model": "write it as `model = …` beside `args`",
    "config": "write vLLM's flags into `args`",
}
"""Flags of `vllm serve` that would break a promise of vllmd's, and why. vLLM takes abbreviations of them as well."""

RESERVED_VARIABLES = {"VLLM_API_KEY": "vllmd guards the door itself, and its health checks would be refused"}
"""The same for the engine's environment."""

LOG_FORMATS = ("text", "json")
METRICS_ACCESS = ("clients", "administrators", "open", "off")
FITS = ("refuse", "warn", "off")
LOADS = ("start", "demand", "manual")

_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
"""As browsers write it: in lower case, without a path."""

_PATH_STARTS = ("/", "./", "../", "~")
"""How a directory begins, where a name on the hub could be meant as well."""

_NO_FILE = "name another with --config; the shipped etc/vllmd/vllmd.toml shows every key"


def load(path: Path) -> Config:
    """Reads and checks the file at `path`.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something impossible; every problem is listed.
    """
    try:
        return parse(tomli.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"], _NO_FILE) from None
    except (ValueError, RecursionError) as error:  # also: not UTF-8, numbers too long, nested too deeply
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def parse(table: Mapping[str, Any]) -> Config:
    """Checks a table and makes a `Config` of it.

    Raises:
        ConfigError: with all problems, each beginning with the key path it is about.
    """
    problems = [
        Problem(key, f"unknown table{nearest(key, [*SECTIONS, 'models'])}")
        for key in table
        if key not in SECTIONS and key != "models"
    ]
    sections = {name: read(cls, table.get(name, {}), name, problems) for name, cls in SECTIONS.items()}
    sections["limits"] = with_identities(sections["limits"], problems)
    models = _models(table["models"], problems) if "models" in table else dict(BUILT_IN_MODELS)
    config = Config(**sections, models=models)
    problems += _check_listen(config.listen, has_keys=bool(config.access.keys))
    if config.log.format not in LOG_FORMATS:
        problems.append(Problem("log.format", f"expected text or json, found {config.log.format!r}"))
    if config.metrics.access not in METRICS_ACCESS:
        expected = ", ".join(METRICS_ACCESS)
        problems.append(Problem("metrics.access", f"expected one of {expected}, found {config.metrics.access!r}"))
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    return config


def _models(table: object, problems: list[Problem]) -> dict[str, Model]:
    if not isinstance(table, Mapping) or not table:
        problems.append(Problem("models", "expected tables like [models.my-model]"))
        return {}
    models = {name: read(Model, each, f"models.{name}", problems) for name, each in table.items()}
    said = {problem.place for problem in problems}
    for name, model in models.items():
        if f"models.{name}" not in said:
            problems += [each for each in _check_model(f"models.{name}", name, model) if each.place not in said]
    return _with_default(models, problems)


def _check_model(path: str, name: str, model: Model) -> list[Problem]:
    problems = []
    if not name.strip():
        problems.append(Problem(path, "a model needs a name"))
    if not model.model:
        problems.append(Problem(join(path, "model"), "missing: a Hugging Face name or a directory"))
    elif model.model.startswith(_PATH_STARTS) and not os.path.isdir(os.path.expanduser(model.model)):
        problems.append(Problem(join(path, "model"), f"the directory {model.model} does not exist or is out of reach"))
    if model.fit not in FITS:
        problems.append(Problem(join(path, "fit"), f"expected refuse, warn or off, found {model.fit!r}"))
    problems += _check_load(path, model)
    problems += [
        Problem(join(path, f"args.{flag}"), f"not to be set here: {reason}")
        for flag in model.args
        if (reason := _reserved(flag))
    ]
    if model.flag("hf-token") not in (None, True):
        problems.append(Problem(join(path, "args.hf-token"), "everybody sees it in ps: set HF_TOKEN in `env`"))
    problems += [
        Problem(join(path, f"env.{variable}"), complaint)
        for variable, value in model.env.items()
        if (complaint := _variable_complaint(variable, value))
    ]
    return problems


def _check_load(path: str, model: Model) -> list[Problem]:
    if model.load not in LOADS:
        return [Problem(join(path, "load"), f"expected start, demand or manual, found {model.load!r}")]
    if model.load == "manual" and model.idle_unload_s:
        complaint = "vllmd unloads no model by itself that is loaded by hand; set load to start or demand, or this to 0"
        return [Problem(join(path, "idle_unload_s"), complaint)]
    return []


def _variable_complaint(variable: str, value: object) -> str:
    if not isinstance(value, str):
        return f"expected a string, found {value!r}"
    return f"not to be set here: {RESERVED_VARIABLES[variable]}" if variable in RESERVED_VARIABLES else ""


def _reserved(flag: str) -> str:
    """Why `flag`, or the flag that it abbreviates, is not the administrator's to set; empty if it is."""
    name = flag.partition("=")[0].replace("_", "-").strip("-")
    return next((reason for reserved, reason in RESERVED_FLAGS.items() if name and reserved.startswith(name)), "")


def _with_default(models: dict[str, Model], problems: list[Problem]) -> dict[str, Model]:
    if len(models) == 1:
        return {name: replace(model, default=True) for name, model in models.items()}
    defaults = [name for name, model in models.items() if model.default]
    if len(defaults) != 1:
        found = "none does" if not defaults else f"{len(defaults)} do"
        problems.append(Problem("models", f"exactly one model must say `default = true`, {found}"))
    return models


def _check_listen(listen: Listen, *, has_keys: bool) -> list[Problem]:
    problems = []
    for key, text in (("tcp", listen.tcp), ("unix", listen.unix)):
        if complaint := _address_complaint(key, text, has_keys=has_keys):
            problems.append(Problem(f"listen.{key}", complaint))
    problems += [
        Problem("listen.origins", f"expected https://name or http://name:port, found {each!r}")
        for each in listen.origins
        if not _ORIGIN.fullmatch(each)
    ]
    if not re.fullmatch("0?[0-7]{3}", listen.unix_mode):
        problems.append(Problem("listen.unix_mode", f"expected octal digits like 0660, found {listen.unix_mode!r}"))
    return problems


def _address_complaint(key: str, text: str, *, has_keys: bool) -> str:
    """What is wrong with an address of `[listen]`; empty if nothing is."""
    if not text:
        return ""
    try:
        parsed = address.parse(text)
    except AddressError as error:
        return f"{error.message}; {error.hint}"
    if isinstance(parsed, address.UnixAddress) is not (key == "unix"):
        return f"{text!r} belongs in listen.{'tcp' if key == 'unix' else 'unix'}"
    if isinstance(parsed, address.TcpAddress) and parsed.tls:
        return f"{text!r}: vllmd speaks no TLS itself; SECURITY.md shows how nginx does it in front of it"
    if isinstance(parsed, address.TcpAddress) and not parsed.is_loopback and not has_keys:
        reason = "can be reached from other machines, and vllmd has no keys to guard it"
        return f"{text!r} {reason}; listen on 127.0.0.1, or set access.keys"
    return ""


def locate(config: Config, environ: Mapping[str, str], uid: int) -> Config:
    """Fills in the directories and the socket that the file leaves open.

    Args:
        config: as `parse` made it.
        environ: the daemon's environment; systemd names its directories there (systemd.exec(5)).
        uid: the daemon's user.
    """
    runtime = address.runtime_directory(environ, uid)
    paths = Paths(
        state=config.paths.state or _given(environ, "STATE_DIRECTORY") or _own(environ, uid, "STATE"),
        runtime=config.paths.runtime or _given(environ, "RUNTIME_DIRECTORY") or f"{runtime}/engines",
        cache=config.paths.cache or _given(environ, "CACHE_DIRECTORY") or _own(environ, uid, "CACHE"),
    )
    keys = _credential(config.access.keys, environ)
    unix = config.listen.unix or str(address.default_socket(environ, uid))
    return replace(
        config,
        paths=Paths(*map(_absolute, (paths.state, paths.runtime, paths.cache))),
        listen=replace(config.listen, unix=unix),
        access=replace(config.access, keys=keys),
        environment=replace(config.environment, path=_absolute(config.environment.path)),
        models={name: replace(model, model=_source(model.model)) for name, model in config.models.items()},
    )


def _credential(keys: str, environ: Mapping[str, str]) -> str:
    """The file of the keys: a name without a slash is a credential's, which systemd has put into a directory."""
    if not keys or "/" in keys:
        return _absolute(keys)
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return f"{directory}/{keys}" if directory else keys


def _absolute(path: str) -> str:
    """A path as it reads where vllmd was started; engines run elsewhere."""
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _source(model: str) -> str:
    """What vLLM loads, with a directory's path made absolute; `organisation/name` is none."""
    return _absolute(model) if model.startswith(_PATH_STARTS) else model


def _given(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").split(":")[0]


def _own(environ: Mapping[str, str], uid: int, kind: str) -> str:
    if uid == 0:
        return {"STATE": "/var/lib/vllmd", "CACHE": "/var/cache/vllmd"}[kind]
    home = environ.get("HOME", "/")
    base = environ.get(f"XDG_{kind}_HOME") or {"STATE": f"{home}/.local/state", "CACHE": f"{home}/.cache"}[kind]
    return f"{base}/vllmd"
