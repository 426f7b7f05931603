"""Dashboards and rules ask for nothing that the services do not serve."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.dashboards import (
    DASHBOARDS,
    RULES,
    Query,
    dashboard_queries,
    known_series,
    panels,
    rule_queries,
)

QUERIES = [*dashboard_queries(), *rule_queries()]
# What Prometheus adds to every series.
TARGET = {"job", "instance", "le"}


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    return found


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_names_series_and_labels_that_exist(query: Query) -> None:
    known = known_series()
    assert query.series <= set(known) or query.expr.startswith("up")
    labels = set[str]().union(*(known.get(name, set()) for name in query.series))
    assert query.labels <= labels | TARGET


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    asked = set[str]().union(*(query.series for query in QUERIES))
    families = {name.removesuffix("_bucket") for name in known_series() if name.startswith("fedpft")}
    families -= {name for name in families if name.endswith(("_sum", "_count"))}
    shown = {name for name in families if any(series.startswith(name) for series in asked)}
    assert families - shown == {"fedpft_build_info", "fedpft_worker_build_info"}


def test_every_query_is_valid(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query.expr} for i, query in enumerate(QUERIES)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([promtool(), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_says_what_each_panel_shows_and_leaves_no_overlap(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "prometheus"
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_pass_promtool(path: Path) -> None:
    done = subprocess.run([promtool(), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_every_alert_fires_on_what_it_is_for_and_not_before() -> None:
    scenarios = Path(__file__).with_name("alerts_test.yml")
    done = subprocess.run([promtool(), "test", "rules", scenarios], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    tested = yaml.safe_load(scenarios.read_text())["tests"]
    fires = {
        test["alertname"] for t in tested for test in t.get("alert_rule_test", ()) if test.get("exp_alerts")
    }
    quiet = {test["alertname"] for test in tested[0]["alert_rule_test"]}
    alerts = {query.where for query in rule_queries() if query.where.startswith("FedPFT")}
    assert fires == quiet == alerts
