"""What is secret in an environment, so that it goes to nobody who needs it not, and into no log and no file."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_SECRET = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL", re.IGNORECASE)
_INSTALLER_S = re.compile(r"(?:UV|PIP)_")
"""Who downloads packages may need a password for that."""

_PLACE = re.compile(r"_(?:PATH|FILE|DIR|DIRECTORY)$", re.IGNORECASE)
"""Not the secret itself, but where it lies: HF_TOKEN_PATH, by which vllmd.service passes the hub's token."""

LEAST_CHARACTERS = 8
"""A shorter value is no secret, and stands in many lines by chance."""

MOST_CHARACTERS = 64 * 1024
"""So much of a file is looked at."""

STARS = "***"


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a short command may see: all but those whose names speak of secrets."""
    return {name: value for name, value in environ.items() if _INSTALLER_S.match(name) or not _SECRET.search(name)}


def secrets_in(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets themselves, and what is in files that are named; the longest first: one may be part of another."""
    found = {each for name, value in environ.items() if _SECRET.search(name) for each in _secrets(name, value)}
    return tuple(sorted((each for each in found if len(each) >= LEAST_CHARACTERS), key=len, reverse=True))


def _secrets(name: str, value: str) -> list[str]:
    """The value itself, or each line of the file that it names: lines are what is looked through for them."""
    if not _PLACE.search(name):
        return [value]
    with suppress(OSError, ValueError), open(Path(value).expanduser(), encoding="utf-8") as file:
        return [line.strip() for line in file.read(MOST_CHARACTERS).splitlines()]
    return []  # not there, as often; a directory; no text


def redacted(line: str, secrets: Iterable[str]) -> str:
    """`line` with stars in the place of each secret."""
    for secret in secrets:
        line = line.replace(secret, STARS)
    return line
