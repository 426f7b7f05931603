"""One worker's finite but absurd numbers cost the run neither its adapter nor its way back."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config
from common.data.examples import Columns, read_examples
from common.errors import RunFailed, StoreError
from common.records import ArtifactKind
from common.run_status import Evaluation, Event
from common.storage.tensors import TensorFile
from coordinator.context import identity
from coordinator.storage.store import Store
from experiments.clients import ClientTask, LocalClients
from experiments.simulation import simulate
from tests.conftest import LABELS, write_model, write_table
from tests.field.test_identity import config_of
from worker.train import LocalUpdate

ABSURD = 1e30


class OneAbsurd(LocalClients):
    """The client named "b" sends what a flipped bit makes of its update, from a round on."""

    def __init__(self, since: int = 1, factor: float = ABSURD) -> None:
        self.since, self.factor, self.rounds = since, factor, 0

    def train(self, *arguments: Any) -> Iterator[LocalUpdate]:
        self.rounds += 1
        clients: Sequence[ClientTask] = arguments[-1]
        for client, update in zip(clients, super().train(*arguments), strict=True):
            bad = client.client == "b" and self.rounds >= self.since
            spoiled = {name: tensor * self.factor for name, tensor in update.delta.items()}
            yield replace(update, delta=spoiled) if bad else update


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_table(tmp_path / "public.csv", 32, 90, labelled=False)
    write_table(tmp_path / "test.csv", 32, 91)
    for number, name in enumerate("abc"):
        write_table(tmp_path / f"{name}.csv", 20, number)
    return tmp_path


def run(folder: Path, clients: LocalClients, names: str = "abc", **settings: Any) -> Store:
    config = config_of(folder, folder / "model", rounds__workers=len(names), **settings)
    data = {name: read_examples(folder / f"{name}.csv", Columns()) for name in names}
    simulate(config, data, trained_by=clients)
    return Store.existing(folder / "run")


@pytest.mark.parametrize("gap", [0, 1], ids=["without the gap", "with the gap"])
def test_an_absurd_update_is_set_aside_by_name_and_the_round_goes_on(folder: Path, gap: int) -> None:
    store = run(folder, OneAbsurd(), gradient_gap__batches=gap, aggregation__norm_limit=1e6)
    told = [e for e in store.events.all() if e.kind == "update_set_aside"]
    assert [(e.round, e.worker) for e in told] == [(1, "b"), (2, "b")]
    assert [u.worker for u in store.accepted(1) or []] == ["a", "c"]
    latest = store.latest_adapter()
    assert latest is not None and latest[0] == 2
    tensors = TensorFile(store.artifacts.path(latest[1].sha256)).load()
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    store.close()


def test_with_two_workers_there_is_no_median_and_still_nothing_is_spoiled(folder: Path) -> None:
    store = run(folder, OneAbsurd(), names="ab")
    assert [u.worker for u in store.accepted(2) or []] == ["a"]
    assert {e.worker for e in store.events.all() if e.kind == "update_set_aside"} == {"b"}
    store.close()


def test_a_round_with_nothing_else_fails_with_the_workers_name_and_can_be_asked_again(folder: Path) -> None:
    with pytest.raises(RunFailed) as error:
        run(folder, OneAbsurd(since=2), names="ab", rounds__minimum=2)
    assert "worker b" in str(error.value) and "rewind" in str(error.value)
    store = Store.existing(folder / "run")
    assert store.latest_adapter() is not None and max(store.adapters()) == 1
    store.close()
    result = CliRunner().invoke(app, ["rewind", str(folder / "run"), "--round", "1"])
    assert result.exit_code == 0, result.output
    # The device is mended.
    store = run(folder, LocalClients(), names="ab", rounds__minimum=2)
    assert [u.worker for u in store.accepted(2) or []] == ["a", "b"]
    assert "run_rewound" in {e.kind for e in store.events.all()}
    store.close()


def test_after_going_back_the_same_rounds_end_with_the_same_adapter(folder: Path) -> None:
    store = run(folder, LocalClients(), realignment__every=1, aggregation__optimizer="momentum")
    before = store.adapters()
    store.close()
    result = CliRunner().invoke(app, ["rewind", str(folder / "run"), "--round", "1"])
    assert result.exit_code == 0, result.output
    store = run(folder, LocalClients(), realignment__every=1, aggregation__optimizer="momentum")
    assert store.adapters() == before
    store.close()


def test_a_round_that_is_not_there_cannot_be_gone_back_to(folder: Path) -> None:
    run(folder, LocalClients()).close()
    result = CliRunner().invoke(app, ["rewind", str(folder / "run"), "--round", "7"])
    assert result.exit_code == 2
    assert "cannot go back to round 7; rounds whose adapter is there: 0 to 2" in " ".join(
        result.output.split()
    )
    # And of many rounds only the last ones' adapters are kept.
    (folder / "run").rename(folder / "first")
    run(folder, LocalClients(), rounds__count=4, rounds__kept=2).close()
    result = CliRunner().invoke(app, ["rewind", str(folder / "run"), "--round", "1"])
    assert "rounds whose adapter is there: 3 to 4" in " ".join(result.output.split())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.5])
def test_a_score_that_is_no_number_is_a_score(tmp_path: Path, value: float) -> None:
    store = Store(tmp_path / "run")
    store.commit_evaluation(Evaluation(1, "fm", 0.25, value))
    (kept,) = store.evaluations()
    assert str(kept.loss) == str(value)
    store.close()


def test_a_mistake_of_the_program_is_not_told_as_one_of_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with pytest.raises(Exception) as error:
        store.database.write("x", "INSERT INTO adapters VALUES (1, NULL, NULL)")
    assert not isinstance(error.value, StoreError)
    store.close()


@pytest.mark.parametrize("merge", [False, True])
def test_a_spoiled_adapter_of_an_older_version_is_not_exported(folder: Path, merge: bool) -> None:
    run(folder, LocalClients()).close()
    store = Store(folder / "run")
    sha256 = store.adapters()[2]
    spoiled = TensorFile(store.artifacts.path(sha256)).load()
    next(iter(spoiled.values())).fill_(torch.nan)
    bad = store.artifacts.add_tensors(ArtifactKind.ADAPTER, spoiled)
    store.commit_adapter(3, bad)
    store.close()
    arguments = ["export", str(folder / "run"), "--out", str(folder / "out"), *(["--merge"] if merge else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "is not finite" in result.output and "rewind" in result.output
    assert not (folder / "out").exists()


def failed(folder: Path, texts: Sequence[str], ago: float = 0.0, between: str = "") -> Path:
    """A run that failed in this way each time that its supervisor started it; its configuration."""
    values = {
        "run.directory": str(folder / "run"),
        "model.path": str(folder / "gone"),
        "task.labels": list(LABELS),
        "data.public.path": str(folder / "public.csv"),
        "rounds.workers": 3,
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
    }
    file = folder / "run.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    config = load_config(file)
    store = Store(config.run.directory)
    store.open_run("run", identity(config))
    for text in texts:
        for kind, told in ((between, ""), ("phase_entered", "phase: failed"), ("run_failed", text)):
            if kind:
                number = store.events.last() + 1
                store.events.add(Event(number, time.time() - ago, kind, told, 1, "", {}))
    store.close()
    return file


SAME = ["failed: worker b spoils the round"] * 3


@pytest.mark.parametrize(
    ("texts", "ago", "between", "options", "refused"),
    [
        (SAME, 0.0, "", [], True),
        (SAME, 0.0, "worker_joined", [], True),
        (SAME, 0.0, "", ["--again"], False),
        (SAME, 3700.0, "", [], False),
        (SAME, 0.0, "update_received", [], False),
        (SAME[:2], 0.0, "", [], False),
        ([*SAME[:2], "failed: of something else"], 0.0, "", [], False),
    ],
    ids=["same", "workers come", "again", "long ago", "came further", "twice", "another"],
)
def test_a_failure_that_repeats_is_not_started_again_for_ever(
    folder: Path, texts: list[str], ago: float, between: str, options: list[str], refused: bool
) -> None:
    config = failed(folder, texts, ago, between)
    result = CliRunner().invoke(app, ["coordinator", "--config", str(config), *options])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    # Otherwise it goes on, to a model that is not there.
    assert ("worker b spoils the round (3 times on end in the same way)" in said) is refused, said
    assert ("--again" in said) is refused
