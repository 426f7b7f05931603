"""The provisioned dashboards and rules, as queries."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.metrics import PROCESS, declared

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = (DEPLOY / "prometheus" / "rules.yml", DEPLOY / "prometheus" / "alerts.yml")

_SERIES = re.compile(r"\b(?:instance:)?(?:fedpft|process)_\w+(?::\w+)?")
_MATCHED = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@dataclass(frozen=True)
class Query:
    """What a panel or a rule asks, with dashboard variables in place of any value."""

    where: str
    expr: str

    @property
    def series(self) -> set[str]:
        """Names of the series that it reads."""
        return set(_SERIES.findall(self.expr))

    @property
    def labels(self) -> set[str]:
        """Labels that it selects by."""
        return set(_MATCHED.findall(self.expr))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels, also those in rows."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_queries() -> list[Query]:
    """Every query of every panel; "$name" is any value."""
    found = []
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        names = "|".join(variable["name"] for variable in dashboard["templating"]["list"])
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expr = re.sub(rf"\$(?:{names})\b", ".*", target["expr"])
                found.append(Query(f"{path.name}: {panel['title']}", expr))
    return found


def rule_queries() -> list[Query]:
    """Every expression of the recording and alerting rules."""
    return [Query(rule.get("record") or rule["alert"], rule["expr"]) for rule in _rules()]


def recorded() -> set[str]:
    """Names of the recorded series."""
    return {rule["record"] for rule in _rules() if "record" in rule}


def known_series() -> dict[str, set[str]]:
    """Labels by series, of everything that a query may name."""
    served = {name: set(m.labels) for m in declared().values() for name in m.series}
    return served | {name: set() for name in PROCESS} | {name: set() for name in recorded()}


def _rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]
