"""The journal's native protocol: fields in, one datagram out (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md). Pure."""

import logging
import struct
from collections.abc import Mapping

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""From logging's levels to those of syslog(3)."""

DEBUG = 7


def priority_of(level: int) -> int:
    """The syslog priority of a level of `logging`; between two levels that of the lower one."""
    return next((priority for least, priority in PRIORITIES if level >= least), DEBUG)


def encode(fields: Mapping[str, str]) -> bytes:
    """One entry.

    Args:
        fields: name → value. Names are capital letters, digits and underscores, and begin with a letter, as those with
            an underscore are journald's own.
    """
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    if "\n" not in value:
        return f"{name}={value}\n".encode(errors="replace")
    told = value.encode(errors="replace")
    return name.encode() + b"\n" + struct.pack("<Q", len(told)) + told + b"\n"
