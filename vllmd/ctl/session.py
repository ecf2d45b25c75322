"""Conversations that outlive one run: the last one of each terminal, for `-c`, and those that have a name.

A terminal's conversation lies in the user's runtime directory, which is in memory and gone at logout; it is written
only where a terminal is, so that scripts and cron leave no trace. A named one lies in the user's state directory.
Nobody but the user may read either. The daemon keeps nothing.

Several may go on with one conversation at the same time: each keeps what the others have added meanwhile.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from typing import NamedTuple

from vllmd.ctl.failure import Failure
from vllmd.ctl.prompt import Messages
from vllmd.ctl.terminal import Terminal
from vllmd.errors import ExitStatus


class Session(NamedTuple):
    """A place for one conversation.

    Args:
        path: of its file.
        name: as the user calls it; empty for a terminal's.
        owner: the process group leader of the terminal's session: numbers of terminals are used again, and a new
            terminal must not continue what was said on an old one.
    """

    path: str
    name: str = ""
    owner: int = 0

    def load(self) -> tuple[Messages, str | None] | None:
        """What was said so far, and the model's name if one was given; None if there is nothing.

        Raises:
            Failure: it cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                table = json.load(file)
            messages = [_message(each) for each in table["messages"]]
            return (messages, table["model"]) if table["owner"] == self.owner else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(f"cannot read {self.path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise Failure(f"{self.path} holds no conversation", f"begin anew:  rm {self.path}") from error

    def save(self, messages: Messages, model: str | None, before: Messages | None) -> Messages:
        """Writes what was said, whole or not at all; and returns it, with what others have said meanwhile.

        Args:
            messages: the last two are the turn that has just ended.
            before: what stood there when it was looked at last; None to begin anew, whatever stands there.

        Raises:
            Failure: it cannot be written, and the user has asked for it by name.
        """
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with _alone(self.path):
                found = self.load() if before is not None else None
                if found and before is not None:
                    messages = joined(before, found[0], messages)
                table = {"owner": self.owner, "model": model, "messages": messages}
                _write_whole(self.path, json.dumps(table).encode())
        except OSError as error:
            if self.name:  # of a terminal's, `-c` will say that there is nothing to continue
                raise Failure(f"cannot save the session {self.name}: {error.strerror}: {self.path}") from error
        return messages


def joined(before: Messages, theirs: Messages, ours: Messages) -> Messages:
    """A conversation with which several have gone on: what others have added, then the turn that has just ended.

    Args:
        before: what all of them had.
        theirs: what it is by now; not always more: others may have begun anew.
        ours: what we make of it, the last two messages being that turn.
    """
    if theirs[: len(before)] != before:
        return theirs + ours[-2:]
    added = [message for message in theirs[len(before) :] if message["role"] != "system"]
    return ours[:-2] + added + ours[-2:]


def terminal_session(terminal: Terminal, environ: Mapping[str, str]) -> Session | None:
    """The session of this terminal; None without a terminal, or without a place that is gone at logout."""
    directory, device = environ.get("XDG_RUNTIME_DIR"), terminal.device
    if not (directory and device):
        return None
    name = device.removeprefix("/dev/").replace("/", "-")
    return Session(f"{directory}/vllmctl/{name}.json", owner=os.getsid(0))


def named_session(name: str, environ: Mapping[str, str]) -> Session:
    """The session of that name.

    Raises:
        Failure: no file can have that name.
    """
    if not (name and name.isprintable()) or "/" in name or name.startswith("."):
        raise Failure(f"{name!r} cannot be a session's name", "take a word without / in it", ExitStatus.USAGE)
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Session(f"{state}/vllmctl/{name}.json", name)


def nothing_to_continue(session: Session | None) -> Failure:
    """Why `-c` has nothing to go on with."""
    reason = "nothing was asked on this terminal before" if session else "there is no terminal, or no XDG_RUNTIME_DIR"
    return Failure(f"nothing to continue: {reason}", "--session NAME works everywhere", ExitStatus.USAGE)


def _message(table: object) -> dict[str, str]:
    if not isinstance(table, dict):
        raise TypeError
    return {"role": str(table["role"]), "content": str(table["content"])}


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keeps others from writing, flock(2). A file beside does that: what is written is replaced, and NFS locks no
    directories."""
    name = f"{path}.lock"
    while True:
        with open(name, "ab", opener=_for_the_user_alone) as lock:
            flock(lock, LOCK_EX)
            if not _is_at(name, os.fstat(lock.fileno())):
                continue  # whoever had it has removed it
            try:
                yield
            finally:
                os.unlink(name)
            return


def _is_at(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), file)
    except FileNotFoundError:
        return False


def _write_whole(path: str, data: bytes) -> None:
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "xb", opener=_for_the_user_alone) as file:
            file.write(data)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def _for_the_user_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
