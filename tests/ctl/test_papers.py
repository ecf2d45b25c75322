"""Manual pages and completions as they are checked in: current, complete, and readable with man(1)."""

import os
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import papers
import pytest
import roff

from vllmd.ctl.commands import ENVIRONMENT, MEANINGS, VERBS
from vllmd.ctl.examples import EXAMPLES
from vllmd.sections import SECTIONS, Model

CONTENTS = papers.contents()
MANUALS = [path for path in CONTENTS if path.parent.name == "man"]


def read(path: Path, width: int = 80) -> str:
    """A manual page as it is read. It must be set without a warning."""
    if not (shutil.which("man") and shutil.which("groff")):
        pytest.skip("NO man(1) HERE: the manual pages are not tested; apt-get install man-db groff-base")
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": str(width), "MANROFFOPT": "", "MAN_KEEP_FORMATTING": ""}
    argv = ["man", "-l", "--warnings=w", "-E", "UTF-8", str(path)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("path", CONTENTS, ids=lambda path: path.name)
def test_what_is_checked_in_is_current(path: Path) -> None:
    assert path.exists(), "make papers"
    assert path.read_text() == CONTENTS[path], "the code says something else by now: make papers"


def test_nothing_else_is_checked_in() -> None:
    found = {each for folder in ("man", "completions", "grafana") for each in (papers.PACKAGING / folder).iterdir()}
    assert found == set(CONTENTS)


@pytest.mark.parametrize("path", MANUALS, ids=lambda path: path.name)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_man_sets_it_without_a_warning(path: Path, width: int) -> None:
    assert read(path, width).split()[0].lower().startswith(path.stem.lower())


def test_a_warning_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "x.1"
    page.write_text(CONTENTS[MANUALS[0]] + ".NoSuchMacro\n")
    with pytest.raises(AssertionError, match="NoSuchMacro"):
        read(page)


def test_vllmctl_s_page_has_everything() -> None:
    text = read(MANUALS[0])
    for verb in VERBS:
        assert f"   vllmctl {verb} " in text
    for status in MEANINGS:
        assert f"\n       {int(status)} " in text
    for name, _ in ENVIRONMENT:
        assert name in text
    for option in ("--temperature FLOAT", "-p, --param NAME=VALUE", "-H, --host ADDRESS", "-h, --help"):
        assert option in text
    for lines in EXAMPLES.values():
        for line in lines:
            assert f"\n           {line}\n" in text


def test_its_examples_are_tested() -> None:
    tested = (Path(__file__).parent / "test_examples.py").read_text().replace("\\'", "'")
    for lines in EXAMPLES.values():
        for line in lines:
            words = line[line.index("vllmctl") :] if line.startswith("VLLMD_HOST=") else line
            assert words.replace('\\"', '"') in tested.replace('\\"', '"')


def test_the_configuration_s_page_has_every_key() -> None:
    text = " ".join(read(MANUALS[2], 200).split())
    for name, section in {**SECTIONS, "models.NAME": Model}.items():
        assert f" [{name}] " in text
        for each in fields(section):
            doc = each.metadata["doc"].replace("`", "")
            assert f" {each.name} {doc[:1].upper()}{doc[1:]}. " in text


def test_the_daemon_s_page_has_every_option() -> None:
    text = read(MANUALS[1])
    for option in ("--config FILE", "--verbose", "--version", "--check", "--install", "-h, --help"):
        assert option in text


def test_nothing_in_a_text_means_anything_to_roff(tmp_path: Path) -> None:
    ugly = [".TH x", "'br", "\\fB --x \\n[.g]", "a^b~c`d'e\"f", "-1", "…"]
    page = tmp_path / "x.1"
    page.write_text(roff.page(roff.title("x", 1, "y", "z"), roff.heading("UGLY"), roff.example(ugly)))
    assert [line.strip() for line in read(page).splitlines()[3:-2] if line] == [*ugly[:-1], "..."]


@pytest.mark.parametrize(
    ("plain", "set"), [("`a` b", "\\fBa\\fR b"), ("*x* y*z", "\\fIx\\fR y*z"), ("2 * 3 * 4", "2 * 3 * 4")]
)
def test_marks(plain: str, set: str) -> None:
    assert roff.marked(plain) == set


@pytest.mark.parametrize(("shell", "name"), [("bash", "vllmctl.bash"), ("zsh", "_vllmctl"), ("fish", "vllmctl.fish")])
def test_the_completions_are_scripts_of_their_shells(shell: str, name: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"NO {shell.upper()} HERE: its completion is not tested; apt-get install {shell}")
    argv = [shell, "-n", str(papers.PACKAGING / "completions" / name)]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
