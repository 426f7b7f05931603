"""Experiments on a small model: side by side, resumed after a kill, refused when they do not fit."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app
from common.errors import ConfigError
from experiments.catalogue import EXPERIMENTS, Scale
from experiments.clients import LocalClients
from experiments.experiment import EXPERIMENT_FILE, STEPS_FILE, Wanted, conduct
from experiments.report.of_experiment import document
from experiments.sources import Source
from tests.conftest import write_table
from tests.waiting import sizes, until

SMALL: dict[str, Any] = {
    "clients": 4,
    "sample": 2,
    "rounds": 2,
    "train": 48,
    "test": 32,
    "public": 32,
    "score_every": 1,
}
FAST = {"alignment.steps": 2, "realignment.steps": 2, "task.max_length": 16, "sub_fm.saliency_batches": 1}


def wanted(folder: Path, model: Path, name: str, **changes: Any) -> Wanted:
    experiment = EXPERIMENTS[name]
    data = write_table(folder / "data.csv", 140, 3)
    scale: Scale = replace(experiment.quick, **(SMALL | changes.pop("scale", {})))
    values: dict[str, Any] = {
        "experiment": experiment,
        "quick": True,
        "folder": folder / name,
        "model": str(model),
        "source": Source(str(data)),
        "scale": scale,
        "variants": experiment.chosen(True),
        "settings": FAST,
        "parallel": 1,
        "threads": 1,
        "engine": "local",
    }
    return Wanted(**(values | changes))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """All cells' figures by file, without what a clock says."""
    found = {}
    for file in sorted(folder.glob("cells/*/*/*.json")):
        figures = json.loads(file.read_text())
        del figures["seconds"]
        found[str(file.relative_to(folder))] = figures
    return found


# Has the fewest variants.
SHORTEST = "cost"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # A search's cells are trials: test_tuning.
    [name for name, experiment in EXPERIMENTS.items() if not experiment.is_search],
)
def test_every_experiment_runs_and_is_reported(tmp_path: Path, model_folder: Path, name: str) -> None:
    order = wanted(tmp_path, model_folder, name, scale={"seeds": 2 if name == SHORTEST else 1})
    # In this process, except for one: others take seconds to start.
    conduct(order, Console(quiet=True), None if name == SHORTEST else LocalClients)
    cells = results(order.folder)
    assert len(cells) == len(order.variants) * len(order.scale.splits) * order.scale.seeds
    report = document(order.folder)
    accuracy = report.tables[0]
    assert [row[0] for row in accuracy.rows] == [order.experiment.variant(v).title for v in order.variants]
    means = {row[0]: row[2] for row in accuracy.rows}
    for variant in order.variants:
        own = [100 * c["accuracy"] for c in cells.values() if c["cell"]["variant"] == variant]
        assert means[order.experiment.variant(variant).title] == pytest.approx(sum(own) / len(own))
    assert (order.folder / STEPS_FILE).exists() == order.experiment.measures_steps
    assert "head only: no adapter" in means
    # Only figures stay: no model, no data.
    assert not list(order.folder.rglob("*.parquet")) or order.experiment.measures_steps
    assert not list((order.folder / "runs").rglob("run.sqlite"))


@pytest.mark.slow
def test_cells_side_by_side_have_the_results_of_cells_one_by_one(tmp_path: Path, model_folder: Path) -> None:
    few = ("fedpetuning", "fedpft", "head-only")
    one = wanted(tmp_path / "one", model_folder, "compare", variants=few, scale={"seeds": 1})
    two = wanted(tmp_path / "two", model_folder, "compare", variants=few, scale={"seeds": 1}, parallel=2)
    conduct(one, Console(quiet=True))
    conduct(two, Console(quiet=True))
    assert results(one.folder) == results(two.folder)


def command(folder: Path, model: Path) -> list[str]:
    write_table(folder / "data.csv", 140, 3)
    options = {
        "--model": str(model),
        "--data": str(folder / "data.csv"),
        "--clients": "4",
        "--sample": "2",
        "--rounds": "2",
        "--seeds": "2",
        "--train": "48",
        "--test": "32",
        "--folder": str(folder / "compare"),
        "--parallel": "2",
    }
    listed = [part for pair in options.items() for part in pair]
    for key, value in FAST.items():
        listed += ["--set", f"{key}={value}"]
    return ["experiment", "compare", "--quick", *listed]


@pytest.mark.slow
def test_killed_half_way_an_experiment_loses_at_most_what_was_running(
    tmp_path: Path, model_folder: Path
) -> None:
    arguments = command(tmp_path, model_folder)
    folder = tmp_path / "compare"
    process = subprocess.Popen([sys.executable, "-m", "cli", *arguments], stdout=subprocess.DEVNULL)
    for _ in until("three cells are done", lambda: sizes(files_in(folder)), pause=0.1):
        assert process.poll() is None
        if len(results(folder)) >= 3:
            break
    children = [
        int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What it had started ends by itself.
    for _ in until("its processes end", lambda: sizes(files_in(folder)), pause=0.1):
        if not any(_is_alive(pid) for pid in children):
            break
    done = results(folder)
    written = {name: (folder / name).stat().st_mtime_ns for name in done}
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert f"{len(done)} of 16 cells are done already" in ran.output
    assert len(results(folder)) == 16
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == written
    page = folder / "report" / "report.html"
    assert "FedPETuning" in page.read_text()
    # Once more, there is nothing left to do.
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "16 of 16 cells are done already" in again.output


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path, model_folder: Path) -> None:
    order = wanted(tmp_path, model_folder, "cost", variants=("head-only",))
    conduct(order, Console(quiet=True), LocalClients)
    other = replace(order, settings=FAST | {"training.epochs": 2})
    with pytest.raises(ConfigError, match="another settings"):
        conduct(other, Console(quiet=True))
    # More variants of the same are welcome.
    more = replace(order, variants=("fedpetuning", "head-only"))
    conduct(more, Console(quiet=True), LocalClients)
    about = json.loads((order.folder / EXPERIMENT_FILE).read_text())
    assert about["variants"] == ["fedpetuning", "head-only"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "there is no experiment 'nonsense'; there are: compare, tune, ratio"),
        (["compare", "--only", "fedpff"], "compare has no variant 'fedpff'; it has: fedpetuning"),
        (["compare", "--clients", "5", "--sample", "6"], "--sample 6 is more than there are clients: 5"),
        (["compare", "--split", "even"], "split must be iid or dirichlet-A with A > 0, got even"),
        (["compare", "--data", "nowhere.csv"], "nowhere.csv"),
        (["compare", "--set", "training.epoch=2"], "training.epoch"),
        (["compare", "--data", "sst2", "--data-root", "nowhere"], "nowhere: no such folder of data sets"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(
        app, ["experiment", *arguments, "--folder", str(tmp_path / "x"), "--parallel", "1"]
    )
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.output
