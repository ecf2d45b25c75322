"""The dashboard for Grafana, as JSON that it imports."""

import json
from collections.abc import Iterator
from itertools import count

from panels import COLUMNS, OF, ROWS, Json, Panel

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 39
"""Grafana 10's; later ones bring it up to date when they read it."""


def dashboard() -> str:
    """The file."""
    table = {
        "title": "vllmd",
        "uid": "vllmd",
        "description": "vLLM as a service: models, latency, throughput, queue, engines. Made by `make papers`.",
        "tags": ["vllmd", "vllm", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_restarts()]},
        "panels": list(_panels()),
    }
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[Json]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    return [
        source,
        _choice("instance", "Daemon", "label_values(vllmd_model_state, instance)"),
        _choice("model", "Model", 'label_values(vllmd_model_state{instance=~"$instance"}, model)'),
    ]


def _choice(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _restarts() -> Json:
    return {
        "name": "Restarts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": f"sum by (model, cause) (increase(vllmd_engine_restarts_total{{{OF}}}[$__rate_interval])) > 0",
        "titleFormat": "{{model}} was restarted: {{cause}}",
    }


def _panels() -> Iterator[Json]:
    numbers, y = count(1), 0
    for title, panels in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"id": next(numbers), "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        x, y = 0, y + 1
        height = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            yield _panel(panel, next(numbers), {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, height = x + panel.width, panel.height
        y += height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.doc,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(*each, chr(ord("A") + at)) for at, each in enumerate(panel.targets)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _target(expr: str, legend: str, letter: str) -> Json:
    return {"refId": letter, "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto", "range": True}


def _defaults(panel: Panel) -> Json:
    stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
    custom = {"fillOpacity": 25 if panel.is_stacked else 5, "lineWidth": 1, "showPoints": "never", "stacking": stacking}
    return {
        "unit": panel.unit,
        "min": 0,
        **({} if panel.most is None else {"max": panel.most}),
        "mappings": list(panel.mappings),
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": name} for value, name in panel.steps]},
        "custom": custom if panel.kind == "timeseries" else {},
    }


_OPTIONS: dict[str, Json] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "state-timeline": {"mergeValues": True, "showValue": "auto", "rowHeight": 0.8, "legend": {"showLegend": False}},
}
