"""`vllmctl key`: the API keys that a daemon takes on TCP. It works on their file, with or without a daemon."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from vllmd.ctl.commands import Verb
from vllmd.ctl.complete import file_names
from vllmd.ctl.failure import Failure
from vllmd.ctl.invocation import Invocation
from vllmd.ctl.load import say
from vllmd.ctl.table import table
from vllmd.errors import Denied, ExitStatus
from vllmd.keys import Key, Scope, change, new, read

FILE = "/etc/vllmd/keys"
DAEMONS_USER = "vllmd"
HEADINGS = ("NAME", "SCOPE", "MADE")

Edit = Callable[[tuple[Key, ...]], tuple[Key, ...]]


@click.command(cls=Verb)
@click.argument("action", type=click.Choice(("new", "list", "revoke")))
@click.argument("name", required=False)
@click.option(
    "--scope",
    type=click.Choice([each.value for each in Scope]),
    default=Scope.INFERENCE.value,
    help="What a new key is good for.",
)
@click.option("--file", type=click.Path(), default=FILE, help="The file (access.keys).", shell_complete=file_names)
@click.option("--json", "as_json", is_flag=True, help="The list, or the new key, as JSON.")
@click.pass_obj
def key(invocation: Invocation, action: str, name: str | None, scope: str, file: str, as_json: bool) -> ExitStatus:
    """Make, list and revoke API keys.

    A new key is printed once; the file keeps only its digest. The daemon sees a change of the file with the next
    request, one of a credential's file with its next start. A new file of root's is given to the user vllmd, if there
    is one.
    """
    if (name is None) is not (action == "list"):
        raise click.UsageError("`new` and `revoke` take a NAME, `list` takes none", click.get_current_context())
    path = Path(file)
    if action == "list":
        _list(invocation, path, as_json)
    elif action == "new":
        _new(invocation, path, name or "", Scope(scope), as_json)
    else:
        _revoke(invocation, path, name or "")
    return ExitStatus.OK


def _list(invocation: Invocation, path: Path, as_json: bool) -> None:
    keys = read(path)
    shown = [{name: value for name, value in asdict(each).items() if name != "digest"} for each in keys]
    rows = [[each.name, each.scope.value, each.made] for each in keys]
    for line in [json.dumps({"keys": shown})] if as_json else table(HEADINGS, rows):
        invocation.terminal.line(line)


def _new(invocation: Invocation, path: Path, name: str, scope: Scope, as_json: bool) -> None:
    made, text = new(name, scope)

    def add(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if any(each.name == name for each in keys):
            raise Failure(f"there is a key {name} already", f"revoke it first:  vllmctl key revoke {name}")
        return (*keys, made)

    _change(path, add)
    invocation.terminal.note(f"{name}: a key of scope {scope}, in {path}; it is shown only now")
    told = json.dumps({"name": name, "scope": scope, "key": text})
    invocation.terminal.line(told if as_json else text)


def _revoke(invocation: Invocation, path: Path, name: str) -> None:
    def strike(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if all(each.name != name for each in keys):
            raise Failure(f"there is no key {name} in {path}", "see:  vllmctl key list")
        return tuple(each for each in keys if each.name != name)

    _change(path, strike)
    say(invocation, f"{name}: revoked")


def _change(path: Path, edit: Edit) -> None:
    try:
        change(path, edit, _owner())
    except PermissionError as error:
        raise Denied(f"cannot change {path}: {(error.strerror or '').lower()}", "use sudo, or --file") from error
    except OSError as error:
        raise Failure(f"cannot change {path}: {(error.strerror or str(error)).lower()}") from error


def _owner() -> tuple[int, int] | None:
    """Whose a new file is to be: root's would be out of the daemon's reach."""
    import pwd

    if os.geteuid():
        return None
    try:
        user = pwd.getpwnam(DAEMONS_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid
