"""The shipped etc/vllmd/vllmd.toml shows every key, and each at its default."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tomli

from vllmd.config import load, parse
from vllmd.sections import SECTIONS, Config, Model

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "etc" / "vllmd" / "vllmd.toml"
README = (ROOT / "README.md").read_text()
COMMENTED_KEY = re.compile(r"^# ?(?=[\w-]+ = )", re.MULTILINE)


def uncommented() -> str:
    return COMMENTED_KEY.sub("", SHIPPED.read_text())


def test_it_is_the_defaults() -> None:
    assert load(SHIPPED) == Config()


@pytest.mark.parametrize(("section", "cls"), SECTIONS.items())
def test_it_shows_every_key_of_every_section_and_no_other(section: str, cls: type[object]) -> None:
    shown = tomli.loads(uncommented())[section]
    assert sorted(shown) == sorted(each.name for each in fields(cls))  # type: ignore[arg-type]


def test_it_shows_every_key_of_a_model_and_no_other() -> None:
    for model in tomli.loads(uncommented())["models"].values():
        assert sorted(model) == sorted(each.name for each in fields(Model))


def test_it_shows_no_section_that_is_unknown() -> None:
    assert set(tomli.loads(uncommented())) == {*SECTIONS, "models"}


def test_what_is_commented_out_stands_at_its_default() -> None:
    shown = parse(tomli.loads(uncommented()))
    assert replace(shown, models=Config().models) == Config()
    assert {name: replace(model, args={}, env={}) for name, model in shown.models.items()} == {
        name: replace(model, args={}, env={}) for name, model in Config().models.items()
    }
    # What stands under args and env are vLLM's words: beside the defaults there are examples.
    for name, model in Config().models.items():
        assert model.args.items() <= shown.models[name].args.items()


def test_what_the_readme_shows_can_be_used() -> None:
    (shown,) = re.findall("^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(parse(tomli.loads(shown)).models) == 2


def test_only_what_differs_from_no_file_at_all_is_not_commented_out() -> None:
    assert set(tomli.loads(SHIPPED.read_text())["models"]) == set(Config().models)
    sections = {name: table for name, table in tomli.loads(SHIPPED.read_text()).items() if name != "models"}
    assert not any(sections.values())
