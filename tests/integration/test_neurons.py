"""A run that tunes FFN neurons in full, by real processes: the same bits as simulated, with alignments."""

from pathlib import Path

import pytest

from common.config.file import load_config
from common.model.adapter import RESIDUAL
from common.records import Phase, TaskKind
from common.storage.tensors import TensorFile
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.experiments.test_simulation import data, digest
from tests.families import write_family
from tests.integration.federation import federation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("targets", ["neurons", "attention+neurons"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_the_services_end_with_the_simulations_adapter(tmp_path: Path, model_type: str, targets: str) -> None:
    model = write_family(tmp_path / "model", model_type, TaskKind.TEXT_CLASSIFICATION)
    settings = {"adapter__targets": targets, "training__neuron_learning_rate": 2e-3}
    with federation(tmp_path, model, **settings, aggregation__optimizer="momentum") as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        status = running.status()
        config = load_config(tmp_path / "run.toml")
    assert status.phase is Phase.FINISHED
    # An alignment of neurons lay between the rounds.
    store = Store.existing(tmp_path / "run")
    assert store.alignments.done_after(1)
    latest = store.latest_adapter()
    assert latest is not None
    adapter = TensorFile(store.artifacts.path(latest[1].sha256)).load()
    changes = [tensor for name, tensor in adapter.items() if name.endswith(RESIDUAL)]
    assert len(changes) == 4 * (3 if model_type == "llama" else 2)
    assert all(tensor.abs().max() > 0 for tensor in changes)
    gaps = store.gaps()
    store.close()

    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    config = config.model_copy(update={"run": run})
    scores = simulate(config, data(tmp_path / "again"), score_every=1, score_sub_fm=True).evaluations
    assert digest(tmp_path / "simulated") == status.adapter_sha256
    assert {(e.round, e.model): e.loss for e in scores} == {
        (e.round, e.model): e.loss for e in status.evaluations if e.round > 0
    }
    store = Store.existing(tmp_path / "simulated")
    assert store.gaps() == gaps
    store.close()
