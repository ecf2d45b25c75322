"""Records of the log are lines, whatever stands in them; secrets are known by their names and told nobody."""

import logging
import sys
from pathlib import Path
from types import TracebackType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmd.engine.redaction import redacted, secrets_in, without_secrets
from vllmd.oneline import OneLine, escaped

Caught = tuple[type[BaseException], BaseException, TracebackType | None]


def record(message: str, caught: Caught | None = None) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "x", 1, "tiny: %s", (message,), caught)


@given(st.text())
def test_a_record_is_one_printable_line(text: str) -> None:
    line = OneLine("%(levelname)s %(message)s").format(record(text))
    assert len(line.splitlines()) == 1
    assert line.startswith("INFO tiny: ")
    assert all(character == "\t" or character >= " " for character in line)
    assert escaped(line) == line


def test_ordinary_words_stay_as_they_are() -> None:
    for text in ("plain", "Grüße, 漢字 🙂", "a\tb", "a\u202fb", "[2J \\x1b"):
        assert escaped(text) == text


def test_whatever_is_written_out_is_noticed_at_a_look() -> None:
    written_out = [chr(code) for code in range(sys.maxunicode + 1) if escaped(f"\x00{chr(code)}")[4:] != chr(code)]
    assert len(written_out) > 70
    assert all(escaped(each) != each for each in written_out)


def test_a_traceback_keeps_its_lines() -> None:
    try:
        int("x")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    told = OneLine("%(message)s").format(record("a\nb", caught)).splitlines()
    assert told[:2] == [r"tiny: a\x0ab", "Traceback (most recent call last):"]
    assert sys.exc_info() == (None, None, None)


SECRET = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "APIKEY", "DB_PASSWORD"]
PLAIN = [
    "PATH",
    "TOKENIZERS_PARALLELISM",
    "HOME",
    "CUDA_VISIBLE_DEVICES",
    "PIP_INDEX_URL",
    "UV_INDEX_PASSWORD",
    "KEYMAP",
]


@pytest.mark.parametrize("name", SECRET)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert without_secrets({name: "x", "PATH": "y"}) == {"PATH": "y"}
    assert secrets_in({name: "0123456789"}) == ("0123456789",)
    assert secrets_in({name: "short"}) == (), "that would strike out half of the log"


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_none_goes_to_short_commands(name: str) -> None:
    assert without_secrets({name: "x"}) == {name: "x"}


def test_a_secret_in_a_file_is_one_and_its_place_is_none(tmp_path: Path) -> None:
    file = tmp_path / "hub-token"
    assert secrets_in({"HF_TOKEN_PATH": str(file), "CREDENTIALS_DIRECTORY": str(tmp_path)}) == (), "nothing is there"
    file.write_text("# mine\nhf_0123456789\nhf_abcdefghij\n")
    secrets = secrets_in({"HF_TOKEN_PATH": str(file)})
    assert redacted(f"hf_0123456789 from {file}, hf_abcdefghij too", secrets) == f"*** from {file}, *** too"


def test_the_longest_is_struck_out_first() -> None:
    secrets = secrets_in({"A_TOKEN": "0123456789", "B_TOKEN": "0123456789abc"})
    assert redacted("x 0123456789abc y 0123456789", secrets) == "x *** y ***"
