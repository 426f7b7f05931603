"""A run on one of the paper's data sets, of pairs, from a local copy in the hub's layout."""

import tomllib
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config
from common.records import Phase
from tests.conftest import sentences
from tests.integration.federation import Federation


def write_qnli(root: Path) -> Path:
    """A sentence answers its question when it speaks of animals: the second text of a pair decides."""
    folder = root / "nyu-mll" / "glue" / "qnli"
    folder.mkdir(parents=True)
    for split, seed in (("train", 1), ("validation", 2)):
        questions, _ = sentences(60, seed)
        answers, kinds = sentences(60, seed + 10)
        labels = [int(kind != "animals") for kind in kinds]
        table = pyarrow.table({"question": questions, "sentence": answers, "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return root


class OnQnli(Federation):
    """The owner's test data and the workers' are presets."""

    def start_worker_on(self, preset: str, number: int, address: str, root: Path) -> None:
        name = f"worker-{number}"
        self.start(
            name,
            "worker",
            *("--coordinator", address, "--preset", preset, "--data-root", str(root)),
            *("--name", name, "--folder", str(self.folder / name), "--threads", "1"),
        )


@pytest.mark.slow
def test_a_run_on_pairs_from_a_preset(tmp_path: Path, model_folder: Path) -> None:
    root = write_qnli(tmp_path / "hub")
    settings = {
        "task.labels": ("entailment", "not_entailment"),
        "task.pairs": True,
        "task.max_length": 32,
        "data.root": str(root),
        "data.test.path": None,
        "data.test.preset": "qnli",
        "rounds.workers": 2,
        "rounds.minimum": 2,
        "rounds.count": 3,
    }
    running = OnQnli(tmp_path, model_folder, settings)
    try:
        address = running.start_coordinator()["address"]
        running.start_worker_on("qnli", 1, address, root)
        running.start_worker_on("qnli:validation", 2, address, root)
        running.wait()
    finally:
        running.end()
    status = running.status()
    assert status.phase is Phase.FINISHED
    assert [w.examples for w in status.workers] == [60, 60]
    losses = [e.loss for e in status.evaluations if e.model == "fm"]
    assert losses[-1] < losses[0], losses


def test_single_texts_do_not_join_a_run_on_pairs(tmp_path: Path, model_folder: Path) -> None:
    root = write_qnli(tmp_path / "hub")
    settings = {
        "task.labels": ("entailment", "not_entailment"),
        "task.pairs": True,
        "data.root": str(root),
        "data.test.path": None,
        "data.test.preset": "qnli",
    }
    running = Federation(tmp_path, model_folder, settings)
    try:
        running.start_worker(1, running.start_coordinator()["address"])
        assert running.processes["worker-1"].wait(60) == 2
        assert "the run is for pairs of texts; name the second column" in running.log("worker-1")
    finally:
        running.end()


@pytest.mark.parametrize(
    ("arguments", "section"),
    [
        (
            ["--preset", "mnli:validation_mismatched"],
            {
                "kind": "text-classification",
                "labels": ["entailment", "neutral", "contradiction"],
                "pairs": True,
                "max_length": 128,
            },
        ),
        (["--task", "causal-lm"], {"kind": "causal-lm", "labels": [], "pairs": False, "max_length": 128}),
        (
            ["--task", "image-classification", "--labels", "cat,dog"],
            {"kind": "image-classification", "labels": ["cat", "dog"], "pairs": False, "max_length": 128},
        ),
    ],
)
def test_init_writes_a_file_for_every_task(
    arguments: list[str], section: dict[str, object], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path / "run.toml"), *arguments])
    assert result.exit_code == 0, result.output
    written = tomllib.loads((tmp_path / "run.toml").read_text())
    assert written["task"] == section
    test = written["data"]["test"]
    assert test.get("preset") == (arguments[1] if arguments[0] == "--preset" else None)
    assert ("path" in test) == ("preset" not in test)


def test_init_writes_what_learns_under_differential_privacy(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    arguments = ["init", str(path), "--labels", "a,b", "--model", str(tmp_path), "--epsilon", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    config = load_config(path)
    assert config.private and config.privacy.dp.epsilon == 3.0
    assert config.training.optimizer == "sgd" and config.training.weight_decay == 0.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epsilon", "0"], "--epsilon must be > 0 and <= 100, got 0"),
        (["--epsilon", "nan"], "--epsilon must be > 0 and <= 100, got nan"),
        (["--epsilon", "8", "--task", "causal-lm"], "--epsilon does not go with --task causal-lm"),
    ],
)
def test_init_says_what_privacy_does_not_go_with(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path / "run.toml"), *arguments])
    assert result.exit_code != 0 and told in result.output
