"""Differential privacy of each worker between real processes: kept, told, and drawn once whatever dies."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.config.file import load_config
from common.records import Phase, TaskKind
from coordinator.owner.export import export
from coordinator.storage.store import Store
from experiments.report.of_run import document
from experiments.simulation import simulate
from tests.experiments.test_simulation import data, digest
from tests.families import write_family
from tests.integration.federation import federation
from worker.ledger import audit_ledger

pytestmark = pytest.mark.slow

BY_WORKER: dict[str, Any] = {
    "privacy__dp__unit": "worker",
    "privacy__weights": "equal",
    "realignment__choice": "random",
}
MASKED = {"privacy__secure": True, "privacy__insecure_keys": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("model"), "bert", TaskKind.TEXT_CLASSIFICATION)


@pytest.mark.parametrize("settings", [{}, MASKED], ids=["seen", "masked"])
def test_a_run_keeps_its_promise_to_every_worker(
    tmp_path: Path, model: Path, settings: dict[str, Any]
) -> None:
    with federation(tmp_path, model, **(BY_WORKER | settings)) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address, "--require-dp", "worker", "--epsilon", "8")
        running.wait()
        status = running.status()
    assert status.phase is Phase.FINISHED and status.round == 2
    for number in (1, 2, 3):
        paid = audit_ledger(tmp_path / f"worker-{number}")
        assert [(charge.round, charge.unit) for charge in paid] == [(1, "worker"), (2, "worker")]
        assert 7.999 < paid[-1].epsilon <= 8.0
        # Neither noise nor what it hides is left at the worker of sums that nobody else sees.
        assert not settings or not list((tmp_path / f"worker-{number}" / "outbox").iterdir())
    told = running.log("coordinator")
    assert "training loss" not in told
    assert "workers are promised epsilon 8, delta 1e-05 over 2 rounds" in told
    store = Store.existing(tmp_path / "run")
    assert [release.round for release in store.secure.releases.all()] == [1, 2]
    assert all(update.loss == 0.0 for number in (1, 2) for update in store.updates(number))
    store.close()
    promised = "differential privacy of each worker: epsilon 8.00 of 8, delta 1e-05, after 2 of 2 sums"
    assert any(line.startswith(promised) for line in status.privacy)
    assert any(promised in line for line in document(tmp_path / "run").lead)
    export(tmp_path / "run", tmp_path / "exported", merge=False)
    facts = json.loads((tmp_path / "exported" / "privacy.json").read_text())
    assert (facts["unit"], facts["epsilon"], facts["sums_told"]) == ("worker", 8.0, 2)
    assert promised in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, MASKED], ids=["seen", "masked"])
def test_simulated_workers_are_hidden_by_noise_as_well(
    tmp_path: Path, model: Path, settings: dict[str, Any]
) -> None:
    with federation(tmp_path, model, **(BY_WORKER | settings)) as running:
        config = load_config(running.write_config())
    found = set()
    for number in (1, 2):
        run = config.run.model_copy(update={"directory": tmp_path / f"simulated-{number}"})
        simulate(config.model_copy(update={"run": run}), data(tmp_path / f"data-{number}"))
        found.add(digest(tmp_path / f"simulated-{number}"))
        store = Store(tmp_path / f"simulated-{number}")
        assert len(store.secure.releases.all()) == 2
        assert all(total.loss == 0.0 for total in store.secure.sums().values())
        store.close()
    # Noise has no seed.
    assert len(found) == 2


def test_a_worker_that_wants_its_examples_hidden_stays_away(tmp_path: Path, model: Path) -> None:
    with federation(tmp_path, model, **BY_WORKER) as running:
        address = running.start_coordinator()["address"]
        running.start_worker(1, address, "--require-dp", "example")
        for _ in running.until("the worker leaves"):
            if "--require-dp asks for that of each example" in running.log("worker-1"):
                break


@pytest.mark.parametrize(
    "fault",
    [
        "step/trained#1=kill",
        "file-synced/update-header#1=kill",
        "file-written/ledger#1=power",
        "file-synced/ledger#1=kill",
        "file-synced/secure-history#3=kill",
        "file-synced/secure-masked.json#1=kill",
        "step/delivered#1=kill",
    ],
)
def test_a_worker_that_dies_draws_and_pays_once_for_what_leaves_it(
    tmp_path: Path, model: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with federation(tmp_path, model, **(BY_WORKER | MASKED)) as running:
        address = running.start_coordinator()["address"]
        for number in (2, 3):
            running.start_worker(number, address)
        monkeypatch.setenv("FEDPFT_FAULT", fault)
        first = running.start_worker(1, address)
        monkeypatch.delenv("FEDPFT_FAULT")
        for _ in running.until("the worker dies"):
            if first.poll() is not None:
                break
        assert first.returncode not in (0, None), running.log("worker-1")
        running.start_worker(1, address)
        running.wait()
        status = running.status()
    assert status.phase is Phase.FINISHED
    paid = audit_ledger(tmp_path / "worker-1")
    assert [charge.round for charge in paid] == [1, 2]
    assert len({charge.draw for charge in paid}) == 2
    assert paid[-1].epsilon <= 8.0
