"""The compose file, by running it: from outside only, with a coordinator and a worker killed on the way.

`make test-containers` runs this. It builds the images and takes some 10 minutes on 2 cores.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.containers.engine import IMAGES, SERVICES, Engine, Federation
from tests.deploy.dashboards import Query, dashboard_queries, rule_queries
from tests.deploy.metrics import Declared, declared

pytestmark = [pytest.mark.containers, pytest.mark.timeout(7200)]

RUNNING = ("coordinator", "worker-1", "worker-2", "worker-3")


@dataclass(frozen=True)
class Outcome:
    """What is left to look at after the run; times in Unix seconds."""

    federation: Federation
    began: float
    ended: float
    confined: dict[str, dict[str, Any]]
    users: dict[str, str]
    writes: dict[str, str]
    linted: dict[str, str]
    health: str


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    """A whole run, disturbed."""
    federation = Federation(Engine.find())
    federation.build()
    federation.compose("down", "--volumes", check=False)
    began = time.time()
    try:
        federation.compose("up", "--detach", *SERVICES)
        for _ in federation.until("round 1 is under way"):
            if federation.value("fedpft_round") >= 1:
                break
        seen = {service: federation.inspect(service) for service in RUNNING}
        users = {service: federation.exec(service, "id", "-u").strip() for service in RUNNING}
        attempt = "touch /opt/fedpft/x /etc/x /x 2>&1; touch /data/x /tmp/x && echo written"
        writes = {service: federation.exec(service, "sh", "-c", attempt, check=False) for service in RUNNING}
        health = federation.exec("coordinator", "sh", "-c", "fedpft-health /etc/fedpft/run.toml; echo $?")
        linted = {
            service: federation.exec(
                "prometheus",
                *("sh", "-c", "promtool check metrics 2>&1; echo $?"),
                given=federation.metrics(service, port),
            )
            for service, port in (("coordinator", 7071), ("worker-1", 7072))
        }
        for _ in federation.until("round 2 is under way"):
            if federation.value("fedpft_round") >= 2:
                break
        federation.call("kill", "coordinator")
        federation.call("start", "coordinator")
        for _ in federation.until("round 3 is under way"):
            if federation.value("fedpft_round") >= 3:
                break
        federation.call("kill", "worker-2")
        federation.call("start", "worker-2")
        for _ in federation.until("the run is finished"):
            if federation.value('fedpft_phase{phase="finished"}') == 1:
                break
        # The last figures are scraped and the rules evaluated.
        for _ in federation.until("the coordinator ends"):
            if not federation.inspect("coordinator")["State"]["Running"]:
                break
        yield Outcome(federation, began, time.time(), seen, users, writes, linted, health)
    finally:
        federation.compose("down", "--volumes", check=False)


def test_the_killed_run_ends_as_well_as_the_undisturbed_one(outcome: Outcome) -> None:
    status = json.loads(outcome.federation.owner("status", "--run", "/data/run", "--json"))
    assert status["phase"] == "finished"
    assert status["round"] == status["rounds"] == 4
    last = [e for e in status["evaluations"] if e["round"] == 4]
    accuracy = {e["model"]: e["accuracy"] for e in last}
    assert accuracy["fm"] >= 0.93


def test_the_coordinator_ends_well_and_workers_stay_until_they_are_stopped(outcome: Outcome) -> None:
    state = outcome.federation.inspect("coordinator")["State"]
    assert (state["Running"], state["ExitCode"]) == (False, 0), outcome.federation.logs()
    for service in RUNNING[1:]:
        assert outcome.federation.inspect(service)["State"]["Running"], outcome.federation.logs()
        outcome.federation.call("stop", service)
        state = outcome.federation.inspect(service)["State"]
        assert (state["Running"], state["ExitCode"]) == (False, 0), outcome.federation.logs()


def test_images_are_of_use_to_nobody_but_their_user(outcome: Outcome) -> None:
    for service in RUNNING:
        assert outcome.confined[service]["HostConfig"]["ReadonlyRootfs"] is True
        assert outcome.users[service] == "10001"
        assert outcome.writes[service].count("Read-only file system") == 3, outcome.writes[service]
        assert outcome.writes[service].endswith("written\n")


def test_a_worker_sees_no_data_but_its_own(outcome: Outcome) -> None:
    mounted = [
        {m["Destination"]: m["Name"] for m in outcome.confined[service]["Mounts"] if m.get("Name")}
        for service in RUNNING[1:]
    ]
    assert len({mounts["/private"] for mounts in mounted}) == 3
    assert len({mounts["/tls"] for mounts in mounted}) == 3


def test_the_health_check_answers(outcome: Outcome) -> None:
    assert outcome.health.strip() == "0"


@pytest.mark.parametrize("service", ["coordinator", "worker-1"])
def test_what_is_served_passes_promtool(outcome: Outcome, service: str) -> None:
    assert outcome.linted[service].strip() == "0"


@pytest.mark.parametrize("metric", declared().values(), ids=declared())
def test_prometheus_answers_for_every_documented_metric(outcome: Outcome, metric: Declared) -> None:
    for series in metric.series:
        result = in_range(outcome, series)
        assert result, f"{series} was never scraped"
        labels = set(result[0]["metric"]) - {"__name__", "job", "instance", "le"}
        assert labels == set(metric.labels)


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: query.where)
def test_every_panel_had_something_to_show(outcome: Outcome, query: Query) -> None:
    assert in_range(outcome, query.expr), query.expr


def test_rules_are_loaded_and_well(outcome: Outcome) -> None:
    groups = outcome.federation.prometheus("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == {query.where for query in rule_queries()}
    assert {rule["health"] for rule in rules.values()} == {"ok"}


def test_images_are_not_too_large(outcome: Outcome) -> None:
    engine = outcome.federation.engine
    for tag in IMAGES:
        (found,) = json.loads(outcome.federation.run(*engine.call, "image", "inspect", tag))
        # torch for the CPU alone is half of it; one with CUDA is several times larger.
        assert found["Size"] < 2e9, f"{tag}: {found['Size'] / 1e9:.2f} GB"


def in_range(outcome: Outcome, query: str) -> list[dict[str, Any]]:
    """The series that a query had during the run."""
    window = {"start": outcome.began, "end": outcome.ended, "step": "5s"}
    return list(outcome.federation.prometheus("query_range", query=query, **window)["result"])
