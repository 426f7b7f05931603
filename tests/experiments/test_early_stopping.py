"""Simulated runs that end early, by the owner's scores or the workers'; what they leave is the best round."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.file import parse_config
from common.config.run import RunConfig
from common.data.examples import Columns, read_examples
from common.records import Phase, TaskKind
from coordinator.campaign.best import best_round
from coordinator.modelling.models import Models
from coordinator.storage.store import Store
from experiments.report.of_run import document
from experiments.simulation import simulate
from tests.conftest import LABELS, labels_of, write_data, write_table
from tests.experiments.test_simulation import data
from tests.families import write_family
from worker.data import held_out


def config(folder: Path, model: Path, **settings: Any) -> RunConfig:
    """Learning rates so large that it soon gets no better; an alignment after every round."""
    values: dict[str, Any] = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "alignment.steps": 3,
        "realignment.every": 1,
        "realignment.steps": 3,
        "training.learning_rate": 0.05,
        "training.head_learning_rate": 0.05,
        "training.decay": "constant",
        "rounds.count": 20,
        "rounds.workers": 3,
        "rounds.kept": 2,
        "rounds.patience": 3,
        "gradient_gap.batches": 0,
        "compute.threads": 1,
    }
    return parse_config(values | {key.replace("__", "."): value for key, value in settings.items()}, "test")


@pytest.fixture(scope="module")
def by_owner(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> RunConfig:
    folder = tmp_path_factory.mktemp("by-owner")
    found = config(
        folder,
        model_folder,
        data__test__path=write_table(folder / "test.csv", 64, 91),
        correction__steps=2,
        correction__least_gain=0.0,
    )
    simulate(found, data(folder), score_sub_fm=True)
    return found


def test_a_run_ends_by_the_owners_scores_where_no_worker_scores(by_owner: RunConfig) -> None:
    store = Store.existing(by_owner.run.directory)
    losses = {e.round: e.loss for e in store.evaluations() if e.model == "fm" and e.round}
    best, done = min(losses, key=lambda n: (losses[n], n)), max(store.adapters())
    assert store.outcome() == Phase.FINISHED and done == best + 3 < 20
    assert store.corrections.of(best) is not None and store.corrections.of(done) is None
    (told,) = [e for e in store.events.all() if e.kind == "stopped_early"]
    assert told.values == {"best": best} and "on the test data" in told.text
    assert store.adapter_after(best) is not None and store.adapter_after(best + 1) is None
    store.close()


def test_both_models_go_back_to_what_they_were(by_owner: RunConfig) -> None:
    """The sub-FM of the best round was aligned again and again since."""
    store = Store.existing(by_owner.run.directory)
    losses = {e.round: e.loss for e in store.evaluations() if e.model == "fm" and e.round}
    best = min(losses, key=lambda n: (losses[n], n))
    torch.set_num_threads(1)
    models = Models(by_owner, store)
    now, then = store.sub_model(), store.sub_model(best)
    assert now is not None and then is not None and now[0].patches != then[0].patches
    models.equip(*now[:2])
    adapter = store.adapter_after(best)
    assert adapter is not None
    models.plug_in(adapter)
    models.go_back(then[0])
    models.plug_in(adapter)
    found = models.evaluate(best, False, lambda step, steps: None)
    stored = [e for e in store.evaluations() if e.round == best and e.model != "corrected"]
    # As text: a NaN is not itself.
    assert repr(sorted(found, key=lambda e: e.model)) == repr(sorted(stored, key=lambda e: e.model))
    store.close()


def test_the_report_names_the_round(by_owner: RunConfig) -> None:
    store = Store.existing(by_owner.run.directory)
    done, best = max(store.adapters()), max(store.adapters()) - 3
    store.close()
    lead = " ".join(document(by_owner.run.directory).lead)
    assert f"{done} of 20 rounds are done" in lead
    assert f"By its loss of the FM, round {best} is the best." in lead and "the run's result" in lead
    assert f"after round {best}" in lead


@pytest.mark.slow
def test_a_run_without_test_data_is_reported_by_the_workers_scores(
    tmp_path: Path, model_folder: Path
) -> None:
    found = config(tmp_path, model_folder, validation__every=1)
    parts = {name: held_out(examples, 0.3, name) for name, examples in data(tmp_path).items()}
    trained = {name: rest for name, (rest, _) in parts.items()}
    aside = {name: kept for name, (_, kept) in parts.items()}
    outcome = simulate(found, trained, validation=aside)
    assert outcome.evaluations == ()
    store = Store.existing(found.run.directory)
    told = [v for v in store.validations.all() if v.round]
    best = min(told, key=lambda v: (v.loss, v.round)).round
    assert max(store.adapters()) == best + 3 and [v.round for v in told] == list(range(1, best + 4))
    assert all(v.workers == 3 and not v.worker for v in told)
    store.close()
    report = document(found.run.directory)
    assert "the run has been scored at the workers alone" in " ".join(report.lead)
    assert "At the workers" in [section.title for section in report.sections]


@pytest.mark.slow
def test_a_run_with_another_deciding_score_can_end_at_another_round(
    tmp_path: Path, model_folder: Path
) -> None:
    found = config(tmp_path, model_folder, validation__every=2, rounds__count=5, rounds__best_by="macro_f1")
    parts = {name: held_out(examples, 0.3, name) for name, examples in data(tmp_path).items()}
    simulate(
        found,
        {name: rest for name, (rest, _) in parts.items()},
        validation={name: kept for name, (_, kept) in parts.items()},
    )
    store = Store.existing(found.run.directory)
    scores = {v.round: v.metrics["macro_f1"] for v in store.validations.all()}
    assert list(scores) == [0, 2, 4, 5]
    store.close()


METRICS = {
    TaskKind.TEXT_CLASSIFICATION: {"macro_f1", "matthews", "auc"},
    TaskKind.TEXT_MULTI_LABEL: {"macro_f1", "auc"},
    TaskKind.TEXT_REGRESSION: {"pearson"},
    TaskKind.TOKEN_CLASSIFICATION: {"entity_f1", "precision", "recall"},
    TaskKind.IMAGE_CLASSIFICATION: {"macro_f1", "matthews", "auc"},
    TaskKind.CAUSAL_LM: set(),
}
FAMILIES = {TaskKind.IMAGE_CLASSIFICATION: "vit", TaskKind.CAUSAL_LM: "gpt2"}


@pytest.mark.parametrize("kind", TaskKind)
def test_workers_can_score_every_kind_of_task(kind: TaskKind, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "run.directory": tmp_path / "run",
        "model.path": str(write_family(tmp_path / "model", FAMILIES.get(kind, "bert"), kind)),
        "task.kind": kind,
        "task.labels": labels_of(kind),
        "task.max_length": 16,
        "data.test.path": str(write_data(tmp_path / "test", kind, 30, 91)),
        "alignment.steps": 0,
        "gradient_gap.batches": 0,
        "rounds.count": 1,
        "rounds.workers": 2,
        "validation.every": 1,
        "compute.threads": 1,
    }
    columns = Columns(label=None if kind is TaskKind.CAUSAL_LM else "label")
    parts = {}
    for number, name in enumerate(("a", "b"), 1):
        examples = read_examples(write_data(tmp_path / name, kind, 40, number), columns, kind)
        parts[name] = held_out(examples, 0.5, name)
    trained = {name: rest for name, (rest, _) in parts.items()}
    aside = {name: kept for name, (_, kept) in parts.items()}
    simulate(parse_config(values, "test"), trained, validation=aside)
    store = Store.existing(tmp_path / "run")
    scores = store.validations.all()
    assert [(v.round, v.workers, v.examples) for v in scores] == [(0, 2, 40), (1, 2, 40)]
    for score in scores:
        assert math.isfinite(score.loss) and math.isnan(score.accuracy) is (kind is TaskKind.TEXT_REGRESSION)
        assert score.as_evaluation.told.keys() == METRICS[kind]
    assert best_round(store, parse_config(values, "test")) == 1
    store.close()
