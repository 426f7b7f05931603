"""A run's directory as a report: simulated, real, unfinished, or none."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.run_status import Event, Traffic
from coordinator.context import identity
from coordinator.storage.store import Store
from experiments.report.of_run import document
from experiments.simulation import simulate
from tests.conftest import LABELS, write_table
from tests.experiments.test_simulation import data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A simulated run of two rounds, with one alignment between."""
    folder = tmp_path_factory.mktemp("reported")
    values = {
        "run.directory": folder / "run",
        "model.path": str(model_folder),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "data.test.path": write_table(folder / "test.csv", 64, 91),
        "alignment.steps": 3,
        "realignment.every": 1,
        "realignment.steps": 3,
        "rounds.count": 2,
        "rounds.workers": 3,
        "gradient_gap.batches": 1,
        "compute.threads": 1,
    }
    simulate(parse_config(values, "test"), data(folder), score_every=1)
    store = Store(folder / "run")
    # What only real services record.
    store.traffic.save([("worker-1", Traffic(0, "sub_model", 2_000_000, 0))])
    store.traffic.save([("worker-1", Traffic(1, "adapter", 500_000, 250_000))])
    # In place of the simulation's own, of which only a clock knows the times.
    store.database.write("event", "DELETE FROM events")
    for number, (phase, when) in enumerate(
        (("building", 10.0), ("training", 14.0), ("finished", 20.0)), start=1
    ):
        store.events.add(Event(number, when, "phase_entered", f"phase: {phase}", 0, "", {}))
    store.close()
    return folder / "run"


def test_a_run_is_reported_by_command(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text()
    for wanted in ("2 of 2 rounds are done", "Accuracy", "Drift", "losses", "alignment.steps = 3"):
        assert wanted in page
    assert str(run) not in page

    def rows(name: str) -> list[list[str]]:
        return list(csv.reader((tmp_path / "out" / f"{name}.csv").read_text().splitlines()))[1:]

    store = Store(run)
    scores = {(e.round, e.model): e for e in store.evaluations()}
    assert [float(row[1]) for row in rows("scores")] == [100 * scores[n, "fm"].accuracy for n in (1, 2)]
    updates = [(n, u.worker, u.loss) for n in (1, 2) for u in store.updates(n)]
    assert [(int(r[0]), r[1], float(r[3])) for r in rows("updates")] == updates
    assert rows("traffic") == [["worker-1", "0", "2.0", "0.0"], ["worker-1", "1", "0.5", "0.25"]]
    assert [row[:2] for row in rows("seconds")] == [["building", "4.0"], ["training", "6.0"]]
    assert [int(row[0]) for row in rows("alignments")] == [n for n, _, _ in store.alignments.all()] == [1]
    store.close()


def test_a_run_that_has_only_begun_is_reported_too(tmp_path: Path, model_folder: Path) -> None:
    config = parse_config(
        {"run.directory": tmp_path / "run", "model.path": str(model_folder), "task.labels": LABELS}
        | {"alignment.steps": 0},
        "test",
    )
    store = Store(tmp_path / "run")
    store.open_run("abc", identity(config))
    store.close()
    found = document(tmp_path / "run")
    assert found.lead[0].startswith("0 of 5 rounds are done; the run is stopped and can go on")
    assert found.sections == () and found.facts["adapter, SHA-256"] == "none yet"


def test_a_folder_that_holds_neither_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds neither a run (run.sqlite) nor an experiment (experiment.json)" in result.stderr
