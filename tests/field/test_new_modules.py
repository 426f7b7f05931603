"""A model whose checkpoint lacks a module, among real services: workers are told what is new, and tune it."""

from pathlib import Path

from transformers import BertForMaskedLM

from common.config.file import load_config
from common.storage.tensors import TensorFile
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import VOCABULARY, write_tokenizer
from tests.experiments.test_simulation import data, digest
from tests.families import small_config
from tests.integration.federation import federation

POOLER = "base_model.model.bert.pooler.dense.weight"


def test_workers_tune_the_pooler_that_masked_language_modelling_left_out(tmp_path: Path) -> None:
    model = tmp_path / "model"
    BertForMaskedLM(small_config("bert", len(VOCABULARY))).save_pretrained(model)
    write_tokenizer(model)
    with federation(tmp_path / "run", model, gradient_gap__batches=1) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        adapter = running.status().adapter_sha256
        config = load_config(tmp_path / "run" / "run.toml")
        assert "its checkpoint lacks bert.pooler, tuned with the head" in running.log("coordinator")
    store = Store.existing(running.run)
    stored, latest = store.sub_model(), store.latest_adapter()
    assert stored is not None and latest is not None
    assert stored[0].new_modules == ("bert.pooler",)
    tuned = TensorFile(store.artifacts.path(latest[1].sha256))[POOLER]
    base = TensorFile(store.artifacts.path(stored[0].base.sha256))["bert.pooler.dense.weight"]
    assert (tuned - base).abs().max() > 1e-3
    store.close()
    # The same bits as in one process.
    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    simulate(config.model_copy(update={"run": run}), data(tmp_path / "again"))
    assert digest(tmp_path / "simulated") == adapter
