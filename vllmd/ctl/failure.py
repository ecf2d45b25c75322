"""What went wrong, as vllmctl's user gets to see it: the daemon's error bodies, wording, exit status."""

from collections.abc import Mapping
from typing import Any

from vllmd.errors import ExitStatus, VllmdError, exit_status_of, outcome_of

LOOK = "see:  vllmctl status"
KEY = "set VLLMD_API_KEY, or VLLMD_API_KEY_FILE to a file that holds the key"


class Failure(VllmdError):
    """A failure whose exit status is not that of its kind.

    Args:
        status: what the shell is told.
        source: `engine` if the engine said it.
    """

    def __init__(
        self, message: str, hint: str = "", status: ExitStatus = ExitStatus.ERROR, source: str = "vllmd"
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.source = source


def exit_status(error: VllmdError) -> ExitStatus:
    """What `error` means to the shell."""
    return error.status if isinstance(error, Failure) else outcome_of(error).exit_status


def wording(error: VllmdError) -> str:
    """The message, and whose it is where it is the engine's."""
    source = "   (source: engine)" if isinstance(error, Failure) and error.source == "engine" else ""
    return f"{error.message}{source}"


def read_error(body: object, http_status: int = 0, retry_after: str = "") -> Failure:
    """The failure that an error body tells of.

    The engine's own refusals pass through vllmd unchanged; vllmd names itself, so a body that names nobody is the
    engine's.

    Args:
        body: the JSON of a response or of an event: `{"error": {…}}`, or what came in its place.
        http_status: the status it came with; 0 for an error inside a stream.
        retry_after: that header, seconds; empty if there was none.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, Mapping):
        return Failure(f"the answer was HTTP {http_status} without a reason", LOOK, exit_status_of(None, http_status))
    status = exit_status_of(error.get("code"), http_status)
    source = "vllmd" if error.get("source") == "vllmd" else "engine"
    return Failure(_message(error, source, http_status), _hint(error, status, http_status, retry_after), status, source)


def _message(error: Mapping[str, Any], source: str, http_status: int) -> str:
    message = str(error.get("message") or "no reason was given").strip()
    if source == "engine" and 400 <= http_status < 500:
        return f"engine refused the request: {message}"
    return message


def _hint(error: Mapping[str, Any], status: ExitStatus, http_status: int, retry_after: str) -> str:
    if error.get("hint"):
        return str(error["hint"])
    if status is ExitStatus.DENIED:
        return KEY
    if retry_after.isdigit():
        return f"try again in {retry_after} s"
    return "" if 400 <= http_status < 500 else LOOK
