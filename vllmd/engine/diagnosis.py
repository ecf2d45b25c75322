"""Why uv or pip failed, from what it said, and what that means to whoever might try again. Pure.

The words were recorded from uv 0.13 and pip 23.2, against a closed port, and a server that fails on purpose.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vllmd.errors import IndexUnreachable, InstallError, NotInstallable


def last_words(lines: Sequence[str], limit: int = 600) -> str:
    """The last meaningful lines of a failed command as one: from its last error on, else the last line."""
    return _last_error(lines)[:limit].rstrip(" .")


def _last_error(lines: Sequence[str]) -> str:
    words = [" ".join(line.split()) for line in lines if line.strip()]
    errors = [i for i, line in enumerate(words) if line.lower().startswith("error")]
    text = " ".join(words[errors[-1] :] if errors else words[-1:])
    return re.sub(r"^error:\s*", "", text, flags=re.I)


class _Cause(NamedTuple):
    """Why it failed, what to do about it, and what another try would come to."""

    what: str
    hint: str
    kind: type[InstallError] = InstallError


_Signs = Sequence[tuple[str, _Cause]]
"""Regular expressions, each with what it shows; the first one that is found counts."""

_OWN: _Signs = (
    (
        r"No space left on device|os error 28\b|Disk quota exceeded",
        _Cause(
            "the disk is full",
            "free some space where the environments lie (vLLM takes 3 to 15 GB) and where uv has its cache",
        ),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer",
        _Cause(
            "the certificate of the package index is not trusted",
            "name the authority's file in pip's `cert` or in SSL_CERT_FILE",
        ),
    ),
)

_AWAY = (
    r"tcp connect error|dns error|operation timed out|network timeout|client error \(SendRequest\)"
    r"|error reading a body from connection|HTTP status (server error \(5\d\d|client error \(429)"
    r"|Max retries exceeded|too many (5\d\d|429) error responses|Read timed out"
)
"""In the last error: the index was not reached, did not go on, or is out of order."""

_PIP_AWAY = r"Retrying .*after connection broken by[\s\S]*\(from versions: none\)"
"""pip says of an index that it has not reached that it has nothing; of one that it has reached late, what it has."""

_NETWORK = _Cause(
    "the package index cannot be reached",
    "check the network; a mirror or a proxy is taken from pip's configuration, PIP_* and UV_* variables",
)

_SIGNS: _Signs = (
    (
        r"HTTP status client error \(",
        _Cause(
            "the package index does not give what it lists",
            "look at the index, or take another one; a mirror may not be complete, or want credentials",
        ),
    ),
    (
        r"error sending request|Failed to fetch|network was disabled|timed out|[Nn]etwork is unreachable"
        r"|name resolution",
        _NETWORK,
    ),
    (
        r"has an invalid package format|Failed to extract archive|Hash mismatch|MATCH THE HASHES|has an invalid wheel",
        _Cause(
            "what the package index has of it is broken",
            "look at the index, or take another one; a mirror may not be complete",
            NotInstallable,
        ),
    ),
    (
        r"does not satisfy Python|matching Python (ABI|version) tag|requires a different Python",
        _Cause(
            "it is not made for this version of Python",
            "set `python` to an interpreter that it is made for",
            NotInstallable,
        ),
    ),
)


def diagnosis(requirement: str, name: str, lines: Sequence[str], exit_status: int) -> InstallError:
    """Why an installer failed, and what to do about it.

    Args:
        requirement: what was to be installed.
        name: its distribution's name.
        lines: what the installer printed.
        exit_status: its exit status; negative for the signal that killed it.
    """
    words = last_words(lines)
    cause = next(_causes(name, lines, exit_status))
    message = f"{requirement} could not be installed: {cause.what}" + (f": {words}" if words else "")
    return cause.kind(message, cause.hint)


def _causes(name: str, lines: Sequence[str], exit_status: int) -> Iterator[_Cause]:
    """All that it may have been, the surest first."""
    text = "\n".join(lines)
    yield from _shown(_OWN, text)
    if re.search(_AWAY, _last_error(lines)) or re.search(_PIP_AWAY, text):
        yield _NETWORK._replace(kind=IndexUnreachable)
    yield from _shown(_SIGNS, text)
    yield from _missing(name, text)
    yield _unknown(exit_status)


def _shown(signs: _Signs, text: str) -> Iterable[_Cause]:
    return (cause for pattern, cause in signs if re.search(pattern, text))


def _missing(name: str, text: str) -> Iterator[_Cause]:
    """The distribution that no index has: the wanted one, or one that it asks for."""
    pattern = (
        r"no version of (\S+)|Because (\S+) was not found in|No matching distribution found for (\S+)"
        r"|has no wheels with a matching platform()"
    )
    match = re.search(pattern, re.sub(r"\{[^}]*\}", "", text))  # uv puts markers between a name and its version
    if match is None:
        return
    missing = next((group for group in match.groups() if group), name)
    if re.match(rf"{re.escape(name)}([=<>\[;]|$)", missing, flags=re.I):
        what, hint = "there is no such version for this machine and Python", "check the name and the version"
    else:
        what = f"it needs {missing}, which is not to be had"
        hint = "add the index or directory that has it to pip's configuration (extra-index-url, find-links)"
    yield _Cause(what, hint, NotInstallable)


def _unknown(exit_status: int) -> _Cause:
    if exit_status < 0:
        killer = "look for the kernel's OOM killer in the journal"
        return _Cause(f"the installer was killed by signal {-exit_status}", killer)
    return _Cause(f"the installer failed with exit status {exit_status}", "its words are in the journal")
