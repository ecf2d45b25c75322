"""What is secret in an environment, so that it goes to nobody who needs it not, and into no log and no file."""

import re
from collections.abc import Iterable, Mapping

_SECRET = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL", re.IGNORECASE)
_INSTALLER_S = re.compile(r"(?:UV|PIP)_")
"""Who downloads packages may need a password for that."""

LEAST_CHARACTERS = 8
"""A shorter value is no secret, and stands in many lines by chance."""

STARS = "***"


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a short command may see: all but those whose names speak of secrets."""
    return {name: value for name, value in environ.items() if _INSTALLER_S.match(name) or not _SECRET.search(name)}


def secrets_in(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets themselves, the longest first: one may be part of another."""
    found = {value for name, value in environ.items() if _SECRET.search(name) and len(value) >= LEAST_CHARACTERS}
    return tuple(sorted(found, key=len, reverse=True))


def redacted(line: str, secrets: Iterable[str]) -> str:
    """`line` with stars in the place of each secret."""
    for secret in secrets:
        line = line.replace(secret, STARS)
    return line
