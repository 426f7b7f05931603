"""Where a run stands, out of its store."""

from pathlib import Path
from typing import Any

import pytest

from common.config.file import parse_config
from common.errors import StoreError
from common.records import Activity, ArtifactKind, Phase, TaskKind
from common.run_status import Evaluation, GradientGap, LayerGap, Traffic
from coordinator.campaign.status import open_run, reading, stored_status
from coordinator.storage.store import Store

CLASSIFIERS = (TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION)
SCORES = [Evaluation(3, "fm", 0.91237, 0.25), Evaluation(3, "sub_fm", 0.5, 1.5)]
GAP = GradientGap(0, 0.9, 1.1, 0.25, (LayerGap(0, 0.1, 0.2, 0.3, 0.4, 0.5),))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifiers_reading_is_its_accuracy(kind: TaskKind) -> None:
    assert reading(SCORES, kind) == ("accuracy", {"fm": "0.9124", "sub_fm": "0.5000"})


def test_a_language_models_reading_is_its_perplexity() -> None:
    measure, shown = reading(SCORES, TaskKind.CAUSAL_LM)
    # exp(0.25) and exp(1.5), nats.
    assert (measure, shown) == ("perplexity", {"fm": "1.28", "sub_fm": "4.48"})


@pytest.mark.parametrize("loss", [1e4, float("inf")])
def test_a_perplexity_beyond_all_numbers_is_still_shown(loss: float) -> None:
    _, shown = reading([Evaluation(0, "fm", 0.0, loss)], TaskKind.CAUSAL_LM)
    assert float(shown["fm"]) > 1e300


@pytest.mark.parametrize("kind", TaskKind)
def test_without_scores_there_is_nothing_to_read(kind: TaskKind) -> None:
    assert reading([], kind)[1] == {}


def run_in(folder: Path, **settings: Any) -> Store:
    given = {"model.path": "m", "data.public.path": "public.csv", "rounds.count": 4}
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    config = parse_config(given, "test")
    store = Store(folder)
    store.open_run("the-run", config.model_dump_json())
    return store


def test_a_status_is_what_the_store_knows(tmp_path: Path) -> None:
    store = run_in(tmp_path, task__labels=["a", "b"])
    adapter = store.artifacts.add(ArtifactKind.ADAPTER, b"adapter")
    store.commit_adapter(3, adapter)
    store.commit_gap(GAP)
    for score in SCORES:
        store.commit_evaluation(score)
    store.remember_worker("w", 7, "test")
    store.traffic.save([("w", Traffic(1, "adapter", 10, 20))])
    store.end_run("finished", "all rounds are done")
    store.close()

    again, config = open_run(tmp_path)
    status = stored_status(again, config)
    again.close()
    assert (status.run_id, status.phase, status.round, status.rounds) == ("the-run", Phase.FINISHED, 3, 4)
    assert status.evaluations == tuple(SCORES)
    assert status.gaps == (GAP,)
    assert status.adapter_sha256 == adapter.sha256
    assert status.models is None
    (worker,) = status.workers
    assert (worker.worker, worker.examples, worker.progress.activity) == ("w", 7, Activity.LEFT)
    assert worker.traffic == (Traffic(0, "adapter", 10, 20),)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [(TaskKind.CAUSAL_LM, []), (TaskKind.IMAGE_CLASSIFICATION, ["a", "b"]), (CLASSIFIERS[0], ["a", "b"])],
)
def test_a_status_tells_the_kind_of_task(tmp_path: Path, kind: TaskKind, labels: list[str]) -> None:
    run_in(tmp_path, task__kind=str(kind), task__labels=labels).close()
    store, config = open_run(tmp_path)
    status = stored_status(store, config)
    store.close()
    assert status.task is kind
    # Neither finished nor failed: it can go on.
    assert (status.phase, status.round, status.adapter_sha256) == (Phase.STOPPED, 0, "")


def test_a_folder_without_a_run_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        open_run(tmp_path)
