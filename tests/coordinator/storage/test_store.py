"""The run's memory."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import StoreError, UnknownArtifact
from common.records import ArtifactKind, ArtifactRef, SubModelRef
from common.run_status import Evaluation, Event, GradientGap, LayerGap, ModelFacts, Traffic
from common.storage.tensors import TensorFile
from coordinator.storage.alignments import StoredPatch
from coordinator.storage.store import Store, StoredUpdate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    opened.open_run("run", '{"a": {"b": 1}}')
    yield opened
    opened.close()


def reopened(store: Store) -> Store:
    store.close()
    return Store.existing(store.directory)


def test_a_run_is_found_again_with_everything_committed(store: Store) -> None:
    adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.ones(3)})
    store.commit_adapter(0, adapter)
    store.commit_evaluation(Evaluation(0, "fm", 0.5, 1.0))
    store.remember_worker("w", 7, "test")
    store.traffic.save([("w", Traffic(1, "adapter", 10, 20))])
    store.events.add(Event(1, 2.0, "kind", "text", 3, "w", {"figure": 4.0}))
    again = reopened(store)
    assert again.latest_adapter() == (0, adapter)
    assert torch.equal(TensorFile(again.artifacts.path(adapter.sha256))["x"], torch.ones(3))
    assert again.evaluations() == (Evaluation(0, "fm", 0.5, 1.0),)
    assert again.workers() == {"w": 7}
    assert again.traffic.by_worker() == {"w": [Traffic(1, "adapter", 10, 20)]}
    assert again.events.all() == [Event(1, 2.0, "kind", "text", 3, "w", {"figure": 4.0})]
    assert again.events.all(after=1) == []
    again.close()


def test_a_rounds_adapter_and_the_servers_state_after_it_are_found_again(store: Store) -> None:
    adapters = [
        store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.full((3,), i)}) for i in range(3)
    ]
    state = store.artifacts.add_tensors(ArtifactKind.SERVER_STATE, {"momentum.x": torch.ones(3)})
    store.commit_adapter(0, adapters[0])
    store.commit_adapter(1, adapters[1], state)
    store.commit_adapter(2, adapters[2])
    again = reopened(store)
    assert [again.server_state(number) for number in range(4)] == [None, state, None, None]
    assert state.kind is ArtifactKind.SERVER_STATE
    assert again.latest_adapter() == (2, adapters[2])
    again.close()


def test_an_adapter_and_the_servers_state_come_in_one_transaction(store: Store) -> None:
    adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.ones(3)})
    unknown = ArtifactRef(ArtifactKind.SERVER_STATE, "0" * 64, 1)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_adapter(0, adapter, unknown)
    assert store.latest_adapter() is None
    assert store.server_state(0) is None
    store.commit_adapter(0, adapter)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_adapter(0, adapter)


def gap(number: int, drift: float = 0.25) -> GradientGap:
    layers = tuple(LayerGap(i, 0.1, 1.5, 0.3, 0.4, 0.5 + i) for i in range(2))
    return GradientGap(number, 0.9, 1.1, drift, layers)


def test_gradient_gaps_are_found_again_in_the_order_of_rounds(store: Store) -> None:
    for number in (2, 0, 1):
        store.commit_gap(gap(number))
    store.commit_gap(gap(1, drift=0.75))
    again = reopened(store)
    assert again.gaps() == (gap(0), gap(1, drift=0.75), gap(2))
    again.close()


def test_a_run_without_gaps_has_none(store: Store) -> None:
    assert store.gaps() == ()


def test_the_sub_fm_is_found_again_with_its_processor_and_patches(store: Store) -> None:
    base = store.artifacts.add(ArtifactKind.SUB_MODEL, b"weights")
    plan = store.artifacts.add(ArtifactKind.PLAN, b"plan")
    processor = store.artifacts.add(ArtifactKind.IMAGE_PROCESSOR, b"{}")
    reference = SubModelRef('{"model_type": "vit"}', (64, 16), base, (), (processor,), ("bert.pooler",))
    facts = ModelFacts(1, 2, 3, 4, 5, 6)
    assert store.sub_model() is None
    store.commit_sub_model(reference, plan, facts)
    patches = tuple(
        store.artifacts.add(ArtifactKind.NEURON_PATCH, content) for content in (b"later", b"earlier")
    )
    store.alignments.commit(4, StoredPatch(patches[0]), 0.5, 0.25)
    store.alignments.commit(2, StoredPatch(patches[1]), 0.5, 0.25)
    again = reopened(store)
    assert again.sub_model() == (replace(reference, patches=patches[::-1]), plan, facts)
    assert [again.alignments.done_after(number) for number in range(1, 5)] == [False, True, False, True]
    again.close()


def test_equal_content_is_kept_once(store: Store) -> None:
    first = store.artifacts.add(ArtifactKind.TOKENIZER, b"same")
    assert store.artifacts.add(ArtifactKind.TOKENIZER, b"same") == first
    assert len([p for p in (store.directory / "artifacts").rglob("*") if p.is_file()]) == 1


def test_an_unknown_artifact_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownArtifact):
        store.artifacts.get("0" * 64)


def test_another_configuration_is_refused_by_the_keys_that_differ(store: Store) -> None:
    assert store.open_run("other", '{"a": {"b": 1}}') == "run"
    with pytest.raises(StoreError, match=r"\(a\.b, c\)"):
        store.open_run("other", '{"a": {"b": 2}, "c": 3}')


def test_an_updates_artifact_and_record_come_in_one_transaction(store: Store) -> None:
    update = StoredUpdate("w", "f" * 64, 5, 0.1, 2.0)
    store.commit_update(1, update, size=9)
    store.commit_update(1, update, size=9)
    assert store.updates(1) == [update]
    assert store.artifacts.get("f" * 64).kind is ArtifactKind.UPDATE
    broken = StoredUpdate("v", "e" * 64, 5, float("nan"), 2.0)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_update(1, broken, size=9)
    with pytest.raises(UnknownArtifact):
        store.artifacts.get("e" * 64)


def test_target_tokens_are_kept_with_their_updates_and_missed_where_none_came(store: Store) -> None:
    assert not store.targets.lacking()
    for letter, targets in (("f", 7), ("e", 9)):
        store.commit_update(1, StoredUpdate("w", letter * 64, 5, 0.1, 2.0, targets), size=9)
    assert [u.targets for u in store.updates(1)] == [9]
    assert not store.targets.lacking()
    store.commit_update(2, StoredUpdate("w", "d" * 64, 5, 0.1, 2.0), size=9)
    assert [u.targets for u in store.updates(2)] == [0]
    assert store.targets.lacking()


def test_a_store_of_before_target_tokens_is_read_and_goes_on(store: Store) -> None:
    store.commit_update(1, StoredUpdate("w", "f" * 64, 5, 0.1, 2.0), size=9)
    store.database.write("a test", "DROP TABLE update_targets")
    store.close()
    looked = Store.existing(store.directory)
    assert [(u.worker, u.targets) for u in looked.updates(1)] == [("w", 0)] and looked.targets.lacking()
    looked.close()
    again = Store(store.directory)
    again.commit_update(2, StoredUpdate("w", "e" * 64, 5, 0.1, 2.0, 7), size=9)
    assert [u.targets for u in again.updates(2)] == [7]
    again.close()


def test_a_directory_without_a_run_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        Store.existing(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file")


def test_what_a_round_accepted_is_recorded_with_its_end(store: Store) -> None:
    updates = [StoredUpdate(name, letter * 64, 5, 0.1, 2.0) for name, letter in (("v", "e"), ("w", "f"))]
    for update in updates:
        store.commit_update(1, update, size=9)
    assert store.open_try(1, ["v", "w"]) == 1
    assert store.interrupted_try(1) == ["v", "w"]
    store.close_try(1, 1, "short")
    assert (store.interrupted_try(1), store.accepted(1)) == (None, None)
    assert store.open_try(1, ["w"]) == 2
    store.close_try(1, 2, "closed", ["w"])
    again = reopened(store)
    assert again.accepted(1) == updates[1:]
    assert again.updates(1) == updates
    assert again.last_selected() == ["w"]
    again.close()


def test_workers_count_as_dismissed_until_the_run_goes_on(store: Store) -> None:
    told = []
    for number, kind in enumerate(("phase_entered", "workers_dismissed", "worker_left", "phase_entered"), 1):
        store.events.add(Event(number, 1.0, kind, "text"))
        told.append(store.dismissed())
    assert told == [False, True, True, False]


def test_a_setting_that_came_with_a_later_version_does_not_make_another_run(store: Store) -> None:
    assert store.open_run("other", '{"a": {"b": 1, "new": 3}}') == "run"
