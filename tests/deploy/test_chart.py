"""The Helm chart, rendered by Helm itself and held against Kubernetes's schemas and our own settings."""

import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import typer
import yaml

from common.config.run import RunConfig
from worker.cli import worker

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "fedpft"
# The oldest that the chart names, and a recent one.
VERSIONS = ("1.27", "1.33")
WORKER = {"name": "clinic-a", "dataClaim": "a-data", "data": "private.csv", "tlsSecret": "a-tls"}
FULL: dict[str, Any] = {
    "workers": [
        WORKER | {"options": ["--text-column", "review"], "storage": {"size": "1Gi"}},
        WORKER | {"name": "clinic-b", "nodeSelector": {"disk": "ssd"}, "image": "registry/worker:2"},
    ],
    "coordinator": {
        "admit": ["clinic-a", "clinic-b", "clinic-c"],
        "storage": {"className": "fast"},
        "service": {"type": "LoadBalancer"},
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "imagePullSecrets": [{"name": "pull"}],
}
OF_A_DATA_OWNER: dict[str, Any] = {
    "coordinator": {"enabled": False},
    "workers": [WORKER],
    "workerDefaults": {"coordinator": "coordinator.example:7070"},
    "networkPolicy": {
        "workerTo": [{"ports": [{"port": 7070}], "to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}]
    },
}
VALUES = {"default": {}, "full": FULL, "data owner": OF_A_DATA_OWNER}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """All manifests."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="demo")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Templates of all pods."""
    return [owner["spec"]["template"] for owner in of_kind(manifests, "StatefulSet")]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def of_workers(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Their StatefulSets."""
    return [m for m in of_kind(render(values), "StatefulSet") if "fedpft/worker" in m["metadata"]["labels"]]


def test_the_folder_of_a_worker_outlives_its_pod() -> None:
    sizes = {}
    for each in of_workers(FULL):
        (claim,) = each["spec"]["volumeClaimTemplates"]
        name = each["metadata"]["labels"]["fedpft/worker"]
        sizes[name] = claim["spec"]["resources"]["requests"]["storage"]
        (container,) = each["spec"]["template"]["spec"]["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted[claim["metadata"]["name"]] == "/data"
    assert sizes == {"clinic-a": "1Gi", "clinic-b": "10Gi"}


def test_helm_finds_nothing_wrong() -> None:
    found = helm_python.lint(CHART)
    assert not found["errors"]
    assert [m["error"] for m in found["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_manifest_is_valid(values: dict[str, Any], version: str) -> None:
    manifests = render(values)
    assert manifests
    for manifest in manifests:
        # The operator's own kind is in no schema of Kubernetes.
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_container_is_confined(values: dict[str, Any]) -> None:
    for pod in pods(render(values)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert writable == {"/data", "/tmp"}


def test_the_coordinators_configuration_is_one_that_it_takes() -> None:
    (file,) = of_kind(render(FULL), "ConfigMap")
    config = RunConfig.model_validate(tomllib.loads(file["data"]["run.toml"]))
    assert config.tls.certificate == Path("/tls/tls.crt")
    assert config.admission.workers == ("clinic-a", "clinic-b", "clinic-c")
    stateful = next(m for m in of_kind(render(FULL), "StatefulSet") if m not in of_workers(FULL))
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["grpc"]["port"] == int(str(config.server.health).rpartition(":")[2])
    listening = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert config.server.listen.endswith(f":{listening['grpc']}")
    assert str(config.server.metrics).endswith(f":{listening['metrics']}")
    assert config.data.test is not None and config.data.test.path is not None
    paths = [config.run.directory, Path(config.model.path), config.data.test.path]
    mounts = [Path(m["mountPath"]) for m in container["volumeMounts"]]
    assert all(any(path.is_relative_to(mount) for mount in mounts) for path in paths)


def test_a_worker_is_started_with_options_that_it_knows() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(worker)
    known = {name for p in typer.main.get_command(app).params for name in p.opts}
    (one, other) = of_workers(FULL)
    (container,) = one["spec"]["template"]["spec"]["containers"]
    options = [a.partition("=")[0] for a in container["args"] if a.startswith("--")]
    assert set(options) <= known
    assert "--coordinator=demo-fedpft-coordinator:7070" in container["args"]
    assert container["args"][-2:] == ["--text-column", "review"]
    assert other["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/worker:2"


def test_a_data_owner_runs_workers_alone() -> None:
    manifests = render(OF_A_DATA_OWNER)
    assert {m["kind"] for m in manifests} == {"StatefulSet", "Service", "NetworkPolicy"}
    (only,) = of_kind(manifests, "StatefulSet")
    (container,) = only["spec"]["template"]["spec"]["containers"]
    assert "--coordinator=coordinator.example:7070" in container["args"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"coordinator": {"enabled": False}, "workers": [WORKER]}, "workerDefaults.coordinator is HOST:PORT"),
        ({"workers": [{"name": "a", "data": "x", "dataClaim": "y"}]}, "a worker needs a tlsSecret"),
        ({"coordinator": {"tlsSecret": ""}}, "coordinator.tlsSecret names the secret"),
        ({"workers": [WORKER | {"cacheSize": "1Gi"}]}, "cacheSize is storage.size now"),
    ],
)
def test_what_is_missing_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm_python.HelmError, match=says):
        render(values)


def test_a_workers_data_has_nowhere_to_go_but_to_the_coordinator() -> None:
    manifests = render(FULL)
    workers = [p for p in pods(manifests) if "fedpft/worker" in p["metadata"]["labels"]]
    assert len(workers) == 2
    for pod in workers:
        applying = [
            policy["spec"]
            for policy in of_kind(manifests, "NetworkPolicy")
            if selects(policy["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
        ]
        (policy,) = applying
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        assert ports == {53, 7070}
        (to,) = [rule["to"] for rule in policy["egress"] if "to" in rule]
        (coordinator,) = [p for p in pods(manifests) if p not in workers]
        assert selects(to[0]["podSelector"]["matchLabels"], coordinator["metadata"]["labels"])


def test_service_monitors_find_services_and_services_find_pods() -> None:
    manifests = render(FULL)
    monitors = of_kind(manifests, "ServiceMonitor")
    assert {m["spec"]["endpoints"][0]["relabelings"][0]["replacement"] for m in monitors} == {
        "fedpft-coordinator",
        "fedpft-worker",
    }
    for monitor in monitors:
        found = [
            service
            for service in of_kind(manifests, "Service")
            if selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
            and any(port["name"] == "metrics" for port in service["spec"]["ports"])
        ]
        (service,) = found
        behind = [p for p in pods(manifests) if selects(service["spec"]["selector"], p["metadata"]["labels"])]
        assert behind
        for pod in behind:
            (container,) = pod["spec"]["containers"]
            assert "metrics" in {port["name"] for port in container["ports"]}
