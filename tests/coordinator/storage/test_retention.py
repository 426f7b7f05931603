"""What nothing needs is deleted; what is needed stays, and is checked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.errors import StoreError
from common.records import ArtifactKind, ArtifactRef, SubModelRef
from common.run_status import ModelFacts
from coordinator.storage import retention
from coordinator.storage.alignments import StoredPatch
from coordinator.storage.store import Store, StoredUpdate


def tensor(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.full((8,), value)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A run after its third round of two workers, with an alignment and a server optimiser."""
    store = Store(tmp_path)
    store.open_run("run", "{}")
    base = store.artifacts.add_tensors(ArtifactKind.SUB_MODEL, tensor(0.5))
    plan = store.artifacts.add_tensors(ArtifactKind.PLAN, tensor(0.25))
    tokenizer = store.artifacts.add(ArtifactKind.TOKENIZER, b"{}")
    reference = SubModelRef("{}", (8,), base, (), (tokenizer,))
    store.commit_sub_model(reference, plan, ModelFacts(1, 1, 1, 1, 1, 1))
    store.commit_adapter(0, store.artifacts.add_tensors(ArtifactKind.ADAPTER, tensor(10)))
    for number in (1, 2, 3):
        for worker in ("a", "b"):
            add_update(store, number, worker)
        store.open_try(number, ["a", "b"])
        store.close_try(number, 1, "closed", ["a", "b"])
        adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, tensor(10 + number))
        state = store.artifacts.add_tensors(ArtifactKind.SERVER_STATE, tensor(20 + number))
        store.commit_adapter(number, adapter, state)
    patch = store.artifacts.add_tensors(ArtifactKind.NEURON_PATCH, tensor(30))
    store.alignments.commit(1, StoredPatch(patch), 2.0, 1.0)
    yield store
    store.close()


def add_update(store: Store, number: int, worker: str) -> ArtifactRef:
    update = store.artifacts.add_tensors(ArtifactKind.UPDATE, tensor(100 * number + ord(worker)))
    store.commit_update(number, StoredUpdate(worker, update.sha256, 5, 0.1, 1.0), update.size)
    return update


def files(store: Store) -> set[str]:
    return {path.name for path in (store.directory / "artifacts").glob("*/*")}


def kinds(store: Store) -> dict[str, int]:
    found = [str(artifact.kind) for artifact in store.artifacts.held()]
    return {kind: found.count(kind) for kind in sorted(set(found))}


def test_updates_of_past_rounds_and_old_adapters_go(store: Store) -> None:
    before = sum(artifact.size for artifact in store.artifacts.held())
    freed = retention.collect(store)
    assert kinds(store) == {
        "adapter": 2,
        "neuron_patch": 1,
        "plan": 1,
        "server_state": 1,
        "sub_model": 1,
        "tokenizer": 1,
        "update": 2,
    }
    assert files(store) == {artifact.sha256 for artifact in store.artifacts.held()}
    assert freed == before - retention.sizes(store)["artifacts"] > 0
    assert {u.worker for u in store.updates(1)} == {"a", "b"}, "what was decided stays known"
    assert retention.collect(store) == 0


def test_updates_of_the_round_under_way_stay(store: Store) -> None:
    pending = add_update(store, 4, "a")
    retention.collect(store)
    assert store.artifacts.path(pending.sha256).exists()


def test_content_that_comes_again_after_it_was_collected_is_there_again(store: Store) -> None:
    retention.collect(store)
    again = store.artifacts.add_tensors(ArtifactKind.ADAPTER, tensor(10))
    store.commit_adapter(4, again)
    assert again in store.artifacts.held()
    retention.collect(store)
    assert store.artifacts.path(again.sha256).exists()


def test_what_a_dead_process_left_half_done_is_swept(store: Store) -> None:
    orphan = store.artifacts.path("f" * 64)
    orphan.parent.mkdir(exist_ok=True)
    half = orphan.with_name(f".{orphan.name}.123.part")
    for path in (orphan, half, store.directory / ".endpoint.json.456.part"):
        path.write_bytes(b"half")
    past, present = (
        store.artifacts.spool(f"{'1' * 64}.part-3-a"),
        store.artifacts.spool(f"{'2' * 64}.part-4-a-b"),
    )
    for path in (past, present):
        path.write_bytes(b"part")
    # Given up, and the process died before it deleted the file.
    idle = store.artifacts.path(store.adapters()[0])
    store.artifacts.give_up([idle.name])
    retention.sweep(store)
    assert files(store) == {artifact.sha256 for artifact in store.artifacts.held()}
    assert not list(store.directory.glob(".*.part"))
    assert store.artifacts.spooled() == [present]
    assert store.artifacts.spooled("a-b") == [present]
    assert store.artifacts.spooled("b") == []


def test_damage_is_named_by_path_and_use(store: Store) -> None:
    retention.collect(store)
    assert retention.verify(store) == []
    stored = store.sub_model()
    assert stored is not None
    base, patch = (
        store.artifacts.path(stored[0].base.sha256),
        store.artifacts.path(stored[0].patches[0].sha256),
    )
    base.write_bytes(base.read_bytes()[:-1] + b"!")
    patch.unlink()
    with pytest.raises(StoreError) as caught:
        retention.verify(store)
    assert f"{base} (the sub-FM) does not match its digest" in str(caught.value)
    assert f"{patch} (an alignment of the sub-FM) is missing" in str(caught.value)


def test_a_damaged_update_is_forgotten_only_while_its_round_is_open(store: Store) -> None:
    pending = store.artifacts.path(add_update(store, 4, "a").sha256)
    pending.write_bytes(b"short")
    assert retention.verify(store) == [(4, "a")]
    assert store.updates(4) == []
    pending = store.artifacts.path(add_update(store, 4, "b").sha256)
    store.open_try(4, ["b"])
    store.close_try(4, 1, "closed", ["b"])
    pending.unlink()
    with pytest.raises(StoreError, match="the update of b for round 4"):
        retention.verify(store)


def test_disk_use_does_not_grow_with_the_number_of_rounds(store: Store) -> None:
    sizes = []
    for number in range(4, 40):
        for worker in ("a", "b"):
            add_update(store, number, worker)
        store.commit_adapter(
            number, store.artifacts.add_tensors(ArtifactKind.ADAPTER, tensor(10_000 + number))
        )
        retention.collect(store)
        sizes.append(retention.sizes(store)["artifacts"])
    assert len(set(sizes[1:])) == 1


def test_the_best_rounds_adapter_stays_with_the_sub_fm_of_its_time(store: Store) -> None:
    best, patch = store.adapters()[1], store.alignments.patches(1)
    for number in range(4, 30):
        aligned = store.artifacts.add_tensors(ArtifactKind.NEURON_PATCH, tensor(1000 + number))
        adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, tensor(10_000 + number))
        store.commit_adapter(number, adapter)
        # Now and then one replaces those before it.
        store.alignments.commit(number, StoredPatch(aligned, whole=number % 8 == 0), 2.0, 1.0)
        retention.collect(store, best=[1])
    assert store.adapter_after(1) is not None and store.adapter_after(2) is None
    assert store.alignments.patches(1) == patch and set(patch) <= set(store.artifacts.held())
    assert kinds(store)["adapter"] == 3
    assert retention.verify(store, [1]) == []
    store.artifacts.path(best).unlink()
    with pytest.raises(StoreError, match="the adapter after round 1"):
        retention.verify(store, [1])
    # One that is gone already, as in a run of an earlier version, is not asked for.
    retention.collect(store)
    assert retention.verify(store, [1]) == []
