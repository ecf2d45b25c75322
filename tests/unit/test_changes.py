"""What differs between two configurations, and what each difference takes."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from vllmd.changes import compare, in_force
from vllmd.engine.plan import Plan
from vllmd.limits import Allowance
from vllmd.sections import SECTIONS, Config, Model, Paths
from vllmd.settings import Applies
from vllmd.statuses import Change

BEFORE = Config(models={"tiny": Model("models/tiny", default=True, args={"a": 1, "b": True}, env={"HF_TOKEN": "hf_1"})})


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, Mapping):
        return {"uid:1": Allowance(running=1)}
    return f"{value}x" if isinstance(value, str) else ("x",)


def changed(section: str, key: str) -> Config:
    table = getattr(BEFORE, section)
    return replace(BEFORE, **{section: replace(table, **{key: other(getattr(table, key))})})


KEYS = [(section, each.name) for section, cls in SECTIONS.items() for each in fields(cls)]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_is_seen_and_either_put_in_force_or_left_to_the_next_vllmd(section: str, key: str) -> None:
    after = changed(section, key)
    (change,) = compare(BEFORE, after)
    assert change.key in (f"{section}.{key}", f"{section}.{key}.uid:1")
    allowed = in_force(BEFORE, after)
    assert allowed == (BEFORE if change.applies == Applies.DAEMON else after)
    assert compare(allowed, after) == ((change,) if change.applies == Applies.DAEMON else ())


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_key_takes_a_new_engine_if_the_engine_would_be_another(section: str, key: str) -> None:
    """The declaration of the key and the digest by which engines are told apart say the same."""
    after = changed(section, key)
    (change,) = compare(BEFORE, after)
    allowed = in_force(BEFORE, after)
    assert (digest(BEFORE) != digest(allowed)) is (change.applies == Applies.ENGINE)
    assert change.models == (("tiny",) if change.applies == Applies.ENGINE else ())


def digest(config: Config) -> str:
    (model,) = config.models.values()
    return Plan("tiny", model, config.environment, config.paths, {}).digest


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ({"model": "models/other"}, Change("models.tiny.model", '"models/tiny"', '"models/other"')),
        ({"args": {"a": 2, "b": True}}, Change("models.tiny.args.a", "1", "2")),
        ({"args": {"b": True}}, Change("models.tiny.args.a", "1", "")),
        ({"args": {"a": 1, "b": True, "c": [1, "x"]}}, Change("models.tiny.args.c", "", '[1, "x"]')),
        ({"args": {"a": True, "b": True}}, Change("models.tiny.args.a", "1", "true")),
        ({"env": {"HF_TOKEN": "hf_2"}}, Change("models.tiny.env.HF_TOKEN", '"…"', '"…"')),
        ({"env": {}}, Change("models.tiny.env.HF_TOKEN", '"…"', "")),
    ],
)
def test_a_model_is_compared_key_by_key_and_its_secrets_stay_secret(model: dict[str, Any], change: Change) -> None:
    after = replace(BEFORE, models={"tiny": replace(BEFORE.models["tiny"], **model)})
    assert compare(BEFORE, after) == (replace(change, applies=Applies.ENGINE, models=("tiny",)),)
    assert digest(after) != digest(BEFORE)


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ({"load": "demand"}, Change("models.tiny.load", '"start"', '"demand"')),
        ({"idle_unload_s": 60.0}, Change("models.tiny.idle_unload_s", "0.0", "60.0")),
        ({"sleep_level": 1}, Change("models.tiny.sleep_level", "0", "1", Applies.ENGINE, ("tiny",))),
    ],
)
def test_when_a_model_comes_and_goes_takes_no_engine_but_how_it_does(model: dict[str, Any], change: Change) -> None:
    after = replace(BEFORE, models={"tiny": replace(BEFORE.models["tiny"], **model)})
    assert compare(BEFORE, after) == (change,)
    assert in_force(BEFORE, after) == after


def test_which_model_is_the_default_takes_no_engine() -> None:
    models = {"a": Model("m", default=True), "b": Model("m")}
    swapped = {"a": Model("m"), "b": Model("m", default=True)}
    found = compare(replace(BEFORE, models=models), replace(BEFORE, models=swapped))
    assert found == (
        Change("models.a.default", "true", "false"),
        Change("models.b.default", "false", "true"),
    )


def test_models_come_and_go() -> None:
    after = replace(BEFORE, models={"new": Model("models/new", default=True)})
    assert compare(BEFORE, after) == (
        Change("models.tiny", '"models/tiny"', "", Applies.ENGINE, ("tiny",)),
        Change("models.new", "", '"models/new"', Applies.ENGINE, ("new",)),
    )


def test_the_environment_concerns_the_models_that_stay() -> None:
    after = replace(changed("environment", "path"), models={**BEFORE.models, "new": Model("m")})
    assert compare(BEFORE, after)[0].models == ("tiny",)


def test_nothing_differs_from_itself() -> None:
    assert compare(BEFORE, BEFORE) == ()
    assert in_force(BEFORE, BEFORE) == BEFORE


def test_directories_stay_until_the_next_vllmd() -> None:
    after = replace(BEFORE, paths=Paths("/a", "/b", "/c"))
    assert in_force(BEFORE, after).paths == BEFORE.paths
