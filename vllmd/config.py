"""The daemon's configuration: frozen dataclasses, and the one place where it is checked.

`parse` is pure: a table in, a `Config` out, or a `ConfigError` that lists every problem. `load` adds the file. Every
key, its default and its meaning stand here once; `etc/vllmd/vllmd.toml` shows them all and a test compares the two.
vLLM's own flags are never mirrored: `[models.NAME.args]` goes through untouched.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from vllmd import address
from vllmd.errors import AddressError, ConfigError
from vllmd.lifecycle import Policy
from vllmd.limits import Limits, with_identities
from vllmd.settings import Applies, Problem, join, nearest, option, read

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


@dataclass(frozen=True)
class Listen:
    """Where clients come in. Sockets passed by systemd take the place of both."""

    tcp: str = option("127.0.0.1:8080", "TCP address; empty: none", applies=Applies.DAEMON)
    unix: str = option(
        "",
        "Unix socket; empty: /run/vllmd/vllmd.sock, for a user $XDG_RUNTIME_DIR/vllmd/vllmd.sock",
        applies=Applies.DAEMON,
    )
    unix_mode: str = option("0660", "permissions of the Unix socket, octal", applies=Applies.DAEMON)
    hosts: tuple[str, ...] = option((), "names beside localhost and that of `tcp` under which clients come in by TCP")
    origins: tuple[str, ...] = option((), "other origins whose pages may ask, such as https://chat.example (CORS)")
    exit_idle_s: float = option(
        0.0,
        "with systemd's sockets: seconds without a request until vllmd ends; the next one starts it; 0: never",
        minimum=0,
        applies=Applies.DAEMON,
    )
    unix_group: str = option("", "group of the Unix socket; empty: the daemon's own", applies=Applies.DAEMON)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Those of `hosts`, and the one in `tcp`."""
        tcp = address.parse(self.tcp) if self.tcp else None
        own = tcp.host if isinstance(tcp, address.TcpAddress) else ""
        return self.hosts if own in ("", "0.0.0.0", "::") else (*self.hosts, own)


@dataclass(frozen=True)
class Paths:
    """Directories. Empty means: what systemd gives, else the usual place for root or for a user."""

    state: str = option("", "environments and what must survive a restart; /var/lib/vllmd", applies=Applies.DAEMON)
    runtime: str = option("", "the engines' private sockets; /run/vllmd/engines", applies=Applies.DAEMON)
    cache: str = option(
        "", "caches of vLLM, Triton, Inductor and Hugging Face; /var/cache/vllmd", applies=Applies.DAEMON
    )


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which vLLM, and where it is installed."""

    requirement: str = option(
        "",
        "what is installed, such as vllm==0.33.0; empty: what suits the machine (see vllmctl env list)",
        applies=Applies.ENGINE,
    )
    python: str = option("", "interpreter to build it with; empty: the one that runs vllmd", applies=Applies.ENGINE)
    path: str = option(
        "", "use the vLLM in this virtual environment as it is, and install nothing", applies=Applies.ENGINE
    )
    index: str = option(
        "",
        "an index of wheels beside pip's own; vLLM for AMD GPUs needs one",
        secret=True,  # its URL may hold a password
    )


@dataclass(frozen=True)
class Defaults:
    """What the simple door fills in when the client leaves it out."""

    temperature: float = option(0.7, "sampling temperature", minimum=0, maximum=2)
    max_tokens: int = option(512, "the longest answer, in tokens", minimum=1)


@dataclass(frozen=True)
class Queue:
    """Requests that wait for an engine."""

    wait_s: float = option(900.0, "seconds a request may wait for its model", minimum=0)
    limit: int = option(256, "requests that may wait at once; one more gets 503", minimum=0)
    running: int = option(256, "requests of one model in its engine at once; max-num-seqs goes before it", minimum=1)
    status_after_s: float = option(5.0, "seconds after which a waiting stream gets status comments", minimum=0)


@dataclass(frozen=True)
class Sse:
    """Server-sent events."""

    keepalive_s: float = option(15.0, "seconds of silence after which a stream gets a comment", minimum=0.05)


@dataclass(frozen=True)
class Relay:
    """Streams between engine and client."""

    stall_s: float = option(300.0, "seconds of silence after which an engine's stream counts as broken", minimum=0.05)
    send_stall_s: float = option(300.0, "seconds after which a client that reads nothing is cut off", minimum=0.05)
    drain_s: float = option(30.0, "seconds that running streams get to finish when vllmd stops", minimum=0)
    trace: bool = option(False, "whether a request without a traceparent gets one (W3C Trace Context) for its engine")


@dataclass(frozen=True)
class Replay:
    """Requests whose engine died."""

    limit: int = option(2, "times that a request is sent again, or an answer continued", minimum=0)
    continuation: bool = option(True, "whether a new engine continues a chat stream in mid-answer")
    continuation_bytes: int = option(65536, "longest text that is kept for it, in bytes a stream", minimum=0)


@dataclass(frozen=True)
class Log:
    """vllmd's log, and with it what the engines print."""

    format: str = option(
        "text", "how lines on stderr look: text, or json; the journal gets fields instead", applies=Applies.DAEMON
    )
    requests: bool = option(True, "a line for each request for inference that has ended, without what was said")
    prompts: bool = option(False, "what is asked, too: whoever may read the log then reads what people ask")


@dataclass(frozen=True)
class Metrics:
    """Numbers for Prometheus, at /metrics."""

    access: str = option(
        "clients",
        "who gets them: clients (whoever may ask anything), administrators, open (all, by TCP without a key), or off",
        applies=Applies.DAEMON,
    )
    identities: bool = option(False, "whether requests are told by who asked to others than administrators, too")


@dataclass(frozen=True)
class Access:
    """Who may come in by TCP, and who may administer apart from root and the daemon's own user."""

    admin_group: str = option("", "members of this group may load, unload and restart over the Unix socket")
    keys: str = option(
        "",
        "file of the API keys that TCP then asks for, a path or the name of a systemd credential; empty: none",
        applies=Applies.DAEMON,
    )


@dataclass(frozen=True)
class Page:
    """The chat page for browsers."""

    enabled: bool = option(True, "whether there is one, at / of the TCP address")


@dataclass(frozen=True)
class Model:
    """One model and the engine that serves it."""

    model: str = option("", "what vLLM loads: a Hugging Face name or a directory", applies=Applies.ENGINE)
    default: bool = option(False, "serve requests that name no model; needed when there are several")
    files: tuple[str, ...] = option(
        (), "patterns of the hub's files to pull, as in *.safetensors; empty: what vLLM needs"
    )
    args: Mapping[str, Any] = option(
        {}, "flags of `vllm serve`, passed through: max-model-len = 2048", applies=Applies.ENGINE
    )
    env: Mapping[str, Any] = option({}, "environment variables of this engine", applies=Applies.ENGINE, secret=True)
    fit: str = option("refuse", "what becomes of a start for which there cannot be memory: refuse, warn, off")
    environment: str = option(
        "", "its own vLLM, such as vllm==0.33.0, whatever the others run in", applies=Applies.ENGINE
    )

    def flag(self, name: str) -> object:
        """What `args` says of a flag, in whichever way it is written; None if nothing."""
        return next((value for key, value in self.args.items() if key.lstrip("-").replace("_", "-") == name), None)

    @cached_property
    def is_prioritised(self) -> bool:
        """Whether its engine's scheduler minds priorities."""
        return self.flag("scheduling-policy") == "priority"


BUILT_IN_MODELS = {
    "qwen2-7b-instruct": Model("Qwen/Qwen2-7B-Instruct", default=True, args={"max-model-len": 2048}),
}
"""What is served when the configuration names no model."""


@dataclass(frozen=True)
class Config:
    """All of it."""

    listen: Listen = Listen()
    paths: Paths = Paths()
    environment: EnvironmentSettings = EnvironmentSettings()
    supervision: Policy = field(default_factory=Policy)
    defaults: Defaults = Defaults()
    queue: Queue = Queue()
    sse: Sse = Sse()
    relay: Relay = Relay()
    replay: Replay = Replay()
    limits: Limits = field(default_factory=Limits)
    access: Access = Access()
    log: Log = Log()
    metrics: Metrics = Metrics()
    page: Page = Page()
    models: Mapping[str, Model] = field(default_factory=lambda: dict(BUILT_IN_MODELS))

    @cached_property
    def default_model(self) -> str:
        """The name of the model that serves requests which name none."""
        return next(name for name, model in self.models.items() if model.default)


@dataclass
class Current:
    """The configuration in force, for all who look it up whenever they need it. Only a reload puts another one here."""

    config: Config


LOG_FORMATS = ("text", "json")
METRICS_ACCESS = ("clients", "administrators", "open", "off")
FITS = ("refuse", "warn", "off")

_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
"""As browsers write it: in lower case, without a path."""

_PATH_STARTS = ("/", "./", "../", "~")
"""How a directory begins, where a name on the hub could be meant as well."""

_NO_FILE = "name another with --config; the shipped etc/vllmd/vllmd.toml shows every key"

SECTIONS: dict[str, type[Any]] = {
    "listen": Listen,
    "paths": Paths,
    "environment": EnvironmentSettings,
    "supervision": Policy,
    "defaults": Defaults,
    "queue": Queue,
    "sse": Sse,
    "relay": Relay,
    "replay": Replay,
    "limits": Limits,
    "access": Access,
    "log": Log,
    "metrics": Metrics,
    "page": Page,
}


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
