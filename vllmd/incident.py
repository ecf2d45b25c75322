"""An incident: what is known of an engine's end that nobody asked for, as it stands in its file and goes over the wire.

Files may be broken, or another version's, so that reading looks at every value: what comes back is what it says it is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vllmd.settings import fits

T = TypeVar("T")

NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}-[A-Za-z0-9-]{1,60}")
"""What an incident is called, in the list and, with `.json` behind it, in its directory; by name is by age."""


@dataclass(frozen=True)
class ProcessFacts:
    """One process of the engine (proc(5)), as it was found.

    Args:
        state: R running, S sleeping, D waiting for the disk, T stopped, Z dead.
        cpu_s: CPU seconds that it has used.
        rss_mib: memory that it holds.
        waits_in: the kernel function that it sleeps in; empty if it may not be known.
        stack: the stacks of its threads, or why there are none.
    """

    pid: int
    name: str
    state: str
    cpu_s: float
    rss_mib: int
    waits_in: str
    stack: str = ""


@dataclass(frozen=True)
class Versions:
    """What was at work; empty where nobody could say.

    Args:
        vllmd: ours.
        vllm, python: those of the engine's environment.
        kernel: Linux'.
        driver: the GPUs'.
    """

    vllmd: str = ""
    vllm: str = ""
    python: str = ""
    kernel: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Incident:
    """An engine's end that nobody asked for, at a glance.

    Args:
        id: its name.
        at: when it was written down, Unix seconds.
        model, generation: whose end it was.
        cause: the class of the failure.
        reason: what happened, one sentence.
        hint: what to do about it; empty when there is nothing sensible to say.
        lived_s: seconds from the engine's start to its end.
        was_ready: whether it had served.
    """

    id: str
    at: float
    model: str
    generation: int
    cause: str
    reason: str
    hint: str
    lived_s: float
    was_ready: bool


@dataclass(frozen=True)
class IncidentReport(Incident):
    """The whole of it.

    Args:
        permanent: whether trying again cannot help.
        config_digest: the same for engines that were started in the same way.
        versions: what was at work.
        gpus: a line for each GPU and each process that held its memory; empty where there is no way to ask.
        processes: the engine's, the guard first; empty if they were gone already.
        lines: what the engine printed last.
    """

    permanent: bool = False
    config_digest: str = ""
    versions: Versions = Versions()
    gpus: tuple[str, ...] = ()
    processes: tuple[ProcessFacts, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def glance(self) -> Incident:
        """Only what a list tells."""
        return Incident(**{each.name: getattr(self, each.name) for each in fields(Incident)})


def read(cls: type[T], value: object) -> T:
    """Reads one of the above from its JSON; keys of a later version are passed over.

    Raises:
        ValueError: a value is missing, or of another type.
    """
    hints, table = get_type_hints(cls), value if isinstance(value, Mapping) else None
    if table is None:
        raise ValueError(f"expected an object, found {json.dumps(value)[:80]}")
    found: dict[str, Any] = {}
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name in table:
            found[each.name] = _value(hints[each.name], table[each.name], each.name)
        elif each.default is MISSING:
            raise ValueError(f"{each.name}: missing")
    return cls(**found)


def _value(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name}: expected a list")
        return tuple(_value(get_args(hint)[0], each, name) for each in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return read(hint, value)
    if not fits(value, hint):
        raise ValueError(f"{name}: expected {hint.__name__}, found {json.dumps(value)[:80]}")
    return value
