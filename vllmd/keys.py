"""API keys: what a key file holds, and how a key that a client presents is found in it.

A key is `vllmd_` and 32 random bytes, and is shown once, when it is made. The file keeps its SHA-256 only; one round is
enough, as nobody guesses 256 bits. A line has a name, a scope, the digest, and when the key was made:

    # name scope sha256 made
    ci inference 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 2026-01-02T03:04:05Z
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllmd.errors import ConfigError

PREFIX = "vllmd_"
"""So that people and scanners for secrets know a key when they see one."""

RANDOM_BYTES = 32
MOST_BYTES = 1024 * 1024
"""A larger file is no key file."""

HEADING = "# name scope sha256 made\n"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile("[0-9a-f]{64}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Scope(StrEnum):
    """What a key is good for."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True)
class Key:
    """One key, as the file has it.

    Args:
        name: under which it appears in logs, metrics and `vllmctl ps`.
        scope: what it is good for; `admin` includes inference.
        digest: the SHA-256 of its text, in hexadecimal digits.
        made: when, in UTC.
    """

    name: str
    scope: Scope
    digest: str
    made: str

    def __str__(self) -> str:
        return f"{self.name} {self.scope} {self.digest} {self.made}"


def new(name: str, scope: Scope, now: float | None = None) -> tuple[Key, str]:
    """A fresh key, and its text, which nothing keeps.

    Args:
        now: Unix seconds; None for now.

    Raises:
        ConfigError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise ConfigError([f"{name!r} is no name for a key"], "letters, digits and ._@- ; 64 at most")
    text = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return Key(name, scope, digest_of(text), time.strftime(_TIME, time.gmtime(now))), text


def digest_of(text: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def find(keys: Iterable[Key], text: str) -> Key | None:
    """The key that `text` is. It takes as long for a wrong one as for a right one, and however much of it is right."""
    digest, found = digest_of(text), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def parse(text: str) -> tuple[Key, ...]:
    """Reads a key file's text.

    Raises:
        ConfigError: with all lines that are none, by number; what stands in them is not shown.
    """
    problems, keys = list[str](), list[Key]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if (key := _key(line.split())) is None:
            problems.append(f"line {number}: expected a name, a scope, a SHA-256 and a time")
        elif any(other.name == key.name for other in keys):
            problems.append(f"line {number}: there is a key {key.name} already")
        else:
            keys.append(key)
    if problems:
        raise ConfigError(problems, "vllmctl key new, list and revoke write and read this file")
    return tuple(keys)


def _key(words: Sequence[str]) -> Key | None:
    match words:
        case [name, Scope.INFERENCE | Scope.ADMIN as scope, digest, made] if NAME.fullmatch(name):
            return Key(name, Scope(scope), digest, made) if _DIGEST.fullmatch(digest) else None
    return None


def read(path: Path, *, is_credential: bool = False) -> tuple[Key, ...]:
    """Reads a key file.

    Args:
        is_credential: systemd has put it there, with the rights that it thinks right (systemd.exec(5), Credentials).

    Raises:
        ConfigError: it cannot be read, others may read or write it, or it is no key file.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if complaint := "" if is_credential else _complaint(os.fstat(file.fileno()), os.geteuid()):
                raise ConfigError([f"{path}: {complaint}"], f"chmod 600 {path}")
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        hint = "make a key:  vllmctl key new NAME" if isinstance(error, FileNotFoundError) else "it must be vllmd's own"
        raise ConfigError([f"{path}: {(error.strerror or str(error)).lower()}"], hint) from None
    if len(data) > MOST_BYTES:
        raise ConfigError([f"{path}: it is too long for a key file"])
    try:
        return parse(data.decode())
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: it is not UTF-8"]) from None
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems], error.hint) from None


def _at_once(path: str, flags: int) -> int:
    """Opens what is there without waiting: a pipe that nobody writes to would hold up the daemon for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _complaint(facts: os.stat_result, uid: int) -> str:
    """Why a file is none that `uid` may trust; empty if it is."""
    if not stat.S_ISREG(facts.st_mode):
        return "it is no file"
    if facts.st_mode & 0o077:
        return f"others than its owner may use it, its mode is {stat.S_IMODE(facts.st_mode):04o}"
    return "" if facts.st_uid in (0, uid) or uid == 0 else "it belongs to somebody else"


def change(
    path: Path, edit: Callable[[tuple[Key, ...]], tuple[Key, ...]], owner: tuple[int, int] | None = None
) -> tuple[Key, ...]:
    """Reads a key file, if there is one, and writes what `edit` makes of it: at once, whole, for its owner alone.

    Args:
        edit: old keys → new ones. Nobody else changes the file meanwhile; what `edit` raises leaves it as it was.
        owner: uid and gid of a file that is new; None leaves it to whoever writes. One that exists keeps its own.

    Returns:
        The new ones.

    Raises:
        ConfigError: as `read`.
        OSError: it cannot be written.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        keys = edit(read(path) if path.exists() else ())
        _write(path, keys, owner)
    finally:
        os.close(directory)
    return keys


def _write(path: Path, keys: Iterable[Key], owner: tuple[int, int] | None) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
        try:
            _give(file.fileno(), path, owner)
            file.write(HEADING + "".join(f"{key}\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _give(draft: int, path: Path, owner: tuple[int, int] | None) -> None:
    if path.exists():
        facts = path.stat()
        owner = (facts.st_uid, facts.st_gid)
    if owner is not None and owner != (os.geteuid(), os.getegid()):
        os.fchown(draft, *owner)
