"""The compose file and what it mounts fit together, without running it; tests/containers runs it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cli.main import app
from common.config.file import load_config
from common.config.serving import load_serve_config, submitted_config

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.serve.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker-")]
# A typer group is a click group with commands.
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def options(command: str) -> set[str]:
    return {name for p in COMMANDS[command].params for name in p.opts}


def mounts(service: str) -> dict[str, str]:
    """What is mounted where, of a service."""
    pairs = (volume.split(":")[:2] for volume in SERVICES[service]["volumes"])
    return {target: source for source, target in pairs}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for published in service.get("ports", ()):
        assert published.startswith("127.0.0.1:")


@pytest.mark.parametrize("services", [SERVICES, GPU["services"]], ids=["cpu", "gpu"])
def test_workers_are_started_with_options_that_they_know(services: dict[str, Any]) -> None:
    for name in WORKERS:
        given = [word for word in services[name]["command"] if word.startswith("--")]
        assert set(given) <= options("worker")
        assert "--tls" in given


def test_a_gpu_is_given_to_services_that_exist() -> None:
    assert set(GPU["services"]) == {"coordinator", *WORKERS}
    assert set(GPU["services"]) < set(SERVICES)


def test_every_side_has_volumes_of_its_own() -> None:
    for target in ("/private", "/tls", "/data"):
        sources = [mounts(name)[target] for name in ("coordinator", *WORKERS)]
        assert len(set(sources)) == len(sources)
    used = {s for name in SERVICES for s in mounts(name).values() if not s.startswith(".")}
    assert used == set(COMPOSE["volumes"])


def test_what_is_mounted_from_the_repository_is_there() -> None:
    for name in SERVICES:
        for source in mounts(name).values():
            assert not source.startswith(".") or (DEPLOY / source).exists(), source


def test_the_runs_configuration_is_valid_and_reachable() -> None:
    path = DEPLOY / "compose" / "run.toml"
    config = load_config(path)
    assert set(config.admission.workers or ()) == set(WORKERS)
    # Every path is below something that the coordinator mounts.
    text = tomllib.loads(path.read_text())
    paths = [Path(found) for found in re.findall(r"'(/\w[^']*)'", str(text))]
    assert len(paths) >= 7
    assert all(any(p.is_relative_to(target) for target in mounts("coordinator")) for p in paths)
    health = SERVICES["coordinator"]["healthcheck"]["test"]
    assert health == ["CMD", "fedpft-health", "/etc/fedpft/run.toml"]


def test_a_server_of_many_runs_takes_the_run_that_comes_with_it() -> None:
    server, owner = SERVE["services"]["coordinator"], SERVE["services"]["owner"]
    command = server["command"]
    assert command[0] == "serve" and {word for word in command if word.startswith("--")} <= options("serve")
    volumes = dict(volume.split(":")[1::-1] for volume in server["volumes"])
    file = volumes[command[command.index("--config") + 1]]
    serving = load_serve_config(DEPLOY / file, {})
    assert server["healthcheck"]["test"] == ["CMD", "fedpft-health", "/etc/fedpft/serve.toml"]
    assert serving.server.health is not None
    alone = load_config(DEPLOY / "compose" / "run.toml").server
    # What is published, scraped and probed lies where it does with one run.
    for name in ("listen", "metrics", "page", "health"):
        assert getattr(serving.server, name) == getattr(alone, name), name
    (submitted,) = [v.split(":")[0] for v in owner["volumes"] if v.endswith("submit.toml:ro")]
    text = (DEPLOY / submitted).read_text()
    config = submitted_config(text, (), serving, Path("/data/runs/x"), Path("/data"))
    assert set(config.admission.workers or ()) == set(WORKERS)
    mounted = [Path(target) for target in volumes]
    paths = [Path(found) for found in re.findall(r"'(/\w[^']*)'", str(tomllib.loads(text)))]
    assert len(paths) == 3
    assert all(any(path.is_relative_to(target) for target in mounted) for path in paths)
    # The rest is that of the services that it lies over.
    for name, service in SERVE["services"].items():
        known = {volume.split(":")[0] for volume in SERVICES[name]["volumes"]}
        assert {v.split(":")[0] for v in service["volumes"] if not v.startswith(".")} <= known


def test_prometheus_scrapes_every_service() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {
        job["job_name"]: [target for group in job["static_configs"] for target in group["targets"]]
        for job in scraped["scrape_configs"]
    }
    metrics = str(load_config(DEPLOY / "compose" / "run.toml").server.metrics).rpartition(":")[2]
    assert jobs == {
        "fedpft-coordinator": [f"coordinator:{metrics}"],
        "fedpft-worker": [f"{name}:7072" for name in WORKERS],
    }
    assert scraped["rule_files"] == ["rules.yml", "alerts.yml"]


def test_certificates_are_made_for_every_side() -> None:
    script = (DEPLOY / "compose" / "certificates.sh").read_text()
    given = set(re.findall(r"--[a-z-]+", script))
    issue = COMMANDS["certs"].commands["issue"]
    assert given <= {name for p in issue.params for name in p.opts}
    made = {target.removeprefix("/files/") for target in mounts("certificates") if "tls-" in target}
    assert made == {"tls-coordinator", "tls-admin", *(f"tls-{name[-1]}" for name in WORKERS)}


def test_both_images_share_all_stages_but_the_last() -> None:
    """So that they share their layers, too."""
    texts = [(DEPLOY / f"{name}.Dockerfile").read_text() for name in ("coordinator", "worker")]
    shared = [text[text.index("\nFROM") : text.index("VOLUME /data")] for text in texts]
    assert shared[0] == shared[1]
    for text in texts:
        assert "HEALTHCHECK" in text
        users = re.findall(r"^USER (\w+)", text, re.MULTILINE)
        assert users[-1] == "10001"
