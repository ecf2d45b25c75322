"""The keys that this daemon takes, as their file has them now."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from vllmd import keys
from vllmd.errors import ConfigError
from vllmd.keys import Key

log = logging.getLogger(__name__)

UNIT_S_CREDENTIAL, CREDENTIAL_S_FILE = "api-keys", "/etc/credstore/vllmd.api-keys"
"""What the shipped vllmd.service passes, and from where."""

_Stamp = tuple[int, int, int, int]


class Keyring:
    """The keys of one file. A change of the file holds from the next request on.

    Args:
        path: the file.
        is_credential: systemd has put it there; it stays as it is until the service is started anew.

    Raises:
        ConfigError: it is no key file, or others may read it.
    """

    def __init__(self, path: Path, *, is_credential: bool = False) -> None:
        self._path = path
        self._is_credential = is_credential
        self._keys: tuple[Key, ...] = ()
        self._stamp: _Stamp | None = None
        self.reload()

    def reload(self) -> int:
        """Reads the file; returns how many keys it holds. Raises ConfigError, and then the old ones stay."""
        stamp = _stamp_of(self._path)
        self._keys = keys.read(self._path, is_credential=self._is_credential)
        self._stamp = stamp
        return len(self._keys)

    def find(self, text: str) -> Key | None:
        """The key that `text` is; None if it is none, or one no longer."""
        self._look()
        return keys.find(self._keys, text)

    def _look(self) -> None:
        """Reads the file again if it is another. Without a file there are no keys; one that is wrong changes none."""
        stamp = _stamp_of(self._path)
        if stamp == self._stamp:
            return
        try:
            self.reload()
            log.info("%s: %d keys", self._path, len(self._keys))
        except ConfigError as error:
            self._stamp = stamp
            self._keys = self._keys if stamp else ()
            log.warning("%s; %s", error.message, "the keys stay as they were" if stamp else "nobody has a key now")


def open_keyring(path: str, environ: Mapping[str, str]) -> Keyring | None:
    """The keys that the configuration names; None where it names none.

    Args:
        path: of the file, or a name without a slash: a credential that systemd should have passed, and has not.
        environ: where systemd says in which directory credentials are.

    Raises:
        ConfigError: they cannot be read.
    """
    if not path:
        return None
    directory = environ.get("CREDENTIALS_DIRECTORY")
    is_credential = bool(directory) and Path(path).parent == Path(directory or "/")
    if "/" not in path or (is_credential and not os.path.exists(path)):
        raise _not_passed(Path(path).name)
    keyring = Keyring(Path(path), is_credential=is_credential)
    if not keyring.reload():
        log.warning("%s holds no key: nobody gets in by TCP.  vllmctl key new NAME", path)
    return keyring


def _not_passed(name: str) -> ConfigError:
    """A credential is missing. systemd starts a service without one whose file is not there (systemd.exec(5))."""
    if name == UNIT_S_CREDENTIAL:
        hint = f"make its file:  vllmctl key new NAME --file {CREDENTIAL_S_FILE}"
    else:
        hint = f"write LoadCredential={name}:FILE in a drop-in of vllmd.service, or a path here"
    return ConfigError([f"access.keys: systemd has passed no credential {name!r}"], hint)


def _stamp_of(path: Path) -> _Stamp | None:
    """Changes when the file does; None where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
