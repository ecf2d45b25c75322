"""What the configuration says: a frozen dataclass for each table of the file.

Every key, its default and its meaning stand here once; `etc/vllmd/vllmd.toml` shows them all and a test compares the
two. vLLM's own flags are never mirrored: `[models.NAME.args]` goes through untouched. How the file is read and checked
is the business of `config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vllmd import address
from vllmd.lifecycle import Policy
from vllmd.limits import Limits
from vllmd.settings import Applies, option


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
class Memory:
    """Several models in one memory. What does not fit takes turns."""

    max_models: int = option(0, "models in memory at once; 0: as many as fit", minimum=0)
    turn_s: float = option(
        30.0, "seconds that a model which is always asked may go on while others wait for its memory", minimum=0
    )


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
    load: str = option("start", "when it comes into memory: start (of vllmd), demand (a request for it), manual")
    idle_unload_s: float = option(
        0.0, "seconds without a request until vllmd takes it out of memory; 0: never", minimum=0
    )
    sleep_level: int = option(
        0,
        "how vllmd takes it out: 0 unloads it, 1 keeps its weights in main memory (vLLM's sleep mode), 2 drops them",
        minimum=0,
        maximum=2,
        applies=Applies.ENGINE,
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
    memory: Memory = Memory()
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


SECTIONS: dict[str, type[Any]] = {
    "listen": Listen,
    "paths": Paths,
    "environment": EnvironmentSettings,
    "supervision": Policy,
    "defaults": Defaults,
    "queue": Queue,
    "memory": Memory,
    "sse": Sse,
    "relay": Relay,
    "replay": Replay,
    "limits": Limits,
    "access": Access,
    "log": Log,
    "metrics": Metrics,
    "page": Page,
}
