"""Scores at the workers, by real processes: the same bits as simulated, and what ends a run by them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.config.file import load_config
from common.data.examples import Columns, Examples, read_examples
from common.records import Phase
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import write_table
from tests.experiments.test_simulation import digest
from tests.integration.federation import Federation, federation
from tests.services import call
from worker.data import held_out

SHARE = 0.2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Federation]:
    """Workers 1 and 2 keep examples aside, worker 3 does not."""
    folder = tmp_path_factory.mktemp("scored")
    with federation(folder, model_folder, validation__every=1, validation__per_worker=True) as running:
        address = running.start_coordinator()["address"]
        running.start_worker(1, address, "--validation-share", str(SHARE))
        aside = str(write_table(folder / "aside.csv", 12, 77))
        running.start_worker(2, address, "--validation", aside)
        running.start_worker(3, address)
        running.wait()
        yield running


def test_every_round_is_scored_at_the_workers_that_keep_examples_aside(finished: Federation) -> None:
    status = finished.status()
    assert status.phase is Phase.FINISHED
    told = [(v.round, v.workers, v.examples) for v in status.at_workers]
    assert told == [(number, 2, 8 + 12) for number in (0, 1, 2)]
    assert all({"macro_f1", "matthews", "auc"} <= v.metrics.keys() for v in status.at_workers)
    assert [w.examples for w in status.workers] == [32, 50, 60]
    assert {v.worker for v in status.validations} == {"", "worker-1", "worker-2"}


def test_a_simulated_run_has_the_same_scores_to_the_bit(finished: Federation, tmp_path: Path) -> None:
    config = load_config(finished.folder / "run.toml")
    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    config = config.model_copy(update={"run": run})
    data = {
        f"worker-{n}": read_examples(write_table(tmp_path / f"worker-{n}.csv", 30 + 10 * n, n), Columns())
        for n in (1, 2, 3)
    }
    data["worker-1"], first = held_out(data["worker-1"], SHARE, "worker-1")
    second = read_examples(write_table(tmp_path / "aside.csv", 12, 77), Columns())
    aside: dict[str, Examples] = {"worker-1": first, "worker-2": second}
    simulate(config, data, validation=aside)
    assert digest(tmp_path / "simulated") == finished.status().adapter_sha256
    store = Store.existing(tmp_path / "simulated")
    # As text: a NaN is not itself.
    assert repr(store.validations.all()) == repr(finished.status().validations)
    store.close()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Federation]:
    """A run without test data, whose learning rate spoils what it has learnt, sooner or later."""
    settings = {
        "validation.every": 1,
        "rounds.count": 12,
        "rounds.patience": 2,
        "rounds.kept": 2,
        "training.learning_rate": 0.05,
        "training.head_learning_rate": 0.05,
        "training.decay": "constant",
        "correction.steps": 2,
    }
    running = Untested(tmp_path_factory.mktemp("patient"), model_folder, settings)
    try:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address, "--validation-share", str(SHARE))
        running.wait()
        yield running
    finally:
        running.end()


class Untested(Federation):
    """Its owner has no test data."""

    def write_config(self) -> Path:
        path = super().write_config()
        without = re.sub(r"\[data\.test\]\n.*?(?=\n\[)", "", path.read_text(), flags=re.DOTALL)
        path.write_text(without)
        return path


def test_a_run_without_test_data_ends_by_the_workers_scores(patient: Federation) -> None:
    status = patient.status()
    assert status.phase is Phase.FINISHED and not [e for e in status.evaluations if e.model == "fm"]
    losses = {v.round: v.loss for v in status.at_workers if v.round}
    best = min(losses, key=lambda number: losses[number])
    assert status.round == best + 2 < 12
    assert status.best == status.result == best
    assert f"no better loss at the workers since round {best}" in patient.log("coordinator")
    with store_of(patient) as store:
        assert status.adapter_sha256 == store.adapters()[best]
        assert store.corrections.of(best) is not None


@contextmanager
def store_of(running: Federation) -> Iterator[Store]:
    store = Store.existing(running.run)
    try:
        yield store
    finally:
        store.close()


def test_its_best_round_is_exported_and_named(patient: Federation, tmp_path: Path) -> None:
    status = patient.status()
    for name, options in {
        "result": [],
        "best": ["--round", "best"],
        "newest": ["--round", str(status.round)],
    }.items():
        code, told = call(
            "cli", "export", str(patient.run), "--out", str(tmp_path / name), "--uncorrected", *options
        )
        assert code == 0, told
    weights = {
        name: load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("result", "best", "newest")
    }
    assert all(torch.equal(weights["result"][key], tensor) for key, tensor in weights["best"].items())
    assert not all(torch.equal(weights["newest"][key], tensor) for key, tensor in weights["best"].items())
    card = (tmp_path / "result" / "README.md").read_text()
    assert f"the adapter after round {status.best} of {status.round}, the best one by loss" in card
    assert "at 3 workers, on 30 examples that they did not train on" in card


def test_a_round_without_an_adapter_is_one_clear_line(patient: Federation, tmp_path: Path) -> None:
    for which, problem in {
        "99": "there is no adapter after round 99",
        "0": "there is no adapter after round 0",
        "last": '--round must be "best" or a round from 1',
    }.items():
        code, told = call("cli", "export", str(patient.run), "--out", str(tmp_path / "out"), "--round", which)
        assert code and problem in in_a_line(told) and "Traceback" not in told


def in_a_line(text: str) -> str:
    return " ".join(text.split())
