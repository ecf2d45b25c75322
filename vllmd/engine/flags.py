"""The flags that a version of vLLM knows, read from its own help, and those of a model that it does not. Pure.

vLLM's parser takes more than it lists: any unambiguous beginning of a flag, underscores for dashes, and `--table.key`
for a key of a flag whose value is JSON. So a flag counts as unknown only if it is none of these.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vllmd.engine.causes import FLAGS
from vllmd.engine.command import flags
from vllmd.errors import UnknownFlags
from vllmd.settings import nearest

OURS = frozenset({"--uds", "--served-model-name"})
"""Flags that vllmd itself gives to every engine: a listing without them is of something else, and is not believed."""

_ENTRY = re.compile(r"  (--?[A-Za-z][^ ]*.*)")
_FLAG = re.compile(r"--[A-Za-z][\w-]*")
_NO_FLAG = "__no_flag__"


def listed(lines: Iterable[str]) -> tuple[str, ...]:
    """All long flags in what `vllm serve --help=all` prints; none if that is no such list.

    Source: the layout of argparse, which begins each entry with two blanks and the flag's spellings.
    """
    entries = (match[1] for line in lines if (match := _ENTRY.match(line)))
    found = {flag for entry in entries for spelling in entry.split(", ") if (flag := _beginning(spelling))}
    return tuple(sorted(found)) if found >= OURS else ()


def _beginning(spelling: str) -> str:
    match = _FLAG.match(spelling)
    return match[0] if match else ""


def unknown(args: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """The flags of a model's `args` that vLLM does not know, each with the nearest that it does; all, if none is known.

    Args:
        args: as the configuration has them.
        known: as `listed` has found them.
    """
    every = tuple(known)
    if not every:
        return []
    return [f"{flag}{nearest(flag, every)}" for flag in _used(args) if not any(_means(flag, each) for each in every)]


def require_known(args: Mapping[str, Any], vllm: str, known: Iterable[str]) -> None:
    """Raises UnknownFlags if a model's `args` hold flags that `vllm`, a version, does not know."""
    if wrong := unknown(args, known):
        raise UnknownFlags(f"vLLM {vllm} does not know {', '.join(wrong)}", FLAGS)


def _used(args: Mapping[str, Any]) -> list[str]:
    """The flags that `args` becomes, without their values: those may look like flags as well."""
    one_each = {key: value if isinstance(value, bool) else _NO_FLAG for key, value in args.items()}
    return [each for each in flags(one_each) if each != _NO_FLAG]


def _means(flag: str, known: str) -> bool:
    """Whether `flag`, or what it begins with, is `known` or short for it."""
    name = re.split(r"[.=+]", flag)[0]
    return len(name) > 2 and known.startswith(name)
