"""The alerts and the example for Prometheus: well-formed, silent where all is well, loud where it is not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vllmd.lifecycle import State
from vllmd.server.outcomes import Outcome

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "packaging" / "prometheus"
RULES = (PROMETHEUS / "vllmd.rules.yml").read_text()
ALERTS = RULES.split("- alert: ")[1:]
TESTS = ROOT / "tests" / "fixtures" / "alerts.yml"


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("NO promtool(1) HERE: the alerts are not tested; apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_well_formed() -> None:
    promtool("check", "rules", PROMETHEUS / "vllmd.rules.yml")


def test_each_alert_goes_off_when_it_should_and_then_only() -> None:
    promtool("test", "rules", TESTS)
    tested = TESTS.read_text()
    assert [each.split()[0] for each in ALERTS if each.split()[0] not in tested] == []


def test_a_test_of_them_can_fail(tmp_path: Path) -> None:
    """`promtool test rules` finds an alert that goes off too late, and one that never does."""
    for before, after in ((") >= 3", ") >= 4"), ('state="failed"', 'state="faild"')):
        assert before in RULES
        (tmp_path / "rules.yml").write_text(RULES.replace(before, after))
        text = TESTS.read_text().replace("../../packaging/prometheus/vllmd.rules.yml", str(tmp_path / "rules.yml"))
        (tmp_path / "alerts.yml").write_text(text)
        with pytest.raises(AssertionError, match="FAILED"):
            promtool("test", "rules", tmp_path / "alerts.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda each: each.split()[0])
def test_each_alert_says_what_is_wrong_and_what_to_do(alert: str) -> None:
    assert re.search(r"severity: (warning|critical)\n", alert)
    for word in ("summary", "description", "runbook"):
        assert re.search(rf'^          {word}: ".+"$', alert, re.MULTILINE), word


def test_states_and_outcomes_are_those_that_there_are() -> None:
    for label, known in (("state", State), ("outcome", Outcome)):
        used = {word for found in re.findall(rf'{label}=~?"([^"]*)"', RULES) for word in found.split("|")}
        assert used, label
        assert used <= {each.value for each in known}


def test_the_example_is_a_configuration_with_and_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "vllmd.rules.yml").write_text(RULES)
    (tmp_path / "key").write_text("vllmd_0123")
    example = (PROMETHEUS / "scrape.yml").read_text()
    with_key = re.sub(r"^( +)# (authorization:|  type:|  credentials_file:)", r"\1\2", example, flags=re.MULTILINE)
    assert with_key != example
    for text in (example, with_key.replace("/etc/prometheus/vllmd.key", str(tmp_path / "key"))):
        (tmp_path / "prometheus.yml").write_text(text)
        promtool("check", "config", tmp_path / "prometheus.yml")
