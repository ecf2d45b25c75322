"""The key for a daemon that asks for one: from the environment, never from the command line, which others can read."""

from collections.abc import Mapping

from vllmd.ctl.failure import Failure
from vllmd.errors import ExitStatus


def api_key(environ: Mapping[str, str]) -> str:
    """The API key from VLLMD_API_KEY, else from the file that VLLMD_API_KEY_FILE names; empty if there is none.

    Raises:
        Failure: the file cannot be read, or no header can carry the key.
    """
    path = environ.get("VLLMD_API_KEY_FILE")
    key = environ.get("VLLMD_API_KEY", "").strip()
    if path and not key:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                key = file.read().strip()
        except OSError as error:
            raise Failure(f"VLLMD_API_KEY_FILE: cannot read {path}: {error.strerror}", "", ExitStatus.USAGE) from error
    if not (key.isascii() and key.isprintable()):
        raise Failure("the API key holds characters that no header can carry", "", ExitStatus.USAGE)
    return key
