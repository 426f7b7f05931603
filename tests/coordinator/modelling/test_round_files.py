"""What a round's files make together: the patches of alignments, of which there are never many."""

from pathlib import Path

import torch

from common.model.ffn import ffns_of
from common.model.submodel import apply_patch
from common.records import ArtifactKind, SubModelRef
from common.run_status import ModelFacts
from common.storage.tensors import TensorFile
from coordinator.modelling.round_files import write_patch
from coordinator.storage import retention
from coordinator.storage.alignments import MOST_PATCHES
from coordinator.storage.rewinding import rewind
from coordinator.storage.store import Store
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
