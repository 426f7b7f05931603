"""What trackers are told: each figure of a run once it is final, and nothing of a single worker."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.config.choices import Tracker
from common.config.file import parse_config
from common.config.run import RunConfig
from common.config.tracking import TrackingSection
from common.errors import ConfigError
from common.records import ArtifactKind
from common.run_status import Evaluation, Event, Traffic, Validation
from coordinator.context import identity
from coordinator.storage.releases import Release
from coordinator.storage.secure import StoredSum
from coordinator.storage.store import Store, StoredUpdate
from coordinator.tracking.figures import figures, parameters
from coordinator.tracking.process import require_installed
from coordinator.tracking.told import Told

PLAIN = {"model.path": "/somewhere/m", "task.labels": ("a", "b"), "alignment.steps": 0}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    opened.open_run("run", identity(config()))
    yield opened
    opened.close()


def config(**settings: object) -> RunConfig:
    return parse_config(PLAIN | {key.replace("__", "."): v for key, v in settings.items()}, "a test")


def close_round(store: Store, number: int, *updates: StoredUpdate) -> None:
    """A round that closed with these, and its adapter."""
    attempt = store.open_try(number, [u.worker for u in updates])
    for i, update in enumerate(updates):
        file = store.artifacts.add_tensors(ArtifactKind.UPDATE, {"x": torch.full((2,), 10.0 * number + i)})
        store.commit_update(number, replace(update, sha256=file.sha256), file.size)
    store.close_try(number, attempt, "closed", [u.worker for u in updates])
    adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.full((3,), float(number))})
    store.commit_adapter(number, adapter)


def told(store: Store, given: RunConfig | None = None) -> dict[tuple[str, int], float]:
    return {(f.name, f.round): f.value for f in figures(store, given or config())}


def of_workers() -> RunConfig:
    """Differential privacy of whole workers."""
    return config(
        privacy__weights="equal",
        privacy__dp__unit="worker",
        privacy__dp__epsilon=4.0,
        rounds__workers=20,
        rounds__minimum=20,
    )


ALICE, BOB = StoredUpdate("alice", "", 10, 1.0, 2.0), StoredUpdate("bob", "", 30, 3.0, 2.0)


def test_a_rounds_loss_is_the_mean_over_its_workers_examples(store: Store) -> None:
    close_round(store, 1, ALICE, BOB)
    assert told(store)["training/loss", 1] == pytest.approx((10 * 1.0 + 30 * 3.0) / 40)
    assert told(store)["training/workers", 1] == 2


def test_the_loss_of_a_worker_alone_is_not_told(store: Store) -> None:
    close_round(store, 1, ALICE)
    assert told(store) == {("training/workers", 1): 1}


def test_a_private_runs_loss_is_not_told(store: Store) -> None:
    close_round(store, 1, ALICE, BOB)
    private = config(
        privacy__dp__unit="example",
        privacy__dp__epsilon=4.0,
        privacy__dp__batch_size=64,
        adapter__targets="none",
        training__optimizer="sgd",
    )
    found = told(store, private)
    assert ("training/loss", 1) not in found
    assert found["privacy/epsilon", 0] == 4.0


def test_what_sums_with_noise_have_come_to_is_told_by_round(store: Store) -> None:
    close_round(store, 1, ALICE, BOB)
    for number in (1, 2):
        with store.database.transaction("release") as db:
            store.secure.releases.enter(db, Release(number, 1.0, 2.0))
    found = told(store, of_workers())
    assert found["privacy/epsilon", 0] == 4.0
    assert 0 < found["privacy/epsilon_spent", 1] < found["privacy/epsilon_spent", 2]
    assert ("training/loss", 1) not in found


def test_of_masked_updates_the_sum_is_told(store: Store) -> None:
    close_round(store, 1, ALICE, BOB)
    file = store.artifacts.add_tensors(ArtifactKind.UPDATE, {"x": torch.ones(2)})
    store.secure.commit_sum(1, file, StoredSum(file.sha256, 2, 40, 2.25, 0))
    assert told(store)["training/loss", 1] == 2.25


def test_bytes_are_told_when_no_more_are_counted_for_their_round(store: Store) -> None:
    store.traffic.save([("alice", Traffic(1, "adapter", 5, 0)), ("bob", Traffic(1, "update", 2, 7))])
    close_round(store, 1, ALICE, BOB)
    assert ("bytes/down", 1) not in told(store)
    store.open_try(2, ["alice", "bob"])
    assert (told(store)["bytes/down", 1], told(store)["bytes/up", 1]) == (7, 7)
    store.traffic.save([("alice", Traffic(2, "adapter", 9, 0))])
    assert ("bytes/down", 2) not in told(store)
    store.end_run("finished", "")
    assert told(store)["bytes/down", 2] == 9


def test_scores_are_those_that_are_defined_and_of_all_together(store: Store) -> None:
    further = {"auc": 0.6, "f1:a": 0.1, "matthews": float("nan")}
    store.commit_evaluation(Evaluation(1, "fm", 0.5, 0.7, further))
    together, alone = Validation(1, 2, 20, 0.75, 0.5), Validation(1, 1, 5, 0.5, 0.25, worker="alice")
    store.validations.close(together, [alone], ["alice", "bob"])
    assert told(store) == {
        ("fm/accuracy", 1): 0.5,
        ("fm/loss", 1): 0.7,
        ("fm/auc", 1): 0.6,
        ("workers/accuracy", 1): 0.75,
        ("workers/loss", 1): 0.5,
        ("workers/count", 1): 2,
    }


def test_after_a_rewind_the_newer_figure_of_a_round_is_told(store: Store) -> None:
    for sequence, after in ((1, 0.5), (2, 0.25)):
        store.events.add(Event(sequence, 0.0, "aligned", "aligned", 1, "", {"error_after": after}))
    assert told(store) == {("alignment/error_after", 1): 0.25}


def test_no_figure_has_a_workers_name(store: Store) -> None:
    store.traffic.save([("alice", Traffic(0, "sub_model", 5, 0))])
    close_round(store, 1, ALICE, BOB)
    store.end_run("finished", "")
    assert len(told(store)) == 4
    assert not [name for name, _ in told(store) if "alice" in name or "bob" in name]


def test_parameters_are_settings_without_paths_and_the_service() -> None:
    found = parameters(config(data__test__path="/secret/test.csv", run__directory="/secret/run"))
    assert found["model.path"] == "m"
    assert found["task.labels"] == "a, b"
    assert found["rounds.count"] == config().rounds.count
    assert not [key for key, value in found.items() if "/" in str(value)]
    assert not [key for key in found if key.startswith(("server.", "tls.", "limits.", "tracking."))]


def test_what_was_told_is_remembered(tmp_path: Path, store: Store) -> None:
    close_round(store, 1, ALICE, BOB)
    all_of_it = figures(store, config())
    first = Told.read(tmp_path / "mlflow.json")
    assert not any(map(first.holds, all_of_it))
    first.run = "abc"
    first.add(all_of_it)
    first.save()
    again = Told.read(tmp_path / "mlflow.json")
    assert again == first
    assert all(map(again.holds, all_of_it))
    assert not again.holds(replace(all_of_it[0], value=all_of_it[0].value + 1))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"run": 1}', '{"values": {"a": 3}}'])
def test_a_file_that_cannot_be_read_remembers_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "mlflow.json").write_text(content)
    assert Told.read(tmp_path / "mlflow.json").values == {}


# Configuration.


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("tracking__to", ("nowhere",), r"tracking\.to.* must be 'tensorboard' or 'mlflow'"),
        ("tracking__to", ("mlflow", "mlflow"), "must name each tracker once, got mlflow, mlflow"),
        ("tracking__project", "", r"tracking\.project"),
    ],
    ids=["unknown", "twice", "no project"],
)
def test_trackers_are_named_right(setting: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        config(**{setting: value})


def test_a_tracker_that_is_not_installed_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules: as if it were not there.
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"tracking\.to = tensorboard needs tensorboard; pip install"):
        require_installed(TrackingSection(to=(Tracker.TENSORBOARD,)))


def test_where_a_run_is_told_makes_no_other_run_of_it() -> None:
    assert identity(config()) == identity(config(tracking__to=("mlflow",), tracking__project="other"))
