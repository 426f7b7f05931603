"""The attacks on a small model: their sums are the engine's, they run and go on, and their check can fail."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from common.config.file import parse_config
from common.data.examples import Columns, read_examples
from common.model.update import update_tensors
from common.storage.tensors import to_bytes
from coordinator.storage.store import Store
from experiments.attacks import membership, properties
from experiments.attacks.findings import Findings
from experiments.attacks.turns import LABELS, MEMBERSHIP, WORTH
from experiments.attacks.views import VIEWS, opened
from experiments.attacks.watching import first_round
from tests.conftest import LABELS as CLASSES
from tests.conftest import write_table

pytestmark = pytest.mark.slow


def test_a_sum_is_the_one_that_a_secure_run_opens_to_the_bit(tmp_path: Path, model_folder: Path) -> None:
    sizes = {"worker-1": 9, "worker-2": 20, "worker-3": 14}
    clients = {
        name: read_examples(write_table(tmp_path / f"{name}.csv", size, size), Columns())
        for name, size in sizes.items()
    }
    values = {
        "run.directory": tmp_path / "run",
        "model.path": str(model_folder),
        "task.labels": CLASSES,
        "task.max_length": 16,
        "data.public.path": write_table(tmp_path / "public.csv", 64, 90, labelled=False),
        "alignment.steps": 2,
        "realignment.every": 1,
        "realignment.steps": 1,
        "rounds.count": 2,
        "rounds.workers": 3,
        "rounds.minimum": 3,
        "gradient_gap.batches": 0,
        "compute.threads": 1,
        "privacy.secure": True,
        "privacy.insecure_keys": True,
    }
    config = parse_config(values, "test")
    seen = first_round(config, clients, lambda what, step, steps: None)
    (look,) = opened(VIEWS["sum-3"], seen.updates, sizes, config.privacy)
    store = Store.existing(tmp_path / "run")
    total = store.secure.sum_of(1)
    assert total is not None
    store.close()
    # Its file is gone by now; its digest is kept.
    assert look.counts
    assert hashlib.sha256(to_bytes(update_tensors(look.delta, look.counts))).hexdigest() == total.sha256


def attacks(folder: Path, model: Path, data: Path, *more: str) -> Result:
    few = ["--clients", "10", "--rounds", "1", "--train", "300", "--test", "40", "--seeds", "1"]
    fast = ["alignment.steps=2", "realignment.steps=1", "task.max_length=16", "sub_fm.saliency_batches=1"]
    where = ["--model", str(model), "--data", str(data), "--folder", str(folder), "--parallel", "1"]
    settings = [part for value in fast for part in ("--set", value)]
    return CliRunner().invoke(app, ["experiment", "attacks", "--quick", *where, *few, *settings, *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path, Result]:
    folder = tmp_path_factory.mktemp("attacks")
    data = write_table(folder / "data.csv", 4000, 3)
    return folder / "attacks", data, attacks(folder / "attacks", model_folder, data)


def test_the_command_makes_every_attack_on_every_view_and_reports_them(
    done: tuple[Path, Path, Result],
) -> None:
    folder, _, result = done
    assert result.exit_code == 0, result.output
    found = Findings.read(folder)
    # Of 10 workers there is one sum of 10: nothing to compare it with.
    compared = {"plain", "sum-3", "sum-5"}
    assert {(m.size, m.view, m.attack) for m in found.membership} == {
        (size, view, attack) for size in (1, 8, 16, 100) for view in compared for attack in membership.ATTACKS
    }
    assert {(m.view, m.attack) for m in found.labels} == {
        (view, attack) for view in VIEWS for attack in properties.ATTACKS
    }
    # The attacks are attacks: of single updates they tell what they are to tell.
    first = next(m for m in found.membership if m.view == "plain" and m.attack == membership.GRADIENT)
    assert first.size == 1 and first.auc.low > 0.6
    labels = next(m for m in found.labels if m.view == "plain" and m.attack == properties.BIAS)
    assert labels.gain.low > 0 and labels.correlation > 0.5
    assert found.worth is not None and 0 < found.worth.fm_tuned <= 1
    tables = {file.stem for file in (folder / "report").glob("*.csv")}
    assert tables == {MEMBERSHIP, LABELS, WORTH}
    assert "<svg" in (folder / "report" / "report.html").read_text()
    assert not (folder / "runs" / LABELS / "seed-1").exists()


def test_a_report_can_be_written_again(done: tuple[Path, Path, Result], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(done[0]), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").read_text() == (done[0] / "report" / "report.html").read_text()


def test_what_is_done_is_kept_and_single_updates_that_pass_for_sums_break_the_bound(
    done: tuple[Path, Path, Result], model_folder: Path
) -> None:
    folder, data, _ = done
    file = folder / "cells" / LABELS / "seed-1.json"
    before = file.read_text()
    figures = json.loads(before)
    alone = {row["worker"]: row for row in figures["views"]["plain"]}
    for row in figures["views"]["sum-5"]:
        row.update({attack: alone[row["worker"]][attack] for attack in properties.ATTACKS})
    file.write_text(json.dumps(figures))
    try:
        result = attacks(folder, model_folder, data)
    finally:
        file.write_text(before)
    assert result.exit_code == 1
    assert "6 of 6 attacks are done already" in result.output
    assert "a claimed bound is broken: labels by bias, sum of 5" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--only", "fedpft"), "attacks takes no --only: it compares what is seen, not variants"),
        (("--sample", "2"), "attacks takes no --sample"),
        (("--clients", "9"), "holds an experiment with another scale"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    done: tuple[Path, Path, Result], model_folder: Path, more: tuple[str, ...], told: str
) -> None:
    result = attacks(done[0], model_folder, done[1], *more)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
