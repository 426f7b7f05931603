"""What a round's files make together: the patches of alignments, of which there are never many."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.model.ffn import ffns_of
from common.model.submodel import apply_patch
from common.records import ArtifactKind, SubModelRef
from common.run_status import ModelFacts
from common.storage.tensors import TensorFile
from coordinator.modelling.round_files import aggregate, write_patch
from coordinator.storage import retention
from coordinator.storage.alignments import MOST_PATCHES
from coordinator.storage.rewinding import rewind
from coordinator.storage.store import Store, StoredUpdate
from tests.contexts import context
from tests.small import copies, load_model, same_bits

ROUNDS = 2 * MOST_PATCHES + 3


def test_however_many_alignments_a_task_names_few_patches_and_the_weights_are_the_same(
    model_folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.open_run("run", "{}")
    base = store.artifacts.add(ArtifactKind.SUB_MODEL, b"base")
    store.commit_sub_model(
        SubModelRef("{}", (64,), base, (), ()),
        store.artifacts.add(ArtifactKind.PLAN, b"plan"),
        ModelFacts(1, 1, 1, 1, 1, 1),
    )
    student = load_model(model_folder)
    draw = torch.Generator().manual_seed(3)
    states, numbers = {}, []
    for number in range(1, ROUNDS + 1):
        neurons = {layer: torch.randperm(64, generator=draw)[:9].sort().values for layer in (0, 2)}
        with torch.no_grad():
            for layer, chosen in neurons.items():
                ffn = ffns_of(student)[layer]
                for projection in ffn.ins:
                    projection.weight[chosen] += torch.randn(9, 32, generator=draw)
                ffn.out.weight[:, chosen] += torch.randn(32, 9, generator=draw)
        store.commit_adapter(number, store.artifacts.add(ArtifactKind.ADAPTER, bytes([number])))
        store.alignments.commit(number, write_patch(store, ffns_of(student), neurons), 1.0, 0.5)
        retention.collect(store, adapters=5)
        states[number] = copies(dict(student.state_dict()))
        numbers.append(len(store.alignments.patches()))
        assert same_bits(states[number], patched(store, model_folder))
    assert max(numbers) == MOST_PATCHES - 1 and min(numbers[MOST_PATCHES:]) == 1
    # Whoever goes back to a round whose adapter is kept finds the sub-FM of that round.
    kept = {a.sha256 for a in store.artifacts.held()}
    back = ROUNDS - 4
    assert all(patch.sha256 in kept for patch in store.alignments.patches(back))
    rewind(store, back)
    assert same_bits(states[back], patched(store, model_folder))
    store.close()


def patched(store: Store, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a worker that comes now."""
    fresh = load_model(folder)
    stored = store.sub_model()
    assert stored is not None
    for patch in stored[0].patches:
        apply_patch(ffns_of(fresh), TensorFile.foreign(store.artifacts.path(patch.sha256)))
    return copies(dict(fresh.state_dict()))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"task.kind": "causal-lm", "task.labels": ()}, 30 / 40),
        ({"task.kind": "causal-lm", "task.labels": (), "aggregation.weights": "target-tokens"}, 30 / 40),
        ({"task.kind": "causal-lm", "task.labels": (), "aggregation.weights": "examples"}, 1 / 5),
        ({}, 1 / 5),
    ],
    ids=["language", "tokens", "examples", "classes"],
)
def test_language_models_workers_weigh_by_target_tokens_and_others_by_examples(
    tmp_path: Path, settings: dict[str, Any], share: float
) -> None:
    store = Store(tmp_path / "run")
    run = context(store, settings)
    start = store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.zeros(2)})
    for worker, examples, targets in (("ann", 1, 30), ("bob", 4, 10)):
        delta = {"delta.x": torch.tensor([1.0, 0.0] if worker == "ann" else [0.0, 1.0])}
        file = store.artifacts.add_tensors(ArtifactKind.UPDATE, delta)
        asked = targets if run.spec.asks_targets else 0
        store.commit_update(1, StoredUpdate(worker, file.sha256, examples, 0.1, 1.0, asked), file.size)
    following, _ = aggregate(store, run.config, start, store.updates(1), None)
    mean = TensorFile(store.artifacts.path(following.sha256))["x"]
    assert torch.equal(mean, torch.tensor([1.0, 0.0]) * share + torch.tensor([0.0, 1.0]) * (1 - share))
    store.close()


def test_a_run_that_an_earlier_version_began_by_examples_goes_on_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    language = {"task.kind": "causal-lm", "task.labels": (), "aggregation.weights": "target-tokens"}
    for kept, wanted in ((None, True), (StoredUpdate("ann", "f" * 64, 5, 0.1, 1.0), False)):
        if kept is not None:
            store.commit_update(1, kept, 9)
        run = context(store, language)
        assert run.config.weighs_tokens is run.spec.asks_targets is wanted
    store.close()
