"""Keys: what a file of them may hold, and that a key is found by its whole text and by nothing else."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd import keys
from vllmd.config import locate, parse
from vllmd.errors import ConfigError
from vllmd.keys import Key, Scope
from vllmd.server.keyring import CREDENTIAL_S_FILE, UNIT_S_CREDENTIAL, Keyring, open_keyring


def test_a_key_is_what_it_was_made_as() -> None:
    made, text = keys.new("ci", Scope.ADMIN, now=0)
    assert made == Key("ci", Scope.ADMIN, keys.digest_of(text), "1970-01-01T00:00:00Z")
    assert keys.parse(f"{keys.HEADING}\n{made}\n") == (made,)


def test_no_two_are_alike() -> None:
    assert len({keys.new("ci", Scope.ADMIN)[1] for _ in range(1000)}) == 1000


def test_it_is_found_by_its_whole_text() -> None:
    made = [keys.new(f"k{n}", Scope.INFERENCE) for n in range(5)]
    file = [key for key, _ in made]
    for key, text in made:
        assert keys.find(file, text) is key
        for wrong in (text[:-1], text + "A", text.upper(), "", f" {text}", key.digest, key.name):
            assert keys.find(file, wrong) is None


@given(st.text())
def test_no_text_whatever_is_a_key(text: str) -> None:
    key, _ = keys.new("ci", Scope.INFERENCE)
    assert keys.find([key], text) is None


@given(st.text())
def test_any_file_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert all(isinstance(each, Key) for each in keys.parse(text))


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        "ci",
        f"ci inference {DIGEST}",
        f"ci root {DIGEST} now",
        f"ci INFERENCE {DIGEST} now",
        f"ci inference {DIGEST[1:]} now",
        f"ci inference {'g' * 64} now",
        f"ci inference {DIGEST} now and more",
        f"-ci inference {DIGEST} now",
        f"{'c' * 65} inference {DIGEST} now",
    ],
)
def test_a_wrong_line_is_told_by_its_number_and_not_shown(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.parse(f"# a comment\n\n{line}\n")
    assert caught.value.problems == ["line 3: expected a name, a scope, a SHA-256 and a time"]


def test_two_of_one_name_are_refused() -> None:
    line = f"ci inference {DIGEST} now"
    with pytest.raises(ConfigError, match="line 2: there is a key ci already"):
        keys.parse(f"{line}\n{line}\n")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    for allowed in (0o600, 0o400):
        file.chmod(allowed)
        assert keys.read(file) == ()
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"its mode is {mode:04o}") as caught:
        keys.read(file)
    assert "chmod 600" in caught.value.hint
    assert keys.read(file, is_credential=True) == (), "systemd knows what it does"


def test_what_is_no_file_of_keys(tmp_path: Path) -> None:
    for name, content in (("long", b"#" * (keys.MOST_BYTES + 1)), ("binary", b"\xff\xfe")):
        file = tmp_path / name
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(ConfigError):
            keys.read(file)
    os.mkfifo(tmp_path / "pipe", 0o600)  # which nobody writes to: it is not waited for
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(ConfigError):
            keys.read(path)


# ── the daemon's view of the file ──


def put(file: Path, *texts: str) -> None:
    def edit(old: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(Key(f"k{n}", Scope.INFERENCE, keys.digest_of(text), "now") for n, text in enumerate(texts))

    keys.change(file, edit)


def found(keyring: Keyring, *texts: str) -> list[bool]:
    return [keyring.find(text) is not None for text in texts]


def test_a_change_of_the_file_holds_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    put(file, "a", "b")
    keyring = Keyring(file)
    assert found(keyring, "a", "b", "c") == [True, True, False]
    put(file, "b", "c")
    assert found(keyring, "a", "b", "c") == [False, True, True]
    assert keyring.reload() == 2


def test_a_wrong_file_changes_nothing_and_a_missing_one_revokes_all(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    put(file, "a")
    keyring = Keyring(file)
    file.write_text("half a li")
    assert found(keyring, "a", "half") == [True, False]
    with pytest.raises(ConfigError):
        keyring.reload()
    assert found(keyring, "a") == [True]
    file.write_text("")
    file.chmod(0o644)
    assert found(keyring, "a") == [True], "others may read it: it is not taken"
    file.unlink()
    assert found(keyring, "a") == [False]
    put(file, "a")
    assert found(keyring, "a") == [True]


def test_without_a_file_there_is_no_keyring_and_a_wrong_one_is_told_at_the_start(tmp_path: Path) -> None:
    assert open_keyring("", {}) is None
    with pytest.raises(ConfigError, match="no such file"):
        open_keyring(str(tmp_path / "keys"), {})
    with pytest.raises(ConfigError, match="no credential 'keys'") as caught:
        open_keyring("keys", {})
    assert "LoadCredential=keys:" in caught.value.hint


@pytest.mark.parametrize("environ", [{}, {"CREDENTIALS_DIRECTORY": "/nonexistent"}])
def test_the_unit_s_own_credential_is_told_with_its_file(environ: dict[str, str]) -> None:
    unit = (Path(__file__).parents[2] / "systemd/vllmd.service").read_text()
    assert f"LoadCredential={UNIT_S_CREDENTIAL}:{Path(CREDENTIAL_S_FILE).name}\n" in unit
    config = locate(parse({"access": {"keys": UNIT_S_CREDENTIAL}}), environ, uid=1)
    with pytest.raises(ConfigError, match="no credential 'api-keys'") as caught:
        open_keyring(config.access.keys, environ)
    assert CREDENTIAL_S_FILE in caught.value.hint


def test_a_credential_s_rights_are_systemd_s(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    put(file, "a")
    file.chmod(0o440)
    with pytest.raises(ConfigError):
        open_keyring(str(file), {})
    with pytest.raises(ConfigError):
        open_keyring(str(file), {"CREDENTIALS_DIRECTORY": "/elsewhere"})
    keyring = open_keyring(str(file), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert keyring is not None
    assert found(keyring, "a") == [True]


def test_a_file_of_somebody_else_s_is_refused(tmp_path: Path) -> None:
    facts = os.stat_result((0o100600, 0, 0, 1, 4711, 0, 0, 0, 0, 0))
    assert keys._complaint(facts, uid=4712) == "it belongs to somebody else"
    assert keys._complaint(facts, uid=4711) == ""
