"""Runs that take nothing but sums, by real processes: the same bits as simulated, and nothing of a single
one."""

from pathlib import Path

import pytest

from common.config.file import load_config
from common.records import Phase, TaskKind
from coordinator.storage.store import Store
from experiments.report.of_run import document
from experiments.simulation import simulate
from tests.experiments.test_simulation import data, digest
from tests.families import write_family
from tests.integration.federation import federation

pytestmark = pytest.mark.slow

SECURE = {"privacy__secure": True, "privacy__insecure_keys": True}


@pytest.mark.parametrize("weights", ["examples", "equal"])
def test_the_services_end_with_the_simulations_adapter(tmp_path: Path, weights: str) -> None:
    model = write_family(tmp_path / "model", "bert", TaskKind.TEXT_CLASSIFICATION)
    settings = SECURE | {"privacy__weights": weights}
    with federation(tmp_path, model, **settings) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        status = running.status()
        config = load_config(tmp_path / "run.toml")
    assert status.phase is Phase.FINISHED
    # An alignment guided by summed counts lay between the rounds.
    store = Store.existing(tmp_path / "run")
    assert store.alignments.done_after(1)
    sums = store.secure.sums()
    store.close()
    assert [s.workers for s in sums.values()] == [3, 3]
    assert {s.examples for s in sums.values()} == {150 if weights == "examples" else 3}
    told = "\n".join(status.privacy)
    assert "sums of 3 to 3 workers" in told and "keys are not signed" in told and "2 rounds summed" in told
    page = "\n".join(document(tmp_path / "run").lead)
    assert "Privacy: sums of 3 to 3 workers" in page and "Offsite-tuning's criterion" in page

    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    config = config.model_copy(update={"run": run})
    scores = simulate(config, data(tmp_path / "again"), score_every=1, score_sub_fm=True).evaluations
    assert digest(tmp_path / "simulated") == status.adapter_sha256
    assert {(e.round, e.model): e.loss for e in scores} == {
        (e.round, e.model): e.loss for e in status.evaluations if e.round > 0
    }
