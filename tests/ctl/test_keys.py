"""`vllmctl key`: a key is shown once, its file keeps a digest for its owner alone, and nothing is lost on the way."""

import hashlib
import json
import os
import pwd
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ctl.shell import Result, Shell

from vllmd.errors import ExitStatus


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def key(shell: Shell, file: Path, *words: str) -> Result:
    return shell.run("key", *words, "--file", str(file))


def names(shell: Shell, file: Path) -> list[str]:
    return [each["name"] for each in json.loads(key(shell, file, "list", "--json").stdout)["keys"]]


def test_a_new_key_is_shown_once_and_only_its_digest_is_kept(shell: Shell, file: Path) -> None:
    made = key(shell, file, "new", "ci")
    assert made.status == 0
    text = made.stdout.strip()
    assert text.startswith("vllmd_")
    assert len(text) > 43
    assert text not in made.stderr
    assert text not in file.read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(os.listdir(file.parent)) == ["keys"], "no draft is left"
    assert key(shell, file, "new", "ci2").stdout != made.stdout


def test_they_are_listed_without_their_digests(shell: Shell, file: Path) -> None:
    key(shell, file, "new", "ci")
    boss = json.loads(key(shell, file, "new", "boss", "--scope", "admin", "--json").stdout)
    assert (boss["name"], boss["scope"]) == ("boss", "admin")
    listed = key(shell, file, "list")
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["NAME", "SCOPE"], ["ci", "inference"], ["boss", "admin"]]
    for shown in (listed.stdout, key(shell, file, "list", "--json").stdout):
        assert hashlib.sha256(boss["key"].encode()).hexdigest() not in shown


def test_a_key_is_revoked_by_its_name(shell: Shell, file: Path) -> None:
    for name in ("a", "b", "c"):
        key(shell, file, "new", name)
    assert key(shell, file, "revoke", "b").stdout == "b: revoked\n"
    assert names(shell, file) == ["a", "c"]


def test_what_is_impossible_changes_nothing(shell: Shell, file: Path) -> None:
    key(shell, file, "new", "ci")
    before = file.read_text()
    for words, status, said in (
        (("new", "ci"), ExitStatus.ERROR, "already"),
        (("revoke", "other"), ExitStatus.ERROR, "no key other"),
        (("new", "a b"), ExitStatus.USAGE, "no name"),
        (("new", "a\nb inference"), ExitStatus.USAGE, "no name"),
        (("new", ""), ExitStatus.USAGE, "no name"),
        (("new",), ExitStatus.USAGE, "NAME"),
        (("list", "ci"), ExitStatus.USAGE, "NAME"),
        (("frob",), ExitStatus.USAGE, "frob"),
        (("new", "x", "--scope", "root"), ExitStatus.USAGE, "root"),
    ):
        result = key(shell, file, *words)
        assert (result.status, result.stdout) == (status, ""), words
        assert said in result.stderr, words
        assert file.read_text() == before


def test_a_file_that_is_none_is_told_and_left_alone(shell: Shell, file: Path) -> None:
    assert key(shell, file, "list").status == ExitStatus.USAGE
    file.write_text("precious")
    file.chmod(0o600)
    for words in (("new", "ci"), ("revoke", "ci"), ("list",)):
        result = key(shell, file, *words)
        assert result.status == ExitStatus.USAGE
        assert "line 1" in result.stderr
        assert "precious" not in result.stderr, "it could be a key"
    assert file.read_text() == "precious"
    missing = file.parent / "no" / "where"
    assert "no such file" in key(shell, missing, "new", "ci").stderr


def test_of_many_that_change_it_at_once_none_is_lost(shell: Shell, file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: key(shell, file, "new", f"k{n}").status, range(8)))
    assert made == [0] * 8
    assert sorted(names(shell, file)) == [f"k{n}" for n in range(8)]


@pytest.mark.skipif(os.getuid() != 0, reason="ONLY ROOT can give files away: their owner is not tested")
def test_a_file_keeps_its_owner(shell: Shell, file: Path) -> None:
    key(shell, file, "new", "ci")
    nobody = pwd.getpwnam("nobody")
    os.chown(file, nobody.pw_uid, nobody.pw_gid)
    key(shell, file, "new", "other")
    assert (file.stat().st_uid, file.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
