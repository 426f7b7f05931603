"""Runs whose sub-FM is sent as int8: the same bits wherever workers are; language models weigh by tokens."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from common.config.file import load_config
from common.data.examples import Columns, Examples, read_examples
from common.model.adapter import Adapted
from common.records import TaskKind
from common.storage.tensors import header_of
from coordinator.owner.audit import audit_run
from coordinator.storage.store import Store
from experiments.clients import Clients, ClientTask, RoundTask, SubModel, Trained, train_client
from experiments.simulation import simulate
from tests.conftest import write_data
from tests.experiments.test_simulation import digest, run
from tests.families import write_family
from tests.integration.federation import federation

INT8 = {"sub_fm.quantization": "int8", "adapter.targets": "attention+ffn"}


class Elsewhere(Clients):
    """Trained on a sub-FM that is built from what travels, as Ray's actors do."""

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        built = elsewhere().adapted()
        return (train_client(built, task, client) for client in clients)


@pytest.mark.slow
def test_what_travels_is_int8_and_trains_as_the_coordinators_own_sub_fm(
    tmp_path: Path, model_folder: Path
) -> None:
    here = run(tmp_path / "here", model_folder, INT8 | {"gradient_gap.batches": 1})
    store = Store.existing(here)
    stored = store.sub_model()
    assert stored is not None and len(stored[0].patches) == 1
    for artifact in (stored[0].base, *stored[0].patches):
        schema = header_of(store.artifacts.path(artifact.sha256))
        matrices = {
            spec.dtype for name, spec in schema.items() if name.endswith("weight") and len(spec.shape) == 2
        }
        assert torch.int8 in matrices
        if artifact is not stored[0].base:
            assert matrices == {torch.int8}
    assert all(0 <= gap.drift < 1.2 for gap in store.gaps()) and len(store.gaps()) == 3
    store.close()
    audit = audit_run(here)
    assert audit.withheld_vectors and not audit.leaks
    kinds = {e.kind for e in audit.exposures if e.as_is}
    # Rounded, but the FM's own; of the FFNs an alignment has changed most.
    assert {"embeddings", "attention"} <= kinds
    assert any(e.aligned > e.as_is for e in audit.exposures if e.kind == "FFN")
    there = run(tmp_path / "there", model_folder, INT8, trained_by=Elsewhere())
    assert digest(there) == digest(here)


@pytest.mark.slow
def test_the_whole_fm_as_int8_is_another_model_than_the_fm(tmp_path: Path, model_folder: Path) -> None:
    settings = {"sub_fm.construction": "full", "sub_fm.quantization": "int8", "gradient_gap.batches": 1}
    store = Store.existing(run(tmp_path, model_folder, settings))
    gaps = store.gaps()
    store.close()
    assert len(gaps) == 3 and all(0 < gap.drift < 0.3 for gap in gaps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TaskKind.CAUSAL_LM, TaskKind.TEXT_CLASSIFICATION])
def test_real_services_end_with_the_same_bits(tmp_path: Path, kind: TaskKind) -> None:
    model = write_family(tmp_path / "model", "gpt2", kind)
    settings = {
        "sub_fm__quantization": "int8",
        "model__dtype": "bfloat16",
        "adapter__targets": "attention+ffn",
    }
    with federation(tmp_path, model, kind=kind, **settings) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        config = load_config(tmp_path / "run.toml")
    there = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    clients = {f"worker-{n}": examples(tmp_path / f"again-{n}", kind, n) for n in (1, 2, 3)}
    simulate(config.model_copy(update={"run": there}), clients)
    assert digest(tmp_path / "simulated") == digest(config.run.directory)
    both = [Store.existing(folder) for folder in (tmp_path / "simulated", config.run.directory)]
    told = [[(u.worker, u.examples, u.targets) for u in store.updates(2)] for store in both]
    assert told[0] == told[1]
    assert all((targets > 0) is (kind is TaskKind.CAUSAL_LM) for _, _, targets in told[0])
    for store in both:
        store.close()


def examples(folder: Path, kind: TaskKind, number: int) -> Examples:
    """What the federation gives worker `number`."""
    return read_examples(write_data(folder, kind, 30 + 10 * number, number, True), Columns(), kind)
