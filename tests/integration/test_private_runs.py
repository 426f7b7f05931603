"""Differential privacy between real processes: paid before each training, never too little, and told."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.privacy.accounting import epsilon_of
from common.records import Phase, TaskKind
from coordinator.owner.export import export
from tests.families import write_family
from tests.integration.federation import federation
from worker.ledger import audit_ledger

pytestmark = pytest.mark.slow

PRIVATE = {
    "privacy.dp.unit": "example",
    "privacy.dp.batch_size": 20,
    "realignment.choice": "random",
    "training.optimizer": "sgd",
    "training.weight_decay": 0.0,
    "training.learning_rate": 0.5,
    "training.head_learning_rate": 0.5,
}
MASKED = {"privacy.secure": True, "privacy.insecure_keys": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("model"), "bert", TaskKind.TEXT_CLASSIFICATION)


@pytest.mark.parametrize("settings", [{}, MASKED], ids=["seen", "masked"])
def test_a_run_keeps_its_promise_at_every_worker(
    tmp_path: Path, model: Path, settings: dict[str, object]
) -> None:
    with federation(tmp_path, model, **_keys(PRIVATE | settings)) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address, "--require-dp", "example", "--epsilon", "8")
        running.wait()
        status = running.status()
    assert status.phase is Phase.FINISHED and status.round == 2
    for number in (1, 2, 3):
        paid = audit_ledger(tmp_path / f"worker-{number}")
        assert [charge.round for charge in paid] == [1, 2]
        assert 7.8 < paid[-1].epsilon <= 8.0
        assert paid[0].noise == paid[1].noise
    told = running.log("coordinator")
    # Nobody's loss, for it is of the examples.
    assert "training loss" not in told
    assert "examples are promised epsilon 8, delta 1e-05 over 2 rounds" in told
    export(tmp_path / "run", tmp_path / "exported", merge=False)
    facts = json.loads((tmp_path / "exported" / "privacy.json").read_text())
    assert (facts["epsilon"], facts["rounds_done"]) == (8.0, 2)
    promised = "differential privacy of each example of a worker: epsilon 8"
    assert promised in (tmp_path / "exported" / "README.md").read_text()
    assert any(line.startswith(promised) for line in status.privacy)
    audited = CliRunner().invoke(app, ["audit", str(tmp_path / "worker-1")])
    assert audited.exit_code == 0 and "the ledger is unbroken" in audited.output
    found = json.loads(CliRunner().invoke(app, ["audit", "--json", str(tmp_path / "worker-1")]).output)
    assert [line["round"] for line in found["privacy"]] == [1, 2]


def test_a_worker_whose_budget_is_spent_takes_no_part(tmp_path: Path, model: Path) -> None:
    with federation(
        tmp_path, model, **_keys(PRIVATE | {"rounds.workers": 2, "rounds.minimum": 2})
    ) as running:
        address = running.start_coordinator()["address"]
        # It has paid before, in another run on the same data.
        earlier = running.write_data("worker-1", 40, 1)
        _pay(tmp_path / "worker-1", earlier)
        for number in (1, 2, 3):
            running.start_worker(number, address, "--epsilon", "8")
        running.wait(worker_1=2)
        status = running.status()
    assert status.phase is Phase.FINISHED
    assert "too little is left: after this run these data would have told epsilon" in running.log("worker-1")
    assert len(audit_ledger(tmp_path / "worker-1")) == 1
    # What it has told in other runs is nobody's business.
    assert [(d.worker, d.reason) for d in status.declined] == [
        ("worker-1", "it cannot take part: BudgetSpent")
    ]


@pytest.mark.parametrize(
    "fault",
    [
        "file-written/ledger#1=kill",
        "file-written/ledger#1=power",
        "file-synced/ledger#1=kill",
        "step/trained-a-step#2=kill",
        "step/trained#1=kill",
        "file-synced/update#1=power",
        "step/delivered#1=kill",
    ],
)
def test_a_worker_that_dies_has_paid_for_every_training_that_began(
    tmp_path: Path, model: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with federation(tmp_path, model, **_keys(PRIVATE)) as running:
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
    begun = running.log("worker-1").count("with it, ")
    # What the worker has told of, and one more where it died between the two.
    assert begun <= len(paid) <= begun + 1
    assert {charge.round for charge in paid} == {1, 2}
    assert epsilon_of([charge.paid for charge in paid], 1e-5) <= 8.0


def _keys(settings: dict[str, object]) -> dict[str, object]:
    return {key.replace(".", "__"): value for key, value in settings.items()}


def _pay(folder: Path, data: Path) -> None:
    from common.storage.files import digest_of
    from worker.ledger import Charge, Ledger

    digest = digest_of([data]).partition("/")[0]
    folder.mkdir(exist_ok=True)
    Ledger(folder).write(Charge("earlier", digest, "example", 1, 10, 0.5, 1.0, 1.0, 1e-5, 9.0, 9.0))
